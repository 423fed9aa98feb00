"""MEMIT settings, and the shipped presets for known models."""

from __future__ import annotations

import hashlib
import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from editor.errors import SettingsInvalid
from editor.precision import Precision

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class MemitSettings(BaseModel):
    """Everything that decides what an edit does to the weights (Meng et al. 2022, section 4 and appendix).

    Attributes:
        layers: the edited blocks, ascending; the last one carries the value vectors.
        steps: Adam iterations per value vector (``steps - 1`` gradient steps, as in the reference).
        learning_rate: Adam's step size.
        weight_decay: factor of ``|delta| / |h|^2`` in the loss.
        kl_factor: factor of the KL divergence at the essence prompt.
        clamp: largest ``|delta| / |h|``.
        loss_floor: a fact stops when its loss falls below (reference: 0.05).
        enough: a fact also stops when each of its target tokens is at least this likely in every text (1: never, as
            published).
        turns: a step reads one of this many shares of each fact's texts, in turn (1: all of them, as published).
        precision: of the blocks above the edited ones while value vectors are optimised: the ``model``'s own,
            ``bfloat16``, or ``auto``: bfloat16 for a float32 model where the hardware multiplies it faster.
        covariance_weight: lambda, how strongly ordinary text resists the update.
        crowding: beyond a hundred facts solved together lambda grows with ``(facts / 100) ** crowding``, since what
            they cost ordinary text adds up (0: not, as published).
        shrinkage: share of the covariance that a multiple of the identity with the same trace takes over, since few
            tokens estimate it badly (Ledoit and Wolf 2004; 0: none, as published).
        passes: how often the residual is spread over the layers (1: as published).
        reinforcements: how often facts that the edited model still does not give are then pushed further, and no other
            (0: never, as published).
        suffix_weight: mu, how strongly the other tokens of the edited prompts resist it (0: as published).
        protect_weight: how strongly each token of a protected text resists it (no effect without such texts).
        strategy: how a ledger becomes weights: all live facts in one solve from the pristine base (``ledger``), batch
            after batch with the earlier batches' keys in the solve (``sequential``), or the same within the directions
            that ordinary text hardly uses (``null_space``, AlphaEdit). covariance_weight and shrinkage count for the
            first two, null_space and ridge for the last.
        null_space: share of a key's dimensions that an update may use.
        ridge: how strongly it is kept small there.
        contexts: number of sampled prefixes beside the bare prompt.
        context_tokens: length of a sampled prefix.
        covariance_tokens: tokens of ordinary text behind the covariance.
        seed: seed of all sampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    steps: int = Field(25, ge=2)
    learning_rate: float = Field(0.5, gt=0)
    weight_decay: float = Field(0.5, ge=0)
    kl_factor: float = Field(0.0625, ge=0)
    clamp: float = Field(0.75, gt=0)
    loss_floor: float = Field(0.05, ge=0)
    enough: float = Field(1.0, gt=0, le=1)
    turns: int = Field(1, ge=1)
    precision: Precision = "auto"
    covariance_weight: float = Field(15000.0, gt=0)
    crowding: float = Field(0.0, ge=0)
    shrinkage: float = Field(0.0, ge=0, lt=1)
    passes: int = Field(1, ge=1)
    reinforcements: int = Field(0, ge=0)
    suffix_weight: float = Field(0.0, ge=0)
    protect_weight: float = Field(1.0, ge=0)
    strategy: Literal["ledger", "sequential", "null_space"] = "ledger"
    null_space: float = Field(0.7, gt=0, le=1)
    ridge: float = Field(10.0, gt=0)
    contexts: int = Field(5, ge=0)
    context_tokens: int = Field(10, ge=1)
    covariance_tokens: int = Field(20_000, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {self.layers} must be ascending and distinct")
        return self

    def check_fits(self, config: PretrainedConfig) -> None:
        """Refuse layers that the model does not have.

        Raises:
            SettingsInvalid: the last edited layer is not below the model's last one.
        """
        if self.layers[-1] >= config.num_hidden_layers - 1:
            raise SettingsInvalid(
                f"edit layers {self.layers}: the model has {config.num_hidden_layers}, choose layers below the last"
            )

    def digest(self) -> str:
        """SHA-256 over all settings."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def preset(config: PretrainedConfig) -> dict[str, object]:
    """The shipped settings for a model of this type, depth and width; empty where there are none."""
    shape = {
        "model_type": config.model_type,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
    }
    packaged = tomllib.loads(resources.files("editor").joinpath("presets.toml").read_text("utf-8"))
    for entry in packaged.values():
        if entry["shape"] == shape:
            settings: dict[str, object] = entry["settings"]
            return settings
    return {}


def settings_for(config: PretrainedConfig, overrides: dict[str, object]) -> MemitSettings:
    """The model's preset with the caller's overrides.

    Raises:
        SettingsInvalid: no preset and no layers given, or a value out of range.
    """
    merged = preset(config) | overrides
    if "layers" not in merged:
        raise SettingsInvalid(
            f"no shipped MEMIT settings for {config.model_type} with {config.num_hidden_layers} layers: "
            "set at least layers and covariance_weight"
        )
    try:
        settings = MemitSettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsInvalid(f"MEMIT setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    settings.check_fits(config)
    return settings
