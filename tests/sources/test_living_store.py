"""A store that is edited between polls, late and out of order: nothing is missed, and what is undone comes back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyoxigraph as ox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graph import Graph, at, relation

from sources import BadAnswer, Outcome, QueryTimeout, StandingState, WikidataSource
from sources.embedded import EmbeddedEngine

RELATIONS = (relation("P35"), relation("P6"))
BEGIN = at("2022-06-01")


class Living(EmbeddedEngine):
    """A real store whose content is replaced between queries."""

    def __init__(self):
        self._path, self._store = Path("living"), ox.Store()

    def load(self, graph: Graph) -> None:
        self._store.clear()
        self._store.load(graph.turtle(), format=ox.RdfFormat.TURTLE)


@dataclass(frozen=True)
class Edit:
    """An item's new state: when it was made, at which revision, when it arrives here (seconds), and what it says."""

    item: int
    made: int
    revision: int
    arrives: int
    value: int


def visible(edits: list[Edit], now: int) -> dict[int, Edit]:
    """The newest revision of each item that has arrived."""
    shown: dict[int, Edit] = {}
    for edit in sorted(edits, key=lambda edit: edit.revision):
        if edit.arrives <= now:
            shown[edit.item] = edit
    return shown


def graph_of(shown: dict[int, Edit], now: int) -> Graph:
    graph = Graph(replicated=BEGIN + timedelta(seconds=now))
    for value in range(4):
        graph.label(f"Q{100 + value}", f"Value {value}")
    for item, edit in shown.items():
        graph.item(
            f"Q{item}", f"Item {item}", edit.revision, f"{BEGIN + timedelta(seconds=edit.made):%Y-%m-%dT%H:%M:%S}"
        )
        graph.says(f"Q{item}", "P35" if edit.value % 2 else "P6", f"wd:Q{100 + edit.value}")
    return graph


@st.composite
def histories(draw):
    """Edits in the order of their revisions, of which each arrives at most overlap and lag after it was made."""
    overlap, lag = draw(st.integers(0, 20)), draw(st.integers(0, 5))
    made, edits = 0, []
    for n in range(draw(st.integers(1, 25))):
        made += draw(st.integers(0, 6))
        late = draw(st.sampled_from([0, overlap + lag]) | st.integers(0, overlap + lag))
        edits.append(Edit(draw(st.integers(1, 6)), made, n + 1, made + late, draw(st.integers(0, 3))))
    just_before = st.sampled_from([max(0, edit.arrives - 1) for edit in edits])
    polls = sorted(draw(st.lists(st.integers(0, made + 30) | just_before, max_size=8)))
    return overlap, lag, edits, [*polls, made + 60]


class Weak:
    """An engine that runs out of time when it is asked for too many items or rows at once."""

    name = "weak"

    def __init__(self, engine, most):
        self.engine, self.most = engine, most

    def select(self, query):
        if query.text.count(" wd:Q") > self.most:
            raise QueryTimeout("ask for less")
        return self.engine.select(query)


@settings(max_examples=150, deadline=None)
@given(
    history=histories(),
    page_size=st.integers(1, 9),
    chunk=st.integers(1, 9),
    most=st.integers(1, 9),
    lives=st.lists(st.integers(0, 4), max_size=8),
)
def test_whatever_arrives_late_or_dies_midway_no_modification_is_missed(history, page_size, chunk, most, lives):
    overlap, lag, edits, polls = history
    engine = Living()
    source = WikidataSource(
        Weak(engine, most),
        RELATIONS,
        page_size=page_size,
        chunk=chunk,
        overlap=timedelta(seconds=overlap),
        lag=timedelta(seconds=lag),
    )
    cursor, held = None, {}
    for poll, now in enumerate(polls):
        shown = visible(edits, now)
        engine.load(graph_of(shown, now))
        replicated = source.replication_time()
        again = {
            (o.qid, o.pid): o
            for page in source.observe([f"Q{item}" for item in range(1, 7)], replicated)
            for o in page.observations
        }
        assert again.keys() == {(f"Q{item}", pid) for item in shown for pid in ("P35", "P6")}
        for life, page in enumerate(source.pages(cursor)):
            if poll < len(polls) - 1 and poll < len(lives) and life == lives[poll]:
                break
            assert cursor is None or page.cursor >= cursor
            cursor = page.cursor
            for observation in page.observations:
                assert observation == again[observation.qid, observation.pid]
                held[observation.qid] = max(held.get(observation.qid, 0), observation.revision)
        else:
            settled = {f"Q{item}": edit.revision for item, edit in shown.items() if edit.made <= now - lag}
            assert settled.items() <= held.items()
    assert held == {f"Q{item}": edit.revision for item, edit in visible(edits, polls[-1]).items()}


@pytest.fixture
def engine():
    return Living()


def test_the_life_of_an_item_that_is_merged_deleted_and_brought_back(engine):
    source = WikidataSource(engine, RELATIONS, overlap=timedelta(0), lag=timedelta(0))
    alive = {1: Edit(1, 10, 5, 10, 1), 2: Edit(2, 11, 6, 11, 3)}

    def look(graph):
        engine.load(graph)
        (standing, _) = source.standing(["Q1", "Q2"])
        observed = {o.pid: o.outcome for page in source.observe(["Q1"], BEGIN) for o in page.observations}
        return standing.state, standing.revision, standing.target, observed.get("P35")

    present = (StandingState.PRESENT, 5, "", Outcome.VALUE)
    assert look(graph_of(alive, 100)) == present
    assert look(graph_of({2: alive[2]}, 101)) == (StandingState.ABSENT, 0, "", None)
    assert look(graph_of(alive, 102)) == present, "undeleted, at the same revision"
    assert look(graph_of({2: alive[2]}, 103).merged("Q1", "Q2")) == (StandingState.REDIRECTED, 0, "Q2", None)
    assert look(graph_of(alive | {1: Edit(1, 50, 9, 50, 0)}, 104)) == (StandingState.PRESENT, 9, "", Outcome.NONE)
    engine.load(graph_of({}, 105))
    with pytest.raises(BadAnswer, match="empty answer"):
        list(source.standing(["Q1", "Q2"]))
