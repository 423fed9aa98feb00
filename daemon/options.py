"""Options that every command takes: ``--config`` before or after its name, and ``--json`` where it reads."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file (TOML); also before the command, or FACTSYNCD_CONFIG."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def configured(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--config``; its value is kept in the context."""
    return _with_option(function, "config", CONFIG, None)


def reading(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options ``--config`` and ``--json``; their values are kept in the context."""
    return configured(_with_option(function, "json", JSON, default=False))


def chosen_config(context: typer.Context) -> Path | None:
    """The configuration file given in either place."""
    return (context.obj or {}).get("config")


def wants_json(context: typer.Context) -> bool:
    """Whether ``--json`` was given."""
    return bool((context.obj or {}).get("json"))


def _with_option(function: Callable[..., None], name: str, kind: Any, default: Any) -> Callable[..., None]:
    """The function with one more keyword, which is stored in the context instead of passed on."""

    @functools.wraps(function)
    def command(context: typer.Context, **arguments: Any) -> None:
        if value := arguments.pop(f"option_{name}"):
            context.obj = {**(context.obj or {}), name: value}
        function(context=context, **arguments)

    option = inspect.Parameter(f"option_{name}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    # Typer looks for its own words in the signature, so annotations must not stay strings.
    known = [given.replace(annotation=hints[given.name]) for given in signature.parameters.values()]
    command.__signature__ = signature.replace(parameters=[*known, option])  # type: ignore[attr-defined]
    command.__annotations__ = {**hints, f"option_{name}": kind}
    return command
