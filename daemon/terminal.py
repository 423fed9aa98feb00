"""What a person sees: progress bars on standard error, tables on standard output."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from editor import Progress as Report


@contextmanager
def progress_bars() -> Iterator[Report]:
    """A progress callback that draws one bar per stage; on a pipe nothing is drawn.

    What follows a colon in the name of a stage is shown and does not make another stage. A total of 0 is not known.
    """
    bars = Progress(
        TextColumn("{task.description:<16}"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(),
    )  # fmt: skip
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        name = stage.partition(":")[0]
        if name not in tasks or bars.tasks[tasks[name]].finished:
            tasks[name] = bars.add_task(stage, total=total or None)
        bars.update(tasks[name], description=stage, completed=done, total=total or None)

    with bars:
        yield report


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    Console().print(table)


def _cell(cell: object) -> Text:
    """A cell as it stands: what a label has in brackets is no markup."""
    return cell if isinstance(cell, Text) else Text("" if cell is None else str(cell))


def print_line(text: str) -> None:
    """One line on standard output."""
    Console(soft_wrap=True, highlight=False, markup=False).print(text)
