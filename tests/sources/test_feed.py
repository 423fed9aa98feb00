from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graph import ALBANIA_RELATIONS, REPLICATED, Graph, albania, at, relation, time_literal

from sources import (
    AnswerTooLarge,
    BadAnswer,
    Cursor,
    CursorTooOld,
    Outcome,
    QueryTimeout,
    SourceError,
    SourceWentBack,
    Stamps,
    Value,
    ValueKind,
    WikidataSource,
    open_embedded,
)
from sources.embedded import EmbeddedEngine

P35 = (relation("P35"),)


@pytest.fixture
def opened(tmp_path):
    def open_graph(graph, relations=P35, **options):
        path = tmp_path / "graph.ttl"
        path.write_text(graph.turtle(), encoding="utf-8")
        return open_embedded(path, relations, **options)

    return open_graph


def by_slot(pages):
    return {(o.qid, o.pid): o for page in pages for o in page.observations}


def test_outcomes_of_a_small_world(opened):
    source = opened(albania(), ALBANIA_RELATIONS)
    assert source.name.endswith("graph.ttl")
    assert source.replication_time() == REPLICATED
    page, rest = source.pages(None)
    assert (page.items, rest.items) == (3, 0)
    assert [o.qid for o in page.observations[:: len(ALBANIA_RELATIONS)]] == ["Q41", "Q222", "Q403"]
    found = by_slot([page])
    albanian = found["Q222", "P35"]
    assert albanian.outcome is Outcome.VALUE
    assert albanian.values == (Value(ValueKind.ITEM, "Q3", "Bajram Begaj"),)
    assert (albanian.subject_label, albanian.revision) == ("Albania", 1700)
    assert albanian.modified == at("2022-07-24T10:00:00")
    assert albanian.statement == "Q222-3"
    assert found["Q222", "P47"].outcome is Outcome.SEVERAL
    assert [value.label for value in found["Q222", "P47"].values] == ["Greece", "Serbia"]
    assert found["Q222", "P6"].outcome is Outcome.NOVALUE
    assert found["Q222", "P1082"].values == (Value(ValueKind.QUANTITY, "2793592.5", "2,793,592.5"),)
    assert found["Q222", "P571"].values[0].label == "28 November 1912"
    assert found["Q41", "P6"].outcome is Outcome.SOMEVALUE
    assert found["Q41", "P35"].outcome is Outcome.NONE
    assert found["Q403", "P35"].outcome is Outcome.SOMEVALUE
    assert found["Q403", "P6"].values[0].label == "Ana Brnabić"


def test_the_time_of_the_snapshot_decides_what_has_ended(opened):
    graph = albania()
    graph.replicated = at("2020-01-01")
    graph.lines[0] = graph.lines[0].replace("2022-07-24", "2019-12-31")
    (page, _) = opened(graph).pages(None)
    assert by_slot([page])["Q222", "P35"].values[0].label == "Ilir Meta"


@pytest.mark.parametrize(
    ("subject", "value", "reason"),
    [
        (None, "Good", "no label in en, mul"),
        ("Good", None, "no label in en, mul"),
        ("{}", "Good", "brace"),
        ("Good", "a\u202eb", "control"),
    ],
)
def test_labels_that_cannot_be_used_make_it_ambiguous(opened, subject, value, reason):
    graph = Graph().item("Q1", subject, 1, "2022-01-01").says("Q1", "P35", "wd:Q2")
    if value is not None:
        graph.label("Q2", value)
    observation = by_slot(opened(graph).pages(None))["Q1", "P35"]
    assert observation.outcome is Outcome.AMBIGUOUS
    assert observation.values == (Value(ValueKind.ITEM, "Q2", ""),)
    assert observation.fault == observation.reason
    assert reason in observation.fault
    assert observation.subject_label == ("Good" if subject == "Good" else "")


def test_labels_that_are_too_long_or_on_the_blocklist(opened):
    graph = Graph().item("Q1", "Fourteen chars", 1, "2022-01-01").says("Q1", "P35", "wd:Q2").label("Q2", "HaCKed by X")

    def fault(**options):
        return by_slot(opened(graph, **options).pages(None))["Q1", "P35"].fault

    assert fault(longest_label=14, blocklist=["nothing", "^by"]) == ""
    assert fault(longest_label=13) == "label of more than 13 characters: Q1"
    assert fault(blocklist=["nothing", r"\bha+cked"]) == "label on the blocklist: Q2"


def test_a_text_that_cannot_be_used_is_nowhere(opened):
    graph = Graph().item("Q1", "One", 1, "2022-01-01").says("Q1", "P35", '"{evil}"').says("Q1", "P35", '"good"')
    observation = by_slot(opened(graph, [relation("P35", multi_valued=True)]).pages(None))["Q1", "P35"]
    assert observation.outcome is Outcome.AMBIGUOUS
    assert [value.label for value in observation.values] == ["", ""]
    assert {value.kind for value in observation.values} == {ValueKind.STRING}
    assert "evil" not in repr(observation)
    assert by_slot(opened(graph, [relation("P35", multi_valued=True)]).pages(None))["Q1", "P35"] == observation


def test_times_are_as_precise_as_they_are_known(opened):
    graph = Graph().item("Q1", "One", 1, "2022-01-01").item("Q2", "Two", 2, "2022-01-02")
    graph.dated("Q1", "P571", "1952-03-01", 10).dated("Q1", "P571", "1953-01-01", 11).dated(
        "Q2", "P571", "1952-01-01", 9
    )
    graph.says("Q2", "P571", '"1953-02-03T00:00:00Z"^^xsd:dateTime').says("Q2", "P571", '"about 1954"')
    graph.dated("Q1", "P576", "2001-01-01", 7).says("Q2", "P576", '"2001-01-01T00:00:00Z"^^xsd:dateTime')
    found = by_slot(opened(graph, [relation("P571", multi_valued=True), relation("P576")], chunk=1).pages(None))
    written = {slot: [value.label for value in observation.values] for slot, observation in found.items()}
    assert written == {
        ("Q1", "P571"): ["March 1952", "1 January 1953"],
        ("Q2", "P571"): ["about 1954", "1952", "3 February 1953"],
        ("Q1", "P576"): ["21st century"],
        ("Q2", "P576"): ["2001"],
    }


@pytest.mark.parametrize(
    ("languages", "expected"),
    [(["en", "mul"], ["Republic"]), (["sq"], ["Republika"]), (["de", "el"], ["Demokratia", "Republic", "Republika"])],
)
def test_of_texts_in_several_languages_the_preferred_one_counts(opened, languages, expected):
    graph = Graph().item("Q1", "One", 1, "2022-01-01")
    for language in ("sq", "de", "el"):
        graph.label("Q1", "One", language)
    graph.says("Q1", "P1448", '"Republika"@sq', rank="Preferred").says("Q1", "P1448", '"Republic"@en')
    graph.says("Q1", "P1448", '"Kingdom"@en', P582=time_literal("1928-01-01"))
    graph.says("Q1", "P1448", '"Republika"@sq').says("Q1", "P1448", '"Demokratia"@it', rank="Preferred")
    graph.says("Q1", "P1448", '"Republic"@en', rank="Preferred")
    relations = [relation("P1448", multi_valued=True)]
    values = by_slot(opened(graph, relations, languages=languages).pages(None))["Q1", "P1448"].values
    assert sorted(value.label for value in values) == expected


def test_a_subject_without_values_may_be_called_anything(opened):
    graph = Graph().item("Q1", "{evil}", 1, "2022-01-01").says("Q1", "P35", None)
    observation = by_slot(opened(graph).pages(None))["Q1", "P35"]
    assert (observation.outcome, observation.subject_label, observation.fault) == (Outcome.NOVALUE, "", "")


def test_other_languages_can_be_asked_for(opened):
    graph = Graph().item("Q1", None, 1, "2022-01-01").label("Q1", "Shqipëria", "sq")
    graph.says("Q1", "P35", "wd:Q1")
    assert by_slot(opened(graph, languages=["sq"]).pages(None))["Q1", "P35"].subject_label == "Shqipëria"


def test_properties_and_lexemes_are_no_items(opened):
    graph = Graph().item("P9", "a property", 1, "2022-01-01").says("P9", "P35", "wd:Q1")
    (page, _) = opened(graph).pages(None)
    assert (page.items, page.observations) == (0, ())
    assert page.cursor == Cursor(at("2022-01-01"), 1)


def many(count: int = 23) -> Graph:
    """Several items per second, in an order of revisions that is not that of the ids."""
    graph = Graph()
    for n in range(1, count + 1):
        graph.item(f"Q{n}", f"Item {n}", 1000 - n, f"2022-06-01T00:00:{n // 4:02d}")
        graph.says(f"Q{n}", "P35", "wd:Q1")
    return graph


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 7, 22, 23, 24, 500])
def test_every_item_comes_once_and_in_order(opened, page_size):
    pages = list(opened(many(), page_size=page_size, chunk=2).pages(None))
    order = [(o.modified, o.revision) for page in pages for o in page.observations]
    assert order == sorted(order)
    assert len(order) == len(set(order)) == 23
    assert all(page.items <= page_size for page in pages)
    assert sum(page.items for page in pages) == 23
    cursors = [page.cursor for page in pages]
    assert cursors == sorted(cursors)
    assert cursors[-1] == Cursor(REPLICATED, 0)


@pytest.fixture(scope="module")
def many_engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "many.ttl"
    path.write_text(many().turtle(), encoding="utf-8")
    return EmbeddedEngine(path)


@settings(max_examples=40, deadline=None)
@given(
    page_size=st.integers(1, 9),
    overlap=st.integers(0, 5),
    lives=st.lists(st.integers(1, 3), min_size=1, max_size=30),
)
def test_killed_anywhere_nothing_is_lost_and_the_cursor_never_goes_back(many_engine, page_size, overlap, lives):
    """A reader that stores pages and dies after a few of them, again and again, before a last full pass."""
    source = WikidataSource(many_engine, P35, page_size=page_size, overlap=timedelta(seconds=overlap), lag=timedelta(0))
    cursor, seen = None, set()
    for life in [*lives, 1000]:
        for page, _ in zip(source.pages(cursor), range(life), strict=False):
            assert cursor is None or page.cursor >= cursor
            cursor = page.cursor
            seen |= {o.qid for o in page.observations}
    assert len(seen) == 23


def test_a_second_pull_of_the_same_snapshot_is_empty(opened):
    source = opened(many())
    *_, last = source.pages(None)
    assert list(source.pages(last.cursor)) == []


def test_the_overlap_is_read_again(opened):
    source = opened(many(), overlap=timedelta(seconds=3))
    cursor = Cursor(at("2022-06-01T00:00:05"), 0)
    again = {o.modified.second for page in source.pages(cursor) for o in page.observations}
    assert again == {2, 3, 4, 5}


def test_an_item_at_the_replication_time_is_read_and_only_once(opened):
    graph = Graph().item("Q1", "One", 5, "2022-12-31").says("Q1", "P35", "wd:Q1")
    source = opened(graph)
    (page,) = source.pages(None)
    assert page.cursor == Cursor(REPLICATED, 5)
    assert list(source.pages(page.cursor)) == []


def test_the_lag_holds_back_what_is_too_fresh(opened):
    graph = Graph().item("Q1", "One", 5, "2022-12-30T23:59:00").says("Q1", "P35", "wd:Q1")
    (page,) = opened(graph, lag=timedelta(minutes=2)).pages(None)
    assert page.items == 0
    assert page.cursor == Cursor(REPLICATED - timedelta(minutes=2), 0)


def test_a_source_that_was_read_further_has_gone_back(opened, many_engine):
    with pytest.raises(SourceWentBack, match=r"up to 2022-12-31T00:00:01Z.*run `factsyncd pull --full`$"):
        list(opened(many(), overlap=timedelta(days=1)).pages(Cursor(REPLICATED + timedelta(seconds=1), 0)))
    # Servers behind one address differ.
    source = WikidataSource(many_engine, P35, overlap=timedelta(minutes=10))
    assert list(source.pages(Cursor(REPLICATED + timedelta(minutes=70), 1))) == []
    with pytest.raises(SourceWentBack):
        list(source.pages(Cursor(REPLICATED + timedelta(minutes=71), 1)))


def test_a_cursor_older_than_the_memory_of_the_source(opened):
    source = opened(many(), memory=timedelta(days=30))
    assert list(source.pages(Cursor(REPLICATED - timedelta(days=30), 0)))[-1].cursor == Cursor(REPLICATED, 0)
    with pytest.raises(CursorTooOld, match=r"up to 2022-11-30T23:59:59Z.*run `factsyncd pull --full`$"):
        list(source.pages(Cursor(REPLICATED - timedelta(days=30, seconds=1), 0)))
    assert sum(page.items for page in source.pages(None)) == 23


def test_quiet_time_moves_the_cursor(opened):
    (page,) = opened(many()).pages(Cursor(at("2022-08-01"), 1))
    assert (page.items, page.cursor) == (0, Cursor(REPLICATED, 0))


def test_without_a_replication_time_there_is_no_feed(opened):
    source = opened(Graph(replicated=None).item("Q1", "One", 5, "2022-12-31"))
    with pytest.raises(BadAnswer, match="needs a schema:dateModified"):
        list(source.pages(None))


def test_the_latest_of_several_replication_times_counts(opened):
    graph = many()
    graph.lines.append('wikibase:Dump wikibase:updatesCompleteUntil "2023-02-01T00:00:00Z"^^xsd:dateTime .')
    graph.lines.append('wikibase:Dump schema:dateModified "2021-02-01T00:00:00Z"^^xsd:dateTime .')
    assert opened(graph).replication_time() == at("2023-02-01")


def test_stamps_on_the_document(opened):
    graph = Graph().says("Q1", "P35", "wd:Q1").label("Q1", "One")
    graph.lines.append(
        'wdata:Q1 schema:about wd:Q1 ; schema:version 5 ; schema:dateModified "2022-01-01T00:00:00Z"^^xsd:dateTime .'
    )
    found = by_slot(opened(graph, stamps=Stamps.DOCUMENT).pages(None))
    assert found["Q1", "P35"].revision == 5
    assert by_slot(opened(graph, stamps=Stamps.ITEM).pages(None)) == {}


@pytest.mark.parametrize(("stamps", "subject"), [(Stamps.ITEM, "wd:Q1"), (Stamps.DOCUMENT, "wdata:Q1")])
def test_sitelinks_are_read_from_where_the_stamps_sit(opened, stamps, subject):
    graph = Graph().says("Q1", "P35", "wd:Q1").says("Q1", "P6", "wd:Q1").label("Q1", "One")
    graph.lines.append(
        f"{subject} schema:about wd:Q1 ; schema:version 5 ; "
        'schema:dateModified "2022-01-01T00:00:00Z"^^xsd:dateTime ; wikibase:sitelinks 41 .'
    )
    graph.lines.append("<https://en.wikipedia.org/wiki/One> schema:about wd:Q1 .")
    found = by_slot(opened(graph, stamps=stamps).pages(None))
    assert {seen.sitelinks for seen in found.values()} == {41}


def test_two_counts_of_sitelinks_double_no_statement(opened):
    graph = Graph().item("Q1", "One", 5, "2022-01-01", sitelinks=3).says("Q1", "P35", "wd:Q1")
    graph.lines.append("wd:Q1 wikibase:sitelinks 4 .")
    found = by_slot(opened(graph).pages(None))
    assert (found["Q1", "P35"].sitelinks, found["Q1", "P35"].outcome) == (4, Outcome.VALUE)


def test_sitelinks_of_the_wrong_shape(opened):
    graph = Graph().item("Q1", "One", 5, "2022-01-01").says("Q1", "P35", "wd:Q1")
    graph.lines.append('wd:Q1 wikibase:sitelinks "many" .')
    with pytest.raises(BadAnswer, match="Q1 has 'many' sitelinks, no number"):
        list(opened(graph).pages(None))


def test_an_item_at_two_revisions_counts_at_the_newer(opened):
    graph = Graph().item("Q1", "One", 5, "2022-01-01").item("Q1", None, 6, "2022-01-02")
    found = by_slot(opened(graph.says("Q1", "P35", "wd:Q1")).pages(None))
    assert found["Q1", "P35"].revision == 6


def test_a_stamp_of_the_wrong_shape(opened):
    graph = Graph().says("Q1", "P35", "wd:Q1")
    graph.lines.append('wd:Q1 schema:dateModified "2022-01-01T00:00:00Z"^^xsd:dateTime ; schema:version "new" .')
    with pytest.raises(BadAnswer, match="check where dateModified and version sit"):
        list(opened(graph).pages(None))


class Stuck:
    """An engine that ignores where a page should start."""

    name = "stuck"

    def __init__(self, engine):
        self.engine = engine

    def select(self, query):
        lines = [line for line in query.text.splitlines() if "FILTER(?modified >" not in line]
        return self.engine.select(replace(query, text="\n".join(lines)))


def test_an_engine_that_repeats_itself_is_not_asked_for_ever(many_engine):
    pages = WikidataSource(Stuck(many_engine), P35, page_size=5, chunk=5).pages(None)
    next(pages)
    with pytest.raises(BadAnswer, match="does not honour the order"):
        next(pages)


class Reluctant:
    """An engine that refuses questions about more than some items."""

    def __init__(self, engine, most, error):
        self.engine, self.most, self.error, self.refused = engine, most, error, 0

    @property
    def name(self):
        return "reluctant"

    def select(self, query):
        if query.text.count("wd:Q") > self.most:
            self.refused += 1
            raise self.error("ask for less")
        return self.engine.select(query)


@pytest.mark.parametrize("error", [QueryTimeout, AnswerTooLarge])
def test_chunks_shrink_after_a_timeout(many_engine, error):
    engine = Reluctant(many_engine, 4, error)
    options = {"lag": timedelta(0)}
    expected = by_slot(WikidataSource(many_engine, P35, **options).pages(None))
    assert by_slot(WikidataSource(engine, P35, chunk=16, **options).pages(None)) == expected
    assert 0 < engine.refused < 8


def test_an_engine_in_trouble_is_not_asked_for_ever(many_engine):
    engine = Reluctant(many_engine, 0, QueryTimeout)
    with pytest.raises(QueryTimeout):
        list(WikidataSource(engine, P35, chunk=16).pages(None))
    assert engine.refused < 15


@pytest.mark.parametrize(
    "options",
    [
        {"relations": ()},
        {"relations": (relation("P35"), relation("P35"))},
        {"page_size": 0},
        {"page_size": 10_000},
        {"chunk": 0},
        {"overlap": timedelta(seconds=-1)},
        {"lag": timedelta(seconds=-1)},
        {"languages": ()},
        {"languages": ("English",)},
        {"relations": (relation("^P35"),)},
        {"memory": timedelta(0)},
        {"filters": {"P36": {"P31": ["Q1"]}}},
        {"filters": {"P35": {"P31": []}}},
        {"filters": {"P35": {"P31": ["P1"]}}},
        {"filters": {"P35": {"Q31": ["Q1"]}}},
        {"longest_label": 0},
        {"blocklist": ["("]},
        {"blocklist": [""]},
    ],
)
def test_settings_that_cannot_work(many_engine, options):
    with pytest.raises(SourceError):
        WikidataSource(many_engine, **({"relations": P35} | options))
