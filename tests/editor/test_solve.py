"""One layer's system: by columns and by factor the same, and what the literature says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editor import MemitSettings
from editor.errors import NumericalFailure
from editor.solve import WOODBURY_BELOW, Factors, Prior, System

CPU = torch.device("cpu")
WIDTH, OUT = 40, 6


def chosen(**overrides: object) -> MemitSettings:
    return MemitSettings.model_validate({"layers": (0,), "covariance_weight": 7.0, "shrinkage": 0.1} | overrides)


def covariance(seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    keys = torch.randn(3 * width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return keys.T @ keys / len(keys)


def prior(moment: torch.Tensor, factors: Factors | None = None, **overrides: object) -> Prior:
    return Prior({0: moment}, chosen(**overrides), factors or Factors(), CPU)


@given(
    facts=st.integers(1, 6), resisting=st.integers(0, 6), seed=st.integers(0, 99),
    strategy=st.sampled_from(["ledger", "null_space"]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_by_columns_and_by_factor_are_the_same(facts: int, resisting: int, seed: int, strategy: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys, others = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (facts, resisting))
    residual = torch.randn(facts, OUT, generator=generator, dtype=torch.float64)
    solutions = []
    for columns in (0, WIDTH):
        system = System(prior(covariance(seed), strategy=strategy), 0, columns)
        if resisting:
            system.add(others, 0.5)
        solutions.append(system.solve(keys, residual))
    (first, first_leverage), (second, second_leverage) = solutions
    assert torch.allclose(first, second, atol=1e-10)
    assert torch.allclose(first_leverage, second_leverage, atol=1e-10)
    assert ((first_leverage > 0) & (first_leverage < 1)).all()


def test_the_update_is_memits() -> None:
    moment = covariance(3)
    keys, earlier = torch.randn(5, WIDTH, dtype=torch.float64), torch.randn(30, WIDTH, dtype=torch.float64)
    residual = torch.randn(5, OUT, dtype=torch.float64)
    system = System(prior(moment, shrinkage=0.0), 0, columns=35)
    system.add(earlier)
    update, leverage = system.solve(keys, residual)
    inverse = torch.linalg.inv(7.0 * moment + earlier.T @ earlier + keys.T @ keys)
    assert torch.allclose(update, residual.T @ keys @ inverse, atol=1e-10)
    assert torch.allclose(leverage, (keys @ inverse * keys).sum(1), atol=1e-10)


def test_the_null_space_update_is_alphaedits() -> None:
    moment = covariance()
    keys, earlier = torch.randn(5, WIDTH, dtype=torch.float64), torch.randn(30, WIDTH, dtype=torch.float64)
    residual = torch.randn(5, OUT, dtype=torch.float64)
    system = System(prior(moment, strategy="null_space", null_space=0.5, ridge=2.0), 0, columns=35)
    system.add(earlier)
    update, _ = system.solve(keys, residual)
    vectors = torch.linalg.eigh(moment)[1][:, : WIDTH // 2]
    projection = vectors @ vectors.T
    # As published: (P (K K^T + K_p K_p^T) + ridge I)^-1 P K R^T, transposed.
    system_matrix = projection @ (keys.T @ keys + earlier.T @ earlier) + 2.0 * torch.eye(WIDTH, dtype=torch.float64)
    expected = torch.linalg.solve(system_matrix, projection @ keys.T @ residual).T
    assert torch.allclose(update, expected, atol=1e-10)


def test_a_factor_is_made_once_and_kept(tmp_path: Path) -> None:
    moment, keys = covariance(), torch.randn(2, WIDTH, dtype=torch.float64)
    residual = torch.randn(2, OUT, dtype=torch.float64)
    assert len(keys) < WOODBURY_BELOW * WIDTH
    first, _ = System(prior(moment, Factors(tmp_path, "base")), 0, 2).solve(keys, residual)
    # A wrong matrix under the same key would show if the factor were made again.
    again, _ = System(prior(2 * moment, Factors(tmp_path, "base")), 0, 2).solve(keys, residual)
    assert torch.equal(first, again)
    other, _ = System(prior(2 * moment, Factors(tmp_path, "another base")), 0, 2).solve(keys, residual)
    assert not torch.allclose(first, other)
    stronger, _ = System(prior(moment, Factors(tmp_path, "base"), covariance_weight=70.0), 0, 2).solve(keys, residual)
    assert stronger.norm() < first.norm()


@pytest.mark.parametrize("columns", [0, WIDTH])
def test_a_singular_covariance_is_an_error(columns: int) -> None:
    system = System(prior(torch.zeros(WIDTH, WIDTH, dtype=torch.float64), shrinkage=0.0), 0, columns)
    with pytest.raises(NumericalFailure, match="covariance_tokens"):
        system.solve(torch.randn(2, WIDTH, dtype=torch.float64), torch.randn(2, OUT, dtype=torch.float64))


def test_many_facts_meet_more_resistance() -> None:
    crowded = prior(covariance(), crowding=0.5)
    assert [crowded.weight(facts) for facts in (1, 100, 400)] == [7.0, 7.0, 14.0]
    assert prior(covariance()).weight(400) == 7.0
    few, many = torch.linalg.norm(crowded.moment(0, 100)), torch.linalg.norm(crowded.moment(0, 400))
    assert torch.allclose(many, 2 * few)
    assert torch.allclose(crowded.factor(0, 400) @ crowded.factor(0, 400).T, crowded.moment(0, 400))
