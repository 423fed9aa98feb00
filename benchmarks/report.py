"""Puts what the benchmarks printed into docs/benchmarks.md, as tables and pictures.

usage: report.py SPEED.json SCALING.json [MEMORY.json [BELIEFS.json]]

The files hold what the benchmarks print with --json; only their last line is read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

mpl.use("svg")
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "benchmarks.md"
STRATEGIES = ("ledger", "sequential", "null_space")
QUALITY = ("ES", "PS", "NS", "S", "exact", "exact_stop", "exact_paraphrase", "GE", "perplexity", "load", "unwritten")
TIMES = ("seconds_values", "seconds_solve")


def main() -> None:
    """Replace the page's generated parts."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    speed, scaling, *rest = (json.loads(Path(name).read_text("utf-8").splitlines()[-1]) for name in sys.argv[1:])
    page = PAGE.read_text("utf-8")
    page = _replaced(page, "speed", _table(_figures(speed)))
    page = _replaced(page, "scaling", _table([_row(row) for row in scaling["rows"]]))
    if rest:
        page = _replaced(page, "memory", _table(rest[0]["rows"]))
    if len(rest) > 1:
        page = _replaced(page, "beliefs", _table(_figures(rest[1])))
    PAGE.write_text(page, "utf-8")
    _plot(scaling["rows"], DOCS / "benchmarks-scaling.svg")


def _figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"measure": name, "value": _short(value)} for name, value in found.items()]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    name = row["strategy"] if row["batches"] < 2 else f"{row['strategy']}, {row['batches']} batches"
    return {"facts": row["facts"], "solved": name} | {key: row.get(key, "") for key in (*QUALITY, *TIMES)}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _replaced(page: str, part: str, text: str) -> str:
    begin, end = f"<!-- {part} -->\n", f"\n<!-- end of {part} -->"
    before, after = page.split(begin, 1)
    return before + begin + text + end + after.split(end, 1)[1]


def _plot(rows: list[dict[str, Any]], file: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    for axis, measure in zip(axes, ("S", "exact", "NS", "perplexity"), strict=True):
        for strategy in ("base", *STRATEGIES):
            points = [(row["facts"], row[measure]) for row in rows if row["strategy"] == strategy]
            style = {"color": "grey", "linestyle": ":"} if strategy == "base" else {"marker": "o"}
            axis.plot([x for x, _ in points], [y for _, y in points], label=strategy.replace("_", " "), **style)
        axis.set(xscale="log", xlabel="facts", title=measure)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    # The same data give the same file.
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
