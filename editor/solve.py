"""The least-squares system of one edited layer (Meng et al. 2022, section 4.2).

``Delta = R K^T (P + sum w k k^T)^-1`` with the keys K as columns, the residual R, and P what ordinary text asks for:
``lambda C`` as published, or with AlphaEdit (Fang et al. 2024, arXiv 2410.02355) a ridge within the directions that
ordinary text hardly uses. P and its factor depend on base and settings only, so they are kept on disk.

With fewer columns than :data:`WOODBURY_BELOW` of a key's dimensions the inverse comes from P's kept factor (Woodbury
identity), otherwise from a Cholesky factor of the whole. All in float64.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from editor.errors import NumericalFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from editor.settings import MemitSettings

FEW_FACTS = 100
"""Up to so many facts solved together the settings' strength counts as it is."""
WOODBURY_BELOW = 0.25
"""Share of a key's dimensions up to which the solve by columns is the cheaper one."""


class Factors:
    """Matrices that are computed once per base, layer and settings, kept in files found by content.

    Args:
        directory: where; nothing is kept without one.
        key: digest of the base and of all that shapes the covariance.
    """

    def __init__(self, directory: Path | None = None, key: str = "") -> None:
        self._directory = directory
        self._key = key
        self._known: dict[str, Tensor] = {}

    def get(self, kind: str, layer: int, parameter: float, make: Callable[[], Tensor]) -> Tensor:
        """The matrix of that kind, read or made."""
        name = hashlib.sha256(json.dumps([self._key, kind, layer, parameter]).encode()).hexdigest()
        if name not in self._known:
            self._known[name] = make() if self._directory is None else _kept(self._directory, name, make)
        return self._known[name]


def _kept(directory: Path, name: str, make: Callable[[], Tensor]) -> Tensor:
    file = directory / f"{name}.factor.safetensors"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({"matrix": make().contiguous().cpu()}, partial)
        partial.replace(file)
    with safetensors.safe_open(file, framework="pt") as stored:
        matrix: Tensor = stored.get_tensor("matrix")
    return matrix


class Prior:
    """P of every edited layer, in the coordinates in which its system is solved.

    Args:
        covariance: ``E[k k^T]`` per layer, float64 ``[d_ff, d_ff]``.
        settings: covariance_weight and shrinkage, or null_space and ridge.
        factors: what is kept between runs.
        device: where systems are solved.
    """

    def __init__(
        self, covariance: Mapping[int, Tensor], settings: MemitSettings, factors: Factors, device: torch.device
    ) -> None:
        self._covariance = covariance
        self._settings = settings
        self._factors = factors
        self._device = device

    def width(self, layer: int) -> int:
        """d_ff of a layer."""
        return len(self._covariance[layer])

    def weight(self, facts: int) -> float:
        """Lambda for so many facts solved together."""
        grown: float = max(1.0, facts / FEW_FACTS) ** self._settings.crowding
        return self._settings.covariance_weight * grown

    def moment(self, layer: int, facts: int) -> Tensor:
        """P in the system's coordinates, ``[n, n]``."""
        if self._settings.strategy == "null_space":
            size = self._basis(layer).shape[1]
            return torch.full((size,), self._settings.ridge, dtype=torch.float64, device=self._device).diag()
        return self._shrunk(layer).mul_(self.weight(facts))

    def factor(self, layer: int, facts: int) -> Tensor:
        """P's lower Cholesky factor.

        Raises:
            NumericalFailure: the covariance is singular.
        """
        if self._settings.strategy == "null_space":
            return self.moment(layer, facts).sqrt()

        def make() -> Tensor:
            return cholesky(self._shrunk(layer), layer)

        kept = self._factors.get("cholesky", layer, self._settings.shrinkage, make).to(self._device)
        return kept.mul(self.weight(facts) ** 0.5)

    def coordinates(self, layer: int, keys: Tensor) -> Tensor:
        """Keys ``[rows, d_ff]`` in the system's coordinates, float64 ``[rows, n]``."""
        keys = keys.to(self._device, torch.float64)
        return keys @ self._basis(layer) if self._settings.strategy == "null_space" else keys

    def update(self, layer: int, solved: Tensor) -> Tensor:
        """A solution ``[d, n]`` as an update ``[d, d_ff]``."""
        return solved @ self._basis(layer).T if self._settings.strategy == "null_space" else solved

    def _shrunk(self, layer: int) -> Tensor:
        moment = self._covariance[layer].to(self._device)
        identity = torch.eye(len(moment)).to(moment) * moment.trace() / len(moment)
        return moment.lerp(identity, self._settings.shrinkage)

    def _basis(self, layer: int) -> Tensor:
        """The eigenvectors of C with the smallest eigenvalues, ``[d_ff, n]``."""
        moment = self._covariance[layer]

        def make() -> Tensor:
            ascending: Tensor = torch.linalg.eigh(moment.to(self._device))[1]
            return ascending

        vectors = self._factors.get("eigenvectors", layer, 0.0, make)
        return vectors[:, : max(1, round(self._settings.null_space * len(moment)))].to(self._device)


class System:
    """``P + sum w k k^T`` of one layer.

    Args:
        prior: gives P.
        layer: the layer.
        columns: how many keys will be added in all; decides how the system is solved.
        facts: how many keys it will be asked to move.
    """

    def __init__(self, prior: Prior, layer: int, columns: int, facts: int = 1) -> None:
        self._prior = prior
        self._layer = layer
        self._rows: list[Tensor] | None = [] if columns < WOODBURY_BELOW * prior.width(layer) else None
        self._facts = facts
        self._moment = prior.moment(layer, facts) if self._rows is None else None

    def add(self, keys: Tensor, weight: float = 1.0) -> None:
        """Add keys ``[rows, d_ff]`` that shall not move (or that :meth:`solve` is then asked to move)."""
        if self._moment is None:
            assert self._rows is not None
            self._rows.append(self._prior.coordinates(self._layer, keys) * weight**0.5)
            return
        rows = self._prior.coordinates(self._layer, keys)
        self._moment.addmm_(rows.T, rows, alpha=weight)

    def solve(self, keys: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Move keys ``[rows, d_ff]`` by residuals ``[rows, d]``.

        Returns:
            The update ``[d, d_ff]``, and each key's leverage ``k^T (P + sum w k k^T)^-1 k`` in 0 to 1: their sum is
            how many of a key's dimensions the facts take up (effective degrees of freedom of a ridge regression).

        Raises:
            NumericalFailure: the system is singular or the update not finite.
        """
        wanted = self._prior.coordinates(self._layer, keys)
        residual = residual.to(wanted)
        solved, leverage = (
            self._by_factor(wanted, residual) if self._rows is None else self._by_columns(wanted, residual)
        )
        if not bool(torch.isfinite(solved).all()):
            raise NumericalFailure(f"layer {self._layer}: the update is not finite: raise covariance_weight")
        return self._prior.update(self._layer, solved), leverage

    def _by_factor(self, keys: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        assert self._moment is not None
        factor = cholesky(self._moment.addmm_(keys.T, keys), self._layer)
        # A^-1 = (L L^T)^-1, so with W = L^-1 K^T the leverages are |w|^2.
        whitened = torch.linalg.solve_triangular(factor, keys.T, upper=False)
        right = torch.linalg.solve_triangular(factor.T, whitened @ residual, upper=True)
        return right.T, whitened.square().sum(0)

    def _by_columns(self, keys: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        assert self._rows is not None
        rows = torch.cat([keys, *self._rows])
        factor = self._prior.factor(self._layer, self._facts)
        # With all columns U: A^-1 U = P^-1 U (I + U^T P^-1 U)^-1, of which the first are the keys'.
        whitened = torch.linalg.solve_triangular(factor, rows.T, upper=False)
        gram = whitened.T @ whitened
        inner = cholesky(gram + torch.eye(len(gram)).to(gram), self._layer)
        padded = torch.cat([residual, residual.new_zeros(len(rows) - len(keys), residual.shape[1])])
        solved = whitened @ torch.cholesky_solve(padded, inner)
        own = torch.linalg.solve_triangular(inner, gram[:, : len(keys)], upper=False)
        leverage = gram.diagonal()[: len(keys)] - own.square().sum(0)
        return torch.linalg.solve_triangular(factor.T, solved, upper=True).T, leverage


def cholesky(matrix: Tensor, layer: int) -> Tensor:
    """Lower Cholesky factor.

    Raises:
        NumericalFailure: the matrix is not positive definite.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise NumericalFailure(f"layer {layer}: the covariance is singular: use more covariance_tokens")
    return factor
