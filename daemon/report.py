"""Report: one version as a page that a person would rather look at than read logs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlmodel import col, func, select

from daemon.errors import ConfigInvalid
from daemon.plots import forest, trend
from daemon.probes import OF_EDITS, STABLE, Kind
from store.ledger import get_version, ledger_edits
from store.tables import (
    Belief,
    GateMeasure,
    LedgerEntry,
    ProbeResult,
    ProbeSet,
    Quarantine,
    Version,
    key,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from sqlmodel import Session

    from store.tables import Edit

Row = dict[str, Any]

AGES = ((1, "1 version"), (4, "2 to 4 versions"), (9, "5 to 9 versions"))
OLDEST = "10 versions or more"
SHOWN = 200
"""Rows of a long list; how many more there are is said."""
FOLLOWED = (
    "efficacy", "paraphrase", "question", "retention", "neighbourhood", "same_subject", "control", "perplexity",
    "divergence", "fluency",
)  # fmt: skip
"""Measures whose history is drawn."""
WORDS = {kind.value: kind.value.replace("_", " ") for kind in Kind} | {"new_edits": "new edits"}


def report(session: Session, version_id: int, name_of: Callable[[str], str]) -> Row:
    """Everything the page shows, ready for JSON.

    Args:
        session: of one snapshot of the state.
        version_id: the version.
        name_of: the label of a property, or the P-id itself.

    Raises:
        UnknownVersion: there is no such version.
    """
    version = get_version(session, version_id)
    edits = ledger_edits(session, version_id)
    first_seen = _first_versions(session)
    measures = list(session.exec(_measures().where(GateMeasure.version_id == version_id)))
    results = list(
        session.exec(select(ProbeResult).where(ProbeResult.version_id == version_id).order_by(col(ProbeResult.id)))
    )
    numbers = {measure.probe_set_id for measure in measures if measure.probe_set_id is not None}
    probe_set = session.get(ProbeSet, numbers.pop()) if numbers else None
    return {
        "version": version.model_dump(mode="json"),
        "edits": len(edits),
        "new_edits": sum(first_seen[key(edit)] == version_id for edit in edits),
        "probe_set": None if probe_set is None else {"number": probe_set.id, "digest": probe_set.digest},
        "made_at": utc_now().isoformat(timespec="seconds"),
        "measures": [measure.model_dump(mode="json") for measure in measures],
        "kinds": _by_kind(results),
        "relations": _by_relation(results, name_of),
        "answers": _answers(session, version_id, edits, results, first_seen),
        "ages": _by_age(results, edits, first_seen, version_id),
        "failed": _failed(results),
        "moved": _moved(results),
        "quarantined": _quarantined(session, version_id),
        "history": _history(session, version_id),
    }


def page(data: Row) -> str:
    """The report as one HTML document that needs nothing else. Whatever comes from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("daemon", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": _percent, "figure": _figure, "words": _words, "moment": _moment}
    trends = [trend(measure, data["history"]) for measure in FOLLOWED]
    return environment.get_template("report.html").render(
        data, forest=forest(data["measures"]), trends=[each for each in trends if each is not None], shown=SHOWN
    )


def write_page(file: Path, text: str) -> None:
    """The page in a file, whole or not at all.

    Raises:
        ConfigInvalid: the file cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(file)
    except OSError as error:
        raise ConfigInvalid(f"cannot write {file} ({error.strerror}): give another --output") from error


def _measures() -> Any:
    return select(GateMeasure).order_by(col(GateMeasure.id))


def _first_versions(session: Session) -> dict[int, int]:
    """The version that first had each edit."""
    firsts = select(LedgerEntry.edit_id, func.min(LedgerEntry.version_id)).group_by(col(LedgerEntry.edit_id))
    return dict(session.exec(firsts).all())


def _by_kind(results: Sequence[ProbeResult]) -> list[Row]:
    """Shares per kind of probe, with the fact as unit, and what changed sides against the promoted version."""
    rows = []
    for kind in Kind:
        of_kind = [result for result in results if result.kind == kind.value]
        if not of_kind:
            continue
        paired = [result for result in of_kind if result.promoted_correct is not None]
        rows.append(
            {
                "kind": kind.value,
                "facts": len({(result.qid, result.pid) for result in of_kind}),
                "probes": len(of_kind),
                "candidate": _share(of_kind, lambda result: result.correct),
                "promoted": _share(of_kind, lambda result: result.promoted_correct),
                "base": _share(of_kind, lambda result: result.base_correct),
                "gained": sum(result.correct and not result.promoted_correct for result in paired),
                "lost": sum(not result.correct and bool(result.promoted_correct) for result in paired),
            }
        )
    return rows


def _share(results: Iterable[ProbeResult], passed: Callable[[ProbeResult], bool | None]) -> float | None:
    """Mean over facts; None where the version was not asked."""
    facts: dict[tuple[str, str], list[bool]] = {}
    for result in results:
        if (ok := passed(result)) is not None:
            facts.setdefault((result.qid, result.pid), []).append(ok)
    return sum(sum(oks) / len(oks) for oks in facts.values()) / len(facts) if facts else None


def _by_relation(results: Sequence[ProbeResult], name_of: Callable[[str], str]) -> list[Row]:
    """For each property the shares of its live edits and of its neighbours."""
    groups = {
        "edits": [kind.value for kind in OF_EDITS], "paraphrase": [Kind.PARAPHRASE.value],
        "question": [Kind.QUESTION.value], "neighbourhood": [Kind.NEIGHBOURHOOD.value],
        "control": [Kind.CONTROL.value],
    }  # fmt: skip
    rows = []
    for pid in sorted({result.pid for result in results if result.pid}, key=lambda pid: (len(pid), pid)):
        row: Row = {"pid": pid, "label": name_of(pid)}
        for group, kinds in groups.items():
            chosen = [result for result in results if result.pid == pid and result.kind in kinds]
            row[group] = _share(chosen, lambda result: result.correct)
            row[f"{group}_facts"] = len({result.qid for result in chosen})
        rows.append(row)
    return sorted(rows, key=lambda row: -row["edits_facts"])


def _answers(
    session: Session, version_id: int, edits: Sequence[Edit], results: Sequence[ProbeResult], first: Mapping[int, int]
) -> list[Row]:
    """For each live edit what was said before it was written, and what is said now; new ones and misses first."""
    own = {(result.qid, result.pid): result for result in results if result.kind in OF_EDITS}
    others: dict[tuple[str, str], list[bool]] = {}
    for result in results:
        if result.kind in (Kind.PARAPHRASE, Kind.QUESTION):
            others.setdefault((result.qid, result.pid), []).append(result.correct)
    before: dict[tuple[str, str], Belief] = {}
    for belief in session.exec(
        select(Belief).where(col(Belief.version_id) < version_id).order_by(col(Belief.version_id))
    ):
        before[belief.qid, belief.pid] = belief
    rows = []
    for edit in edits:
        slot = (edit.qid, edit.pid)
        if slot not in own:
            continue
        said, held_out = before.get(slot), others.get(slot, [])
        rows.append(
            {
                "qid": edit.qid, "pid": edit.pid, "prompt": own[slot].prompt, "expected": edit.target,
                "former": edit.former, "before": None if said is None else said.answer,
                "belief": None if said is None else said.belief, "now": own[slot].answer,
                "correct": own[slot].correct, "new": first[key(edit)] == version_id,
                "held_out_passed": sum(held_out), "held_out": len(held_out),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row["correct"], not row["new"]))


def _by_age(
    results: Sequence[ProbeResult], edits: Sequence[Edit], first: Mapping[int, int], version_id: int
) -> list[Row]:
    """How many former edits are answered, by how many versions ago they were first written."""
    ages = {(edit.qid, edit.pid): version_id - first[key(edit)] for edit in edits}
    buckets: dict[str, list[bool]] = {}
    for result in results:
        if result.kind == Kind.RETENTION and (result.qid, result.pid) in ages:
            age = ages[result.qid, result.pid]
            bucket = next((name for most, name in AGES if age <= most), OLDEST)
            buckets.setdefault(bucket, []).append(result.correct)
    order = [name for _, name in AGES] + [OLDEST]
    return [
        {"age": name, "facts": len(buckets[name]), "share": sum(buckets[name]) / len(buckets[name])}
        for name in order
        if name in buckets
    ]


def _failed(results: Sequence[ProbeResult]) -> list[Row]:
    """Probes of edits, and of what the base knew, that the version fails, kind by kind."""
    wanted = [kind.value for kind in Kind if kind is not Kind.TASK]
    failed = [result for result in results if not result.correct and result.kind in wanted]
    failed.sort(key=lambda result: wanted.index(result.kind))
    return [_probe(result) for result in failed]


def _moved(results: Sequence[ProbeResult]) -> list[Row]:
    """What the promoted version and this one answer differently, among what no edit was about."""
    kinds = [kind.value for kind in (*STABLE, Kind.RETENTION)]
    moved = [
        result for result in results
        if result.kind in kinds and result.promoted_correct is not None and result.promoted_correct != result.correct
    ]  # fmt: skip
    return [_probe(result) for result in sorted(moved, key=lambda result: result.correct)]


def _probe(result: ProbeResult) -> Row:
    return {
        "kind": result.kind, "qid": result.qid, "pid": result.pid, "prompt": result.prompt,
        "expected": result.expected, "answer": result.answer, "correct": result.correct,
        "promoted_correct": result.promoted_correct, "base_correct": result.base_correct,
    }  # fmt: skip


def _quarantined(session: Session, version_id: int) -> list[Row]:
    rows = select(Quarantine).where(Quarantine.version_id == version_id).order_by(col(Quarantine.id))
    return [{"qid": row.qid, "pid": row.pid, "reason": row.reason} for row in session.exec(rows)]


def _history(session: Session, version_id: int) -> list[Row]:
    """Every version up to this one with the size of its ledger and its measures."""
    sizes = dict(session.exec(select(LedgerEntry.version_id, func.count()).group_by(col(LedgerEntry.version_id))).all())
    measures: dict[int, list[Row]] = {}
    for measure in session.exec(_measures().where(col(GateMeasure.version_id) <= version_id)):
        measures.setdefault(measure.version_id, []).append(measure.model_dump(mode="json"))
    versions = select(Version).where(col(Version.id) <= version_id).order_by(col(Version.id))
    return [
        {
            "id": version.id, "state": version.state.value, "edits": sizes.get(version.id, 0),
            "decided_at": None if version.decided_at is None else version.decided_at.isoformat(),
            "reason": version.reason, "measures": measures.get(version.id, []),
        }
        for version in session.exec(versions)
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _figure(value: float | None, measure: str) -> str:
    """A measure's figure in its own unit."""
    if value is None:
        return ""
    if measure in ("perplexity", "fluency"):
        return f"{value:.2f}" + (" bits" if measure == "fluency" else "")
    return f"{value:.4f} nats" if measure == "divergence" else f"{value:.1%}"


def _words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _moment(text: str | None) -> str:
    """An ISO time to the minute."""
    return "" if text is None else f"{text[:16].replace('T', ' ')} UTC"
