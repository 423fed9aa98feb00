"""Where facts come from: Wikidata over SPARQL, an embedded RDF snapshot, the relation catalogue."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict, Unpack

from sources.action_api import ActionApi, open_action_api
from sources.catalogue import Relation, load_catalogue
from sources.client import DEFAULT_LIMITS, Limits, Observer, silent_observer
from sources.embedded import EmbeddedEngine
from sources.endpoint import EndpointEngine
from sources.errors import (
    AnswerTooLarge,
    BadAnswer,
    BadQuery,
    Banned,
    CatalogueInvalid,
    CursorTooOld,
    QueryTimeout,
    SnapshotUnreadable,
    SourceDown,
    SourceError,
    SourceWentBack,
    Throttled,
)
from sources.queries import Stamps
from sources.vocabulary import Cursor, Failed, Observation, Outcome, Page, Standing, StandingState, Value, ValueKind
from sources.wikidata import WikidataSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "ActionApi",
    "AnswerTooLarge",
    "BadAnswer",
    "BadQuery",
    "Banned",
    "CatalogueInvalid",
    "Cursor",
    "CursorTooOld",
    "Failed",
    "FeedOptions",
    "Limits",
    "Observation",
    "Observer",
    "Outcome",
    "Page",
    "QueryTimeout",
    "Relation",
    "SnapshotUnreadable",
    "SourceDown",
    "SourceError",
    "SourceWentBack",
    "Stamps",
    "Standing",
    "StandingState",
    "Throttled",
    "Value",
    "ValueKind",
    "WikidataSource",
    "load_catalogue",
    "open_action_api",
    "open_embedded",
    "open_endpoint",
    "silent_observer",
]


class FeedOptions(TypedDict, total=False):
    """Options of every source; see `WikidataSource` for their meaning and defaults."""

    page_size: int
    chunk: int
    overlap: timedelta
    lag: timedelta
    languages: Sequence[str]
    stamps: Stamps
    memory: timedelta | None
    filters: Mapping[str, Mapping[str, Sequence[str]]]
    blocklist: Sequence[str]
    longest_label: int


def open_embedded(path: Path, relations: Sequence[Relation], **options: Unpack[FeedOptions]) -> WikidataSource:
    """Open an RDF file or the directory of an Oxigraph store as a source inside the process.

    The data is read here; a file that changes later needs a new source. A snapshot is complete up to
    its replication time, so overlap and lag are zero unless given, and an older one is told by any cursor.

    Raises:
        SnapshotUnreadable: missing, corrupt, empty or of an unknown format.
        SourceError: the settings cannot work.

    """
    settled: FeedOptions = {"overlap": timedelta(0), "lag": timedelta(0)}
    settled.update(options)
    return WikidataSource(EmbeddedEngine(path), relations, setback=timedelta(0), **settled)


def open_endpoint(
    url: str,
    relations: Sequence[Relation],
    *,
    user_agent: str,
    timeout_seconds: float = 65.0,
    limits: Limits = DEFAULT_LIMITS,
    observer: Observer = silent_observer,
    turnstile: Path | None = None,
    **options: Unpack[FeedOptions],
) -> WikidataSource:
    """Open a SPARQL endpoint as a source; nothing is sent before it is asked.

    Args:
        url: address of the endpoint, http or https.
        relations: the properties to watch.
        user_agent: ``name/version (url; mail)``, as Wikimedia's policy asks; a public host needs a contact in it.
        timeout_seconds: bound on one attempt at a query. The Wikidata Query Service gives up after 60.
        limits: bounds on answers and on trying again.
        observer: called after every attempt with its outcome (``ok``, ``throttled``, ``banned``, ``timeout``,
            ``bad_query``, ``down``, ``bad_answer`` or ``too_large``) and its seconds.
        turnstile: directory of lock files by which processes ask a host one query at a time.
        **options: see `WikidataSource`.

    Raises:
        SourceError: the settings cannot work.

    """
    engine = EndpointEngine(
        url,
        user_agent=user_agent,
        timeout_seconds=timeout_seconds,
        limits=limits,
        observer=observer,
        turnstile=turnstile,
    )
    return WikidataSource(engine, relations, **options)
