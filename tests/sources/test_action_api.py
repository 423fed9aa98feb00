"""The Action API as a second opinion, against a server that answers in Wikidata's shape."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import parse_qs

import pytest
from werkzeug import Request, Response

from sources import (
    BadAnswer,
    BadQuery,
    Limits,
    Outcome,
    SourceDown,
    Throttled,
    load_catalogue,
    open_action_api,
)

NOW = datetime(2024, 6, 1, tzinfo=UTC)
RELATIONS = [load_catalogue()[pid] for pid in ("P35", "P36", "P1412")]
AGENT = "factsyncd-tests/1 (https://factsyncd.test-suite.dev; mail@factsyncd.test-suite.dev)"


def item(qid):
    return {"type": "wikibase-entityid", "value": {"entity-type": "item", "numeric-id": int(qid[1:]), "id": qid}}


def time(text):
    return {"type": "time", "value": {"time": text, "precision": 11, "calendarmodel": "Q1985727", "timezone": 0}}


def snak(value):
    """A snak with a value, or one of the two others by name."""
    return {"snaktype": value} if isinstance(value, str) else {"snaktype": "value", "datavalue": value}


def claim(qid, pid, number, value, rank="normal", **qualifiers):
    return {
        "id": f"{qid}$00000000-0000-0000-0000-{number:012d}", "rank": rank, "type": "statement",
        "mainsnak": snak(value) | {"property": pid},
        "qualifiers": {of: [snak(one) for one in values] for of, values in qualifiers.items()},
    }  # fmt: skip


def entity(qid, label, *claims):
    by_property = {}
    for one in claims:
        by_property.setdefault(one["mainsnak"]["property"], []).append(one)
    return {
        "type": "item", "id": qid, "lastrevid": 2_200_000_001, "modified": "2024-05-01T10:00:00Z",
        "labels": {"en": {"language": "en", "value": label}}, "claims": by_property or [],
    }  # fmt: skip


ALBANIA = entity(
    "Q222", "Albania",
    claim("Q222", "P35", 1, item("Q100"), P580=[time("+2017-07-24T00:00:00Z")], P582=[time("+2022-07-24T00:00:00Z")]),
    claim("Q222", "P35", 2, item("Q101"), P580=[time("+2022-07-24T00:00:00Z")]),
    claim("Q222", "P36", 3, item("Q19689"), "preferred"),
    claim("Q222", "P36", 4, item("Q5"), "deprecated"),
)  # fmt: skip


@pytest.fixture
def api(httpserver):
    """Answers with the given entities; remembers the requests."""
    asked = []

    def of(*entities, status=200, headers=None, body=None):
        def answer(request: Request) -> Response:
            asked.append(request)
            known = {one["id"]: one for one in entities}
            ids = parse_qs(request.query_string.decode())["ids"][0].split("|")
            found = {qid: known.get(qid, {"id": qid, "missing": ""}) for qid in ids}
            text = json.dumps({"entities": found, "success": 1}) if body is None else body
            return Response(text, status, headers, content_type="application/json; charset=utf-8")

        httpserver.expect_request("/w/api.php").respond_with_handler(answer)
        limits = Limits(attempts=1, retry_seconds=5)
        return open_action_api(
            httpserver.url_for("/w/api.php"), RELATIONS, user_agent=AGENT, timeout_seconds=5, limits=limits
        )

    of.asked = asked
    return of


def said(found):
    return {(one.qid, one.pid): (one.outcome, [value.id for value in one.values]) for one in found}


def test_claims_become_current_values(api):
    found = api(ALBANIA).observe(["Q222"], NOW)
    assert said(found) == {
        ("Q222", "P35"): (Outcome.VALUE, ["Q101"]),
        ("Q222", "P36"): (Outcome.VALUE, ["Q19689"]),
        ("Q222", "P1412"): (Outcome.NONE, []),
    }
    head = found[0]
    assert (head.subject_label, head.revision) == ("Albania", 2_200_000_001)
    assert head.modified == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert head.statement == "Q222-00000000-0000-0000-0000-000000000002", "named as in RDF"


def test_what_has_not_begun_or_is_not_known(api):
    future = entity("Q1", "x", claim("Q1", "P35", 1, item("Q2"), P580=[time("+2030-01-01T00:00:00Z")]))
    ended = entity("Q3", "y", claim("Q3", "P35", 1, item("Q2"), P582=["somevalue"]))
    unknown = entity("Q4", "z", claim("Q4", "P35", 1, "somevalue"), claim("Q4", "P36", 2, "novalue"))
    found = said(api(future, ended, unknown).observe(["Q1", "Q3", "Q4"], NOW))
    assert found["Q1", "P35"] == found["Q3", "P35"] == (Outcome.NONE, [])
    assert found["Q4", "P35"] == (Outcome.SOMEVALUE, [])
    assert found["Q4", "P36"] == (Outcome.NOVALUE, [])


def test_several_values_and_imprecise_times(api):
    speaker = entity(
        "Q1", "x", claim("Q1", "P1412", 1, item("Q1860")),
        claim("Q1", "P1412", 2, item("Q150"), P580=[time("+1990-00-00T00:00:00Z"), time("+1991-05-00T00:00:00Z")]),
    )  # fmt: skip
    assert said(api(speaker).observe(["Q1"], NOW))["Q1", "P1412"] == (Outcome.SEVERAL, ["Q150", "Q1860"])


@pytest.mark.parametrize(
    ("value", "id_"),
    [
        ({"type": "string", "value": "+355"}, "+355"),
        ({"type": "quantity", "value": {"amount": "+1200.50", "unit": "1"}}, "1200.5"),
        ({"type": "monolingualtext", "value": {"text": "Tirana", "language": "en"}}, "Tirana"),
        (time("+1952-00-00T00:00:00Z"), "1952-01-01T00:00:00Z"),
        (time("+1952-02-06T00:00:00Z"), "1952-02-06T00:00:00Z"),
        (time("-0044-03-15T00:00:00Z"), "-0043-03-15T00:00:00Z"),
    ],
)
def test_values_are_those_of_rdf(api, value, id_):
    found = api(entity("Q1", "x", claim("Q1", "P36", 1, value))).observe(["Q1"], NOW)
    assert [one.values[0].id for one in found if one.values] == [id_]


def test_missing_and_merged_items_have_no_observations(api):
    merged = entity("Q7", "other") | {"redirects": {"from": "Q6", "to": "Q7"}}
    opinion = api(ALBANIA, merged | {"id": "Q6"})
    assert {one.qid for one in opinion.observe(["Q222", "Q5", "Q6"], NOW)} == {"Q222"}


def test_fifty_at_once_and_each_once(api):
    qids = [f"Q{n}" for n in range(1, 121)]
    opinion = api(*(entity(qid, qid) for qid in qids))
    found = opinion.observe([*qids, "Q1"], NOW)
    assert [parse_qs(request.query_string.decode())["ids"][0].count("|") + 1 for request in api.asked] == [50, 50, 20]
    assert len(found) == 120 * len(RELATIONS)
    query = parse_qs(api.asked[0].query_string.decode())
    assert (query["maxlag"], query["action"]) == (["5"], ["wbgetentities"])
    assert api.asked[0].headers["User-Agent"] == AGENT


def test_lag_is_told_in_an_answer_that_looks_good(api):
    lagging = json.dumps({"error": {"code": "maxlag", "info": "Waiting for db1: 7 seconds lagged.", "lag": 7}})
    with pytest.raises(Throttled) as error:
        api(body=lagging, headers={"Retry-After": "5"}).observe(["Q1"], NOW)
    assert error.value.retry_after == 5


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (json.dumps({"error": {"code": "no-such-entity", "info": "gone"}}), 200, BadQuery),
        ("{}", 200, BadAnswer),
        ("[]", 200, BadAnswer),
        (json.dumps({"entities": {"Q1": {"id": "Q1", "claims": {"P35": [{}]}}}}), 200, BadAnswer),
        (json.dumps({"entities": [1]}), 200, BadAnswer),
        ('{"entities": {', 200, BadAnswer),
        ("down", 503, SourceDown),
    ],
)
def test_what_is_no_answer_is_an_error_in_one_line(api, body, status, error):
    with pytest.raises(error) as raised:
        api(body=body, status=status).observe(["Q1"], NOW)
    assert len(str(raised.value).splitlines()) == 1


def test_only_items_can_be_asked_for(api):
    with pytest.raises(ValueError, match="not an item id"):
        api(ALBANIA).observe(["Q1|Q2"], NOW)
    assert not api.asked
