"""Plots: where points, bars and lines of the report's pictures lie. Numbers only; the template draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]

FOREST_WIDTH = 300.0
FOREST_RANGE = (-0.5, 1.75)
"""Of the part of the allowance that is used: at 0 nothing is lost, at 1 the limit is reached."""
TREND_WIDTH, TREND_HEIGHT, TREND_EDGE = 220.0, 90.0, 10.0
WITH_FLOOR = ("efficacy", "paraphrase", "question")


@dataclass(frozen=True)
class Bar:
    """One comparison on the common scale; places in units of the picture.

    ``cut_low`` and ``cut_high`` say that the bounds go on beyond the picture.
    """

    measure: Row
    point: float | None
    low: float | None
    high: float | None
    cut_low: bool
    cut_high: bool


@dataclass(frozen=True)
class Forest:
    """All comparisons with a threshold, and where nothing and the limit lie."""

    bars: list[Bar]
    width: float
    nothing: float
    limit: float


@dataclass(frozen=True)
class Dot:
    """One version in a history."""

    x: float
    y: float
    version: int
    state: str
    value: float


@dataclass(frozen=True)
class Trend:
    """The history of one measure."""

    measure: str
    what: str
    dots: list[Dot]
    limit: float
    threshold: float
    width: float
    height: float


def forest(measures: Sequence[Row]) -> Forest:
    """Each comparison as the part of its allowance that it uses, so that all stand on one scale.

    A floor of 95 % allows 5 % to miss, and a share of 97 % uses 0.6 of it. A drop of 1 % uses 0.2 of a margin of 5 %.
    """
    bars = []
    for measure in measures:
        if measure["against"] == "warning":
            continue
        point, low, high = _used(measure)
        bars.append(
            Bar(
                measure,
                None if point is None else _across(point),
                None if low is None else _across(low),
                None if high is None else _across(high),
                cut_low=low is not None and low < FOREST_RANGE[0],
                cut_high=high is not None and high > FOREST_RANGE[1],
            )
        )
    return Forest(bars, FOREST_WIDTH, _across(0.0), _across(1.0))


def _used(measure: Row) -> tuple[float | None, float | None, float | None]:
    """Point and bounds as parts of the allowance."""
    threshold = measure["threshold"]
    if measure["against"] == "floor":
        allowed = 1 - threshold
        if measure["candidate"] is None or allowed <= 0:
            return None, None, None
        low, high = (None if bound is None else (1 - bound) / allowed for bound in (measure["high"], measure["low"]))
        return (1 - measure["candidate"]) / allowed, low, high
    loss = measure["loss"]
    if loss is None:
        return None, None, None
    low, high = (None if bound is None else bound / threshold for bound in (measure["low"], measure["high"]))
    return loss / threshold, low, high


def _across(used: float) -> float:
    """A place in the forest, at its edge for what lies beyond."""
    least, most = FOREST_RANGE
    return round((min(max(used, least), most) - least) / (most - least) * FOREST_WIDTH, 1)


def trend(measure: str, history: Sequence[Row]) -> Trend | None:
    """How a measure went from version to version; None where none has it.

    Shares with a floor are drawn as they are. What may drop or rise is drawn as its loss against the base (retention:
    against the version before), which is what its margin limits.
    """
    points = _followed(measure, history)
    if not points:
        return None
    has_floor = measure in WITH_FLOOR
    threshold = points[-1].threshold
    shown = [*(point.value for point in points), threshold, 1.0 if has_floor else 0.0]
    least, span = min(shown), (max(shown) - min(shown)) or 1.0

    def up(value: float) -> float:
        return round(TREND_HEIGHT - TREND_EDGE - (value - least) / span * (TREND_HEIGHT - 2 * TREND_EDGE), 1)

    step = (TREND_WIDTH - 2 * TREND_EDGE) / max(1, len(points) - 1)
    dots = [
        Dot(round(TREND_EDGE + i * step, 1), up(point.value), point.version["id"], point.version["state"], point.value)
        for i, point in enumerate(points)
    ]
    what = "share" if has_floor else "nats per token" if measure == "divergence" else "loss"
    return Trend(measure, what, dots, up(threshold), threshold, TREND_WIDTH, TREND_HEIGHT)


@dataclass(frozen=True)
class _Point:
    """A measure of one version: the share where it has a floor, else the loss."""

    version: Row
    value: float
    threshold: float


def _followed(measure: str, history: Sequence[Row]) -> list[_Point]:
    """The comparison that a history follows, of each version that has it: with the base where there is one."""
    points = []
    for version in history:
        rows = [row for row in version["measures"] if row["measure"] == measure]
        rows.sort(key=lambda row: row["against"] == "promoted")
        value = rows[0]["candidate" if rows[0]["against"] == "floor" else "loss"] if rows else None
        if value is not None:
            points.append(_Point(version, value, rows[0]["threshold"]))
    return points
