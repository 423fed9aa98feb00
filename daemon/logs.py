"""Structured logs on standard error."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog
from stamina.instrumentation import set_on_retry_hooks

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails

    from daemon.config import LogSection


def configure_logging(settings: LogSection) -> None:
    """Send structlog's and the standard library's records through one pipeline to standard error."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer]
        if settings.format == "json"
        else [*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    set_on_retry_hooks([_log_retry])


def _log_retry(details: RetryDetails) -> None:
    # Only the last failure is an error; it ends the cycle and is reported then.
    structlog.get_logger("factsyncd").info(
        "trying again", attempt=details.retry_num, seconds=round(details.wait_for, 1), after=str(details.caused_by)
    )
