"""What the phases work with: settings, database, artifacts, source and models, opened when first needed."""

from __future__ import annotations

import hashlib
import threading
from datetime import timedelta
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING

import structlog
import torch

from daemon.errors import ConfigInvalid
from daemon.metrics import Metrics
from editor import (
    Interrupted,
    LanguageModel,
    Memit,
    MemitSettings,
    Preparation,
    ValueCache,
    load_language_model,
    prepare,
    settings_for,
    silent,
)
from sources import (
    ActionApi,
    FeedOptions,
    Relation,
    WikidataSource,
    load_catalogue,
    open_action_api,
    open_embedded,
    open_endpoint,
)
from store import ArtifactStore, Database, StateUnwritable, open_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.config import Settings
    from editor import Progress
    from store.tables import Version

BASE_VERSION = 0


class Runtime:
    """One process's view of the configured parts.

    Args:
        settings: the configuration.
        progress: told about long work; may raise ``editor.Interrupted`` to stop it.
    """

    def __init__(self, settings: Settings, progress: Progress = silent) -> None:
        self.settings = settings
        self.progress = progress
        self.metrics = Metrics(metadata.version("factsyncd"))
        self.log = structlog.get_logger("factsyncd")
        self.delivering = threading.RLock()
        """Held while targets are published to or asked: one thread at a time does."""
        self._loaded: dict[int, LanguageModel] = {}

    @cached_property
    def database(self) -> Database:
        """The configured database."""
        return open_database(self.settings.database_location)

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """Version directories."""
        return ArtifactStore(self.settings.state.directory / "versions")

    @cached_property
    def _catalogue(self) -> dict[str, Relation]:
        return load_catalogue(self.settings.source.catalogue)

    @cached_property
    def relations(self) -> dict[str, Relation]:
        """The watched relations by P-id.

        Raises:
            ConfigInvalid: a configured property, or one with a priority, is not in the catalogue.
        """
        stated = {pid: relation for pid, relation in self._catalogue.items() if relation.stated}
        chosen = self.settings.source.properties or tuple(stated)
        unknown = [pid for pid in chosen if pid not in stated]
        if unknown:
            raise ConfigInvalid(
                f"source.properties: {unknown[0]} is no property in the relation catalogue: add it to source.catalogue"
            )
        if strangers := self.settings.batch.priority.keys() - stated.keys():
            raise ConfigInvalid(
                f"batch.priority: {min(strangers)} is no property in the relation catalogue: correct it"
            )
        return {pid: stated[pid] for pid in chosen}

    def relation(self, pid: str) -> Relation:
        """The relation of a recorded change or edit, whether its property is still watched or not.

        Raises:
            ConfigInvalid: it is no longer in the catalogue.
        """
        if pid not in self._catalogue:
            raise ConfigInvalid(
                f"{pid} has recorded changes or live edits but no entry in the relation catalogue: "
                "put it back into source.catalogue"
            )
        return self._catalogue[pid]

    def property_label(self, pid: str) -> str:
        """The name of a property, or the P-id itself where the catalogue does not know it."""
        known = self._catalogue.get(pid)
        return pid if known is None else known.label

    def open_source(self, *, forgetful: bool = True) -> WikidataSource:
        """The configured source, read afresh (an embedded snapshot may have been replaced).

        Args:
            forgetful: whether a cursor may be too old for it (``source.memory_seconds``).
        """
        wanted = self.settings.source
        relations = list(self.relations.values())
        options = self._feed_options(forgetful=forgetful)
        if wanted.kind == "embedded":
            assert wanted.path is not None  # the configuration was checked
            return open_embedded(wanted.path, relations, **options)
        assert wanted.url is not None
        assert wanted.user_agent is not None
        return open_endpoint(
            wanted.url,
            relations,
            user_agent=wanted.user_agent,
            timeout_seconds=wanted.timeout_seconds,
            observer=self.metrics.request,
            turnstile=self._turnstile,
            **options,
        )

    def open_second_opinion(self, address: str) -> ActionApi:
        """The Action API at an address."""
        wanted = self.settings.source
        assert wanted.user_agent is not None  # the configuration was checked
        return open_action_api(
            address,
            list(self.relations.values()),
            user_agent=wanted.user_agent,
            timeout_seconds=wanted.timeout_seconds,
            languages=wanted.languages,
            observer=self.metrics.request,
            turnstile=self._turnstile,
        )

    @property
    def _turnstile(self) -> Path:
        """Where processes that share this state take turns at a host."""
        return self.settings.state.directory / "turnstile"

    def _feed_options(self, *, forgetful: bool) -> FeedOptions:
        """What is configured; what is not is left to the kind of source."""
        wanted = self.settings.source
        options = FeedOptions(
            page_size=wanted.page_size,
            chunk=wanted.chunk,
            languages=wanted.languages,
            stamps=wanted.stamps,
            filters=wanted.filters,
            blocklist=wanted.blocklist,
            longest_label=wanted.longest_label,
        )
        if wanted.overlap_seconds is not None:
            options["overlap"] = timedelta(seconds=wanted.overlap_seconds)
        if wanted.lag_seconds is not None:
            options["lag"] = timedelta(seconds=wanted.lag_seconds)
        if forgetful and wanted.memory_seconds is not None:
            options["memory"] = timedelta(seconds=wanted.memory_seconds)
        return options

    @property
    def source_name(self) -> str:
        """The key of the source's cursor: stable over a replaced snapshot."""
        wanted = self.settings.source
        return f"{wanted.kind}:{wanted.path if wanted.kind == 'embedded' else wanted.url}"

    def model(self, version: Version) -> LanguageModel:
        """The version's model, verified against its manifest and loaded; the base stays loaded beside one other.

        Raises:
            ArtifactCorrupt: the files do not match the recorded digest.
            ModelUnavailable: they cannot be loaded.
        """
        if version.id not in self._loaded:
            for other in [known for known in self._loaded if known != BASE_VERSION]:
                del self._loaded[other]
            if self.settings.model.threads is not None:
                torch.set_num_threads(self.settings.model.threads)
            self.artifacts.verify(version.id, version.digest)
            self.log.info("loading model", version=version.id)
            self._loaded[version.id] = load_language_model(
                self.artifacts.path(version.id),
                device=self.settings.model.device,
                digest=version.digest,
            )
        return self._loaded[version.id]

    def forget_models(self) -> None:
        """Free the memory of all loaded models."""
        self._loaded.clear()

    def memit_settings(self, base: LanguageModel) -> MemitSettings:
        """The base's preset with the configured overrides."""
        return settings_for(base.model.config, self.settings.edit.overrides())

    def settings_digest(self, base: LanguageModel) -> str:
        """Digest of everything configured that shapes the weights."""
        edit = self.settings.edit
        content = [self.memit_settings(base).digest(), edit.terminator, edit.text.model_dump_json()]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def preparation(self, base: LanguageModel) -> Preparation:
        """Contexts and covariance of the base, computed once."""
        return prepare(
            base,
            self.memit_settings(base),
            self.settings.edit.text,
            self.settings.state.directory / "cache" / "preparation",
            self.progress,
        )

    def memit(self, base: LanguageModel) -> Memit:
        """The editor over the base, with its cache of value vectors."""
        cache = ValueCache(self.settings.state.directory / "cache" / "values")
        return Memit(base, self.memit_settings(base), self.preparation(base), cache)

    def make_state_directory(self) -> None:
        """Create the state directory.

        Raises:
            StateUnwritable: it cannot be created.
        """
        directory = self.settings.state.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateUnwritable(
                f"cannot create the state directory {directory} ({error.strerror}): "
                "set [state] directory to a writable place"
            ) from error


def stoppable(progress: Progress, should_stop: Callable[[], bool]) -> Progress:
    """A progress callback that interrupts the work once ``should_stop`` says so."""

    def report(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        if should_stop():
            raise Interrupted(f"stopped during {stage}")

    return report
