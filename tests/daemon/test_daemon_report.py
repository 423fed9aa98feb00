"""The report: one page that needs nothing else, with everything escaped, over real tables."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from daemon.plots import FOREST_WIDTH, forest, trend
from daemon.report import page, report, write_page
from store import Database, UnknownVersion
from store.tables import (
    Belief,
    Change,
    ChangeState,
    Cycle,
    Edit,
    GateMeasure,
    LedgerEntry,
    Phase,
    ProbeResult,
    ProbeSet,
    Quarantine,
    Version,
    VersionState,
)

if TYPE_CHECKING:
    from pathlib import Path

    from small_world import Factsyncd

HOSTILE = '<script>alert("x")</script>\u202e&amp;\'"><img src=x onerror=y>'
MOMENT = datetime(2022, 6, 1, tzinfo=UTC)


class Reader(HTMLParser):
    """What a browser would make of it: tags, attributes, and the text between."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def measure(version: int, name: str, against: str, candidate: float | None, **more: float | str | None) -> GateMeasure:
    values = {"threshold": 0.05, "n": 100, "verdict": "pass", "detail": f"{name} as measured", "reference": None} | more
    return GateMeasure(version_id=version, measure=name, against=against, candidate=candidate, probe_set_id=1, **values)


def filled(database: Database, label: str = "Sweden") -> None:
    """Two versions: the first promoted, the second rejected, with one edit each."""
    with database.transaction() as session:
        session.add(Cycle(id=1, phase=Phase.DONE))
        session.add(ProbeSet(id=1, digest="d" * 64, content={}))
        for number, state in enumerate((VersionState.PROMOTED, VersionState.RETIRED, VersionState.REJECTED)):
            reason = None if number == 0 else f"because of {label}"
            session.add(
                Version(
                    id=number, state=VersionState.RETIRED if number == 0 else state, base_digest="b" * 64,
                    settings_digest="s", digest="a" * 64, reason=reason, decided_at=MOMENT,
                )
            )  # fmt: skip
        session.flush()
        for number, qid in ((1, "Q34"), (2, "Q38")):
            session.add(
                Change(
                    id=number, qid=qid, pid="P6", subject_label=label, old_values=[], new_values=[], revision=1,
                    statement="", modified_at=MOMENT, cycle_id=1, state=ChangeState.LIVE,
                )
            )  # fmt: skip
            session.flush()
            session.add(
                Edit(id=number, change_id=number, qid=qid, pid="P6", prompt="Who leads {}", subject=label,
                     target=label, former="Stefan")
            )  # fmt: skip
        session.flush()
        session.add_all(LedgerEntry(version_id=v, edit_id=e) for v, e in ((1, 1), (2, 1), (2, 2)))
        session.add(
            Belief(version_id=0, qid="Q38", pid="P6", belief="other", expected=label, answer=label, logprob_expected=-1)
        )
        for kind, qid, correct, promoted in (
            ("retention", "Q34", True, True), ("efficacy", "Q38", False, None), ("paraphrase", "Q38", True, None),
            ("control", "Q20", False, True), ("neighbourhood", "Q41", True, False),
        ):  # fmt: skip
            session.add(
                ProbeResult(
                    version_id=2, kind=kind, qid=qid, pid="P6", prompt=f"Who leads {label}?", expected=label,
                    answer=label, correct=correct, promoted_correct=promoted, base_correct=promoted,
                )
            )  # fmt: skip
        for version, share in ((1, 0.99), (2, 0.5)):
            verdict = "pass" if version == 1 else "fail"
            session.add(measure(version, "efficacy", "floor", share, threshold=0.95, verdict=verdict))
        session.add(
            measure(2, "control", "base", 0.97, reference=0.99, loss=0.02, low=-0.01, high=0.08, verdict="inconclusive",
                    detail=f"control of {label} not decided")
        )  # fmt: skip
        session.add(measure(2, "capacity", "warning", 0.7, threshold=0.5, n=0))
        session.add(Quarantine(change_id=2, qid="Q38", pid="P6", reason="rejected", version_id=2))


def made(database: Database, version: int) -> str:
    with database.read() as session:
        return page(report(session, version, lambda pid: "head of government" if pid == "P6" else pid))


def test_the_page_tells_the_decision_the_measures_the_answers_and_the_history(database: Database) -> None:
    filled(database)
    read = Reader(made(database, 2))
    assert read.open == []
    for expected in (
        "Version 2 rejected", "because of Sweden", "control of Sweden not decided", "Kept out with it: Q38 P6",
        "head of government P6", "1 version ago", "2 live edits", "1 new in this version",
        "Who leads Sweden? Sweden new", "missed", "took", "Over the versions", "d" * 64, "b" * 64,
    ):  # fmt: skip
        assert expected in read.text, expected


def test_the_data_is_counted_fact_by_fact_and_pair_by_pair(database: Database) -> None:
    filled(database)
    with database.read() as session:
        data = report(session, 2, str)
    kinds = {row["kind"]: row for row in data["kinds"]}
    assert (kinds["control"]["lost"], kinds["neighbourhood"]["gained"]) == (1, 1)
    assert kinds["efficacy"]["base"] is None
    assert data["relations"] == [
        {"pid": "P6", "label": "P6", "edits": 0.5, "edits_facts": 2, "paraphrase": 1.0, "paraphrase_facts": 1,
         "question": None, "question_facts": 0, "neighbourhood": 1.0, "neighbourhood_facts": 1, "control": 0.0,
         "control_facts": 1}
    ]  # fmt: skip
    assert [(row["qid"], row["correct"], row["before"]) for row in data["answers"]] == [
        ("Q38", False, "Sweden"), ("Q34", True, None),
    ]  # fmt: skip
    assert data["ages"] == [{"age": "1 version", "facts": 1, "share": 1.0}]
    assert [row["kind"] for row in data["failed"]] == ["efficacy", "control"]
    assert [row["kind"] for row in data["moved"]] == ["control", "neighbourhood"]
    assert [version["id"] for version in data["history"]] == [0, 1, 2]


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_page_loads_nothing_and_runs_nothing(database: Database, version: int) -> None:
    filled(database)
    text = made(database, version)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|<iframe", text)
    for _, attributes in Reader(text).tags:
        assert not {"src", "href", "srcset"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "default-src 'none'" in text


def test_hostile_labels_stay_text(database: Database) -> None:
    filled(database, HOSTILE)
    read = Reader(made(database, 2))
    assert read.open == []
    tags = {tag for tag, _ in read.tags}
    assert not tags & {"script", "img"}
    assert all(not name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert " ".join(HOSTILE.split()) in read.text


def test_a_version_that_was_never_measured_has_a_page_and_one_that_is_not_recorded_has_none(database: Database) -> None:
    filled(database)
    assert "The gate has measured nothing" in Reader(made(database, 0)).text
    with database.read() as session, pytest.raises(UnknownVersion):
        report(session, 9, str)


def test_long_lists_are_cut_and_say_so(database: Database) -> None:
    filled(database)
    with database.transaction() as session:
        session.add_all(
            ProbeResult(version_id=2, kind="control", qid=f"Q{n}", pid="P6", prompt="p", expected="e", answer="a",
                        correct=False, promoted_correct=False, base_correct=True)
            for n in range(300)
        )  # fmt: skip
    assert "102 more are in the JSON" in Reader(made(database, 2)).text


# Geometry


def row(**more: object) -> dict[str, object]:
    return {"measure": "control", "against": "base", "candidate": 0.9, "reference": 0.9, "threshold": 0.05,
            "loss": 0.0, "low": -0.01, "high": 0.05} | more  # fmt: skip


def test_all_measures_stand_on_one_scale_between_nothing_and_the_limit() -> None:
    drop = row(loss=0.05)
    floor = row(measure="efficacy", against="floor", candidate=0.95, threshold=0.95, loss=None, low=None, high=None)
    perfect = floor | {"candidate": 1.0}
    picture = forest([drop, floor, perfect, row(against="warning")])
    assert [bar.point for bar in picture.bars] == [picture.limit, picture.limit, picture.nothing]
    assert picture.bars[0].high == picture.limit
    assert 0 < picture.nothing < picture.limit < FOREST_WIDTH


def test_what_lies_beyond_the_picture_is_drawn_at_its_edge() -> None:
    (bar,) = forest([row(loss=5.0, low=-3.0, high=9.0)]).bars
    assert (bar.low, bar.point, bar.high) == (0.0, FOREST_WIDTH, FOREST_WIDTH)
    assert bar.cut_low
    assert bar.cut_high


def test_what_has_no_allowance_has_no_point() -> None:
    bars = forest([row(against="floor", threshold=1.1), row(candidate=None, loss=None)]).bars
    assert [bar.point for bar in bars] == [None, None]


def test_a_history_has_a_dot_per_measured_version_and_its_threshold() -> None:
    history = [{"id": n, "state": "retired", "measures": [] if n == 0 else [row(loss=n / 100)]} for n in range(4)]
    drawn = trend("control", history)
    assert drawn is not None
    assert [dot.version for dot in drawn.dots] == [1, 2, 3]
    assert drawn.dots[0].y > drawn.dots[-1].y > drawn.limit
    assert trend("efficacy", history) is None


# The command


def test_the_command_writes_the_page_or_prints_the_data(ready: Path, factsyncd: Factsyncd, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    finished = factsyncd("report", "0", "--output", file, "--config", ready)
    assert (finished.code, finished.errors) == (0, "")
    assert "Version 0" in Reader(file.read_text("utf-8")).text
    assert factsyncd("report", "0", "--json", "--config", ready).data["version"]["id"] == 0
    nowhere = factsyncd("report", "0", "--output", tmp_path / "no" / "page.html", "--config", ready)
    assert nowhere.code == 1
    assert "give another --output" in nowhere.errors
    assert factsyncd("report", "9", "--config", ready).code == 1


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_page(file, "one")
    write_page(file, "two")
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]
