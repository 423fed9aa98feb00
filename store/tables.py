"""The tables: everything about facts, versions and cycles that must survive a kill.

Words are those of the design page: fact, change, edit, ledger, version, belief, quarantine,
publication, cycle. All times are timezone-aware UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC datetime on databases with and without time zones.

    Raises:
        ValueError: a naive datetime was given.

    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive values and store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: give it a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return UTC, also where the database forgot the zone (SQLite)."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def key(row: SQLModel) -> int:
    """The number of a row that the database has numbered."""
    number: int | None = getattr(row, "id", None)
    if number is None:
        raise ValueError(f"{type(row).__name__} is not stored yet")
    return number


def utc_now() -> datetime:
    """Return the present instant, timezone-aware."""
    return datetime.now(UTC)


class ChangeState(StrEnum):
    """What became of a change."""

    SETTLING = "settling"  # seen, and not yet long enough to be believed
    PENDING = "pending"  # settled, waiting for a batch
    HELD = "held"  # the model already holds the new value: nothing to write
    BATCHED = "batched"  # part of the candidate in work
    WITHDRAWN = "withdrawn"  # the fact ended, and its edit left the ledger
    LIVE = "live"  # written in the promoted version
    SUPERSEDED = "superseded"  # a later change of the same slot replaced it
    REVERTED = "reverted"  # it took back what had not been written yet: nothing remains to be done
    QUARANTINED = "quarantined"  # kept out, see the quarantine table
    UNEDITABLE = "uneditable"  # recorded, but there is no one answer to write, see its reason


class VersionState(StrEnum):
    """Where a version stands; one is promoted at a time."""

    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    RETIRED = "retired"


class Phase(StrEnum):
    """The phase a cycle will run next."""

    PULL = "pull"
    DIFF = "diff"
    BATCH = "batch"
    EDIT = "edit"
    VALIDATE = "validate"
    PROMOTE = "promote"
    PUBLISH = "publish"
    DONE = "done"


class Outcome(StrEnum):
    """How a cycle ended."""

    NOTHING = "nothing"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    HELD = "held"
    ERROR = "error"


class PublicationState(StrEnum):
    """Whether a target answers with the version."""

    PENDING = "pending"  # to be delivered, or tried again at its time
    DELIVERED = "delivered"  # delivered and, where the engine can be asked, confirmed by its answers
    FAILED = "failed"  # delivered, and the engine answered otherwise
    SUPERSEDED = "superseded"  # a later publication to the target came first


Values = list[dict[str, str]]
"""A slot's current values, sorted by id: ``[{"kind": "item", "id": "Q76", "label": "Barack Obama"}]``."""


def value_ids(values: Values) -> list[str]:
    """What the values are, whatever they are called."""
    return [value["id"] for value in values]


def _foreign_key(target: str, **kwargs: Any) -> Any:
    return Column(Integer, ForeignKey(target), **kwargs)


def _enum(kind: type[StrEnum], **kwargs: Any) -> Any:
    """Make a string column that holds the enum's values, not its Python names."""
    stored = SqlEnum(kind, native_enum=False, length=16, values_callable=lambda members: [m.value for m in members])
    return Column(stored, **{"nullable": False} | kwargs)


class Fact(SQLModel, table=True):
    """The current value of one (subject, property) slot, as last recorded from the source.

    ``values`` is the last value that was certain and could be told: each has a label.
    """

    __tablename__ = "facts"

    qid: str = Field(primary_key=True)
    pid: str = Field(primary_key=True, index=True)
    subject_label: str
    outcome: str  # value, none, ambiguous, somevalue, novalue
    reason: str  # why the resolver said so
    values: Values = Field(sa_column=Column("current_values", JSON, nullable=False))
    revision: int = Field(sa_type=BigInteger)  # Wikidata has passed 2**31 revisions
    statement: str
    # When the revision was made; for what has no revision of its own, when the source said so.
    modified_at: datetime = Field(sa_type=UtcDateTime)
    recorded_at: datetime = Field(sa_type=UtcDateTime)
    unlabelled: Values = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """The current values by id, without labels, while a label of them cannot stand in a prompt; otherwise empty."""
    gone: bool = False  # its item is deleted or merged
    sitelinks: int | None = None  # in how many wikis the subject has a page, where the source says so


class Change(SQLModel, table=True):
    """A fact whose current value differs from the one last recorded.

    One with an ``origin_id`` was expanded from that change: the same fact told from its object's end. It is about a
    slot of its own, but carries the revision and the statement of its origin.
    """

    __tablename__ = "changes"
    __table_args__ = (
        # A slot changes once at a revision of its item, or at a moment where there is no revision to tell (a deletion,
        # a label of a value, an end that passes), and once by each change it is expanded from.
        Index(
            "ux_changes_revision",
            "qid",
            "pid",
            "revision",
            "modified_at",
            unique=True,
            sqlite_where=text("origin_id IS NULL"),
            postgresql_where=text("origin_id IS NULL"),
        ),
        UniqueConstraint("qid", "pid", "origin_id", name="uq_changes_origin"),
        Index("ix_changes_state", "state"),
        Index("ix_changes_slot", "qid", "pid"),
    )

    id: int | None = Field(default=None, primary_key=True)
    qid: str
    pid: str
    subject_label: str
    old_values: Values = Field(sa_column=Column(JSON, nullable=False))
    new_values: Values = Field(sa_column=Column(JSON, nullable=False))
    revision: int = Field(sa_type=BigInteger)  # Wikidata has passed 2**31 revisions
    statement: str
    modified_at: datetime = Field(sa_type=UtcDateTime)
    cycle_id: int = Field(sa_column=_foreign_key("cycles.id", nullable=False))
    state: ChangeState = Field(default=ChangeState.PENDING, sa_column=_enum(ChangeState))
    origin_id: int | None = Field(
        default=None, sa_column=Column(Integer, ForeignKey("changes.id", name="fk_changes_origin"), nullable=True)
    )
    reason: str = ""  # why nothing is written
    recorded_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    polls: int = 0  # pulls at whose end it stood
    # When a batch first left it, pending, for a later one.
    waiting_since: datetime | None = Field(default=None, sa_type=UtcDateTime)

    @property
    def group(self) -> int:
        """The change that it was expanded from, else its own number: both directions of a fact go together."""
        return key(self) if self.origin_id is None else self.origin_id


class Edit(SQLModel, table=True):
    """The decision to write one fact into the weights: exactly what the editor is given."""

    __tablename__ = "edits"

    id: int | None = Field(default=None, primary_key=True)
    change_id: int = Field(sa_column=_foreign_key("changes.id", nullable=False, unique=True))
    qid: str = Field(index=True)
    pid: str
    prompt: str  # with {} for the subject
    variants: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  # wordings with {}
    subject: str
    target: str
    former: str | None  # label of the value displaced, for probes
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class Version(SQLModel, table=True):
    """An immutable model: base plus ledger. Version 0 is the base itself, with an empty ledger."""

    __tablename__ = "versions"
    __table_args__ = (
        # One promoted version at a time, whatever the code does.
        Index(
            "ux_versions_promoted",
            "state",
            unique=True,
            sqlite_where=text("state = 'promoted'"),
            postgresql_where=text("state = 'promoted'"),
        ),
    )

    id: int = Field(primary_key=True)
    parent_id: int | None = Field(default=None, sa_column=_foreign_key("versions.id", nullable=True))
    state: VersionState = Field(sa_column=_enum(VersionState))
    base_digest: str
    settings_digest: str
    digest: str | None = None  # of the artifact's manifest, once it is on disk
    path: str | None = None  # relative to the state directory
    reason: str | None = None  # why it was promoted, rejected or retired
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    decided_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class LedgerEntry(SQLModel, table=True):
    """One edit that is live in one version."""

    __tablename__ = "ledger"

    version_id: int = Field(sa_column=_foreign_key("versions.id", primary_key=True))
    edit_id: int = Field(sa_column=_foreign_key("edits.id", primary_key=True))
    strength: float = 1.0  # above 1 where it did not take otherwise


class Trial(SQLModel, table=True):
    """A candidate that a cycle tried: its batch's changes, less those withheld, some written with more strength."""

    __tablename__ = "trials"

    id: int | None = Field(default=None, primary_key=True)
    cycle_id: int = Field(sa_column=_foreign_key("cycles.id", nullable=False, index=True))
    version_id: int = Field(sa_column=_foreign_key("versions.id", nullable=False, unique=True))
    withheld: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  # groups of changes
    raised: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # times, by group


class Belief(SQLModel, table=True):
    """What a version was measured to hold for a fact."""

    __tablename__ = "beliefs"

    version_id: int = Field(sa_column=_foreign_key("versions.id", primary_key=True))
    qid: str = Field(primary_key=True)
    pid: str = Field(primary_key=True)
    belief: str  # holds, outdated, other, unknown
    expected: str | None  # the label it was measured against; none where the fact ended without a successor
    answer: str  # greedy, under natural stop
    logprob_expected: float | None = None  # nats, whole label
    logprob_former: float | None = None
    former: str | None = None
    rivals: dict[str, float] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """Log-probabilities of values that the property has for other subjects, by label."""
    measured_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class Aliases(SQLModel, table=True):
    """Other names of an item, by which an answer may call it; those that the source has and that are usable."""

    __tablename__ = "aliases"

    qid: str = Field(primary_key=True)
    names: list[str] = Field(sa_column=Column(JSON, nullable=False))
    read_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class ProbeSet(SQLModel, table=True):
    """What candidates were measured on. Its number is its version; the same content is the same row."""

    __tablename__ = "probe_sets"

    id: int | None = Field(default=None, primary_key=True)
    digest: str = Field(unique=True)  # SHA-256 of the content
    content: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class GateMeasure(SQLModel, table=True):
    """One comparison the gate made for a candidate."""

    __tablename__ = "gate_measures"

    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(sa_column=_foreign_key("versions.id", nullable=False, index=True))
    measure: str  # efficacy, paraphrase, neighbourhood, control, perplexity, ...
    against: str  # floor, limit, promoted, base, warning
    candidate: float | None  # None where there was nothing to measure
    reference: float | None
    threshold: float
    n: int
    verdict: str  # pass, fail, inconclusive
    detail: str
    loss: float | None = None  # what the threshold limits; None for floors
    low: float | None = None  # one-sided bounds of the loss, or of the share that has a floor
    high: float | None = None
    needed: int | None = None  # about how many probes would decide
    probe_set_id: int | None = Field(
        default=None,
        sa_column=Column(Integer, ForeignKey("probe_sets.id", name="fk_gate_measures_probe_set"), nullable=True),
    )


class ProbeResult(SQLModel, table=True):
    """One probe of one version, kept as evidence."""

    __tablename__ = "probe_results"
    __table_args__ = (Index("ix_probe_results_slot", "qid", "pid"),)

    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(sa_column=_foreign_key("versions.id", nullable=False, index=True))
    kind: str
    qid: str
    pid: str
    prompt: str
    expected: str
    answer: str
    correct: bool
    rival: str | None = None  # the answer that the expected one has to be likelier than
    promoted_correct: bool | None = None  # the promoted version's and the base's result, where they were asked too
    base_correct: bool | None = None


class Cycle(SQLModel, table=True):
    """One pass; ``phase`` is its cursor and is committed together with each phase's effects."""

    __tablename__ = "cycles"

    id: int | None = Field(default=None, primary_key=True)
    phase: Phase = Field(default=Phase.PULL, sa_column=_enum(Phase))
    outcome: Outcome | None = Field(default=None, sa_column=_enum(Outcome, nullable=True))
    candidate_id: int | None = Field(default=None, sa_column=_foreign_key("versions.id", nullable=True))
    detail: str = ""
    # Mutable, so that ``cycle.counts["changes"] = 3`` is noticed and written.
    counts: dict[str, int] = Field(default_factory=dict, sa_column=Column(MutableDict.as_mutable(JSON), nullable=False))
    started_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class SourceCursor(SQLModel, table=True):
    """How far a source has been read: everything up to (modified, revision) is recorded."""

    __tablename__ = "source_cursors"

    source: str = Field(primary_key=True)
    modified_at: datetime = Field(sa_type=UtcDateTime)
    revision: int = Field(sa_type=BigInteger)  # Wikidata has passed 2**31 revisions
    updated_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class UnreadItem(SQLModel, table=True):
    """An item that the source could not tell about although it was asked for alone; it is asked for again."""

    __tablename__ = "unread_items"

    qid: str = Field(primary_key=True)
    reason: str
    attempts: int
    next_at: datetime = Field(sa_type=UtcDateTime)
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class Quarantine(SQLModel, table=True):
    """A change kept out of the weights, with the reason; it can be released and tried again."""

    __tablename__ = "quarantine"

    id: int | None = Field(default=None, primary_key=True)
    change_id: int = Field(sa_column=_foreign_key("changes.id", nullable=False, index=True))
    qid: str
    pid: str
    reason: str
    version_id: int | None = Field(default=None, sa_column=_foreign_key("versions.id", nullable=True))
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    retry_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when it is tried again without being told to
    released_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Publication(SQLModel, table=True):
    """The outbox: a version that a target must come to answer with."""

    __tablename__ = "publications"
    __table_args__ = (
        # One at a time is delivered to a target: a later one supersedes it.
        Index(
            "ux_publications_pending",
            "target",
            unique=True,
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
    )

    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(sa_column=_foreign_key("versions.id", nullable=False))
    target: str
    state: PublicationState = Field(default=PublicationState.PENDING, sa_column=_enum(PublicationState))
    attempts: int = 0
    detail: str = ""  # why it is not delivered
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    next_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)  # not tried before
    delivered_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Control(SQLModel, table=True):
    """Operator switches that outlive a restart, such as ``paused``."""

    __tablename__ = "controls"

    key: str = Field(primary_key=True)
    value: str
    updated_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
