from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_graph import at

from sources import Cursor, queries
from sources.queries import Stamps
from sources.vocabulary import Observation, Outcome, is_pid, is_qid

BAD_IDS = ["", "Q0", "Q01", "q1", "Q1 ", "Q1\n", "Q١", "Q1} DROP ALL #", "L1", "Q", "Q1234567890123"]

ANY_ID = st.from_regex(r"[QPL^]?[0-9]{1,14}.{0,3}", fullmatch=True) | st.text(max_size=20)


@pytest.mark.parametrize("text", BAD_IDS)
def test_ids_that_are_none_never_enter_a_query(text):
    assert not is_qid(text)
    assert not is_pid(text.replace("Q", "P"))
    with pytest.raises(ValueError, match="not an item id"):
        queries.statements([text], ["P35"], Stamps.ITEM)
    with pytest.raises(ValueError, match="not an item id"):
        queries.labels([text], ["en"])
    with pytest.raises(ValueError, match="not an item id"):
        queries.aliases([text], ["en"])
    with pytest.raises(ValueError, match="not an item id"):
        queries.standing([text], Stamps.ITEM)
    with pytest.raises(ValueError, match="not an item id"):
        queries.kinds([text], ["P31"])
    with pytest.raises(ValueError, match="not an item id"):
        queries.discovery({"P35": {"P31": [text]}}, Stamps.ITEM, None, at("2022-01-01"), 10)
    with pytest.raises(ValueError, match="not a property id"):
        queries.discovery({text.replace("Q", "P"): {}}, Stamps.ITEM, None, at("2022-01-01"), 10)
    with pytest.raises(ValueError, match="not a property id"):
        queries.statements(["Q1"], [text.replace("Q", "P")], Stamps.ITEM)


def _accepts(qid: str, pid: str) -> list[str]:
    """The texts of all queries that take the ids."""
    until, made = at("2022-01-01"), []
    for make in (
        lambda: queries.statements([qid], ["P35"], Stamps.ITEM),
        lambda: queries.statements(["Q1"], [pid], Stamps.DOCUMENT),
        lambda: queries.labels([qid], ["en"]),
        lambda: queries.aliases([qid], ["en"]),
        lambda: queries.discovery({pid: {}}, Stamps.ITEM, None, until, 10),
        lambda: queries.discovery({pid: {}}, Stamps.DOCUMENT, None, until, 10),
        lambda: queries.discovery({"P35": {pid: ["Q6256"]}}, Stamps.ITEM, None, until, 10),
        lambda: queries.discovery({"P35": {"P31": [qid]}}, Stamps.ITEM, None, until, 10),
        lambda: queries.kinds([qid], ["P31"]),
        lambda: queries.kinds(["Q1"], [pid]),
        lambda: queries.standing([qid], Stamps.ITEM),
        lambda: queries.standing([qid], Stamps.DOCUMENT),
        lambda: queries.precisions([qid], ["P571"]),
        lambda: queries.precisions(["Q1"], [pid]),
    ):
        try:
            made.append(make().text)
        except ValueError:
            continue
    return made


@given(qid=ANY_ID, pid=ANY_ID)
@example(qid="Q123456789012", pid="P123456789012")
@example(qid="Q1\n", pid="P1\n")
@example(qid="Q\u0661", pid="P\u0661")
def test_nothing_but_a_valid_id_enters_a_query(qid, pid):
    """Whatever is asked for: with its ids blotted out, a text is that of the plainest ids, also blotted out."""
    plain = {re.sub(r"\b[QP][1-9][0-9]{0,11}\b", "ID", text) for text in _accepts("Q1", "P35")}
    assert {re.sub(r"\b[QP][1-9][0-9]{0,11}\b", "ID", text) for text in _accepts(qid, pid)} <= plain


@pytest.mark.parametrize("tag", ["", "EN", 'en"', "en-", "e"])
def test_language_tags_are_checked(tag):
    with pytest.raises(ValueError, match="not a lower-case language tag"):
        queries.labels(["Q1"], [tag])
    with pytest.raises(ValueError, match="language tag"):
        queries.aliases(["Q1"], [tag])


def test_texts_are_plain_sparql():
    cursor = Cursor(at("2022-01-01"), 7)
    texts = [
        queries.replication_time(),
        queries.discovery(
            {"P35": {}, "P6": {"P31": ["Q1", "Q2"], "P17": ["Q3"]}}, Stamps.ITEM, cursor, at("2022-02-01"), 10
        ),
        queries.discovery({"P35": {}}, Stamps.DOCUMENT, None, at("2022-02-01"), 10),
        queries.statements(["Q1", "Q2"], ["P35", "P6"], Stamps.ITEM),
        queries.statements(["Q1", "Q2"], ["P35", "P6"], Stamps.DOCUMENT),
        queries.labels(["Q1"], ["en", "mul"]),
        queries.aliases(["Q1"], ["en", "mul"]),
        queries.kinds(["Q1"], ["P31", "P17"]),
        queries.precisions(["Q1"], ["P571", "P569"]),
        queries.standing(["Q1", "Q2"], Stamps.ITEM),
        queries.standing(["Q1", "Q2"], Stamps.DOCUMENT),
    ]
    for query in texts:
        assert "SERVICE" not in query.text
        assert "hint:" not in query.text
        assert all(f"?{name}" in query.text for name in query.variables)


def test_times_must_be_in_utc():
    naive = at("2022-01-01").replace(tzinfo=None)
    with pytest.raises(ValueError, match="not a time in UTC"):
        Cursor(naive, 1)
    with pytest.raises(ValueError, match="not a time in UTC"):
        Observation("Q1", "", "P1", Outcome.NONE, (), "", 1, naive, "")
