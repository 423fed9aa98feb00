"""Which addresses and user agents are accepted."""

from __future__ import annotations

import pytest

from sources import SourceError
from sources.identity import check_agent, is_public

WIKIDATA = "https://query.wikidata.org/sparql"


@pytest.mark.parametrize(
    ("url", "public"),
    [
        (WIKIDATA, True),
        ("http://8.8.8.8/sparql", True),
        ("http://[2001:4860:4860::8888]/sparql", True),
        ("http://localhost:7878/query", False),
        ("http://oxigraph:7878/query", False),
        ("http://oxigraph./query", False),
        ("http://127.0.0.1:7878/query", False),
        ("http://[::1]:7878/query", False),
        ("http://10.1.2.3/query", False),
        ("http://192.168.1.1/query", False),
    ],
)
def test_public_hosts(url, public):
    assert is_public(url) is public


@pytest.mark.parametrize(
    "agent",
    [
        "factsyncd/0.1 (https://wiki.tuwien.ac.at/facts; ops@tuwien.ac.at)",
        "factsyncd/0.1 (ops@tuwien.ac.at)",
        "factsyncd/0.1 https://wiki.tuwien.ac.at",
    ],
)
def test_agents_with_a_contact(agent):
    check_agent(agent, WIKIDATA)


@pytest.mark.parametrize(
    ("agent", "complaint"),
    [
        ("factsyncd/0.1", "no mail address"),
        ("factsyncd/0.1 (ops at tuwien)", "no mail address"),
        ("factsyncd/0.1 (http://localhost)", "no mail address"),
        ("factsyncd/0.1 (https://example.org; a@example.org)", "placeholder"),
        ("factsyncd/0.1 (https://wiki.tuwien.ac.at; me@factsyncd.example)", "placeholder"),
        ("factsyncd/0.1 (you@your-domain.com)", "placeholder"),
        ("factsyncd/0.1 (your-mail@tuwien.ac.at)", "placeholder"),
        ("factsyncd/0.1 (<mail@tuwien.ac.at>)", "placeholder"),
        ("name/version (ops@tuwien.ac.at)", "placeholder"),
        ("python-requests/2.34.2", "library"),
        ("Python-urllib/3.11 (ops@tuwien.ac.at)", "library"),
        ("sparqlwrapper 2.0.0 (rdflib.github.io/sparqlwrapper)", "library"),
        ("Mozilla/5.0 (X11; Linux x86_64)", "library"),
    ],
)
def test_agents_that_a_public_host_cannot_write_to(agent, complaint):
    with pytest.raises(SourceError, match=complaint):
        check_agent(agent, WIKIDATA)
    check_agent(agent, "http://localhost:7878/query")


@pytest.mark.parametrize("url", [WIKIDATA, "http://localhost/"])
@pytest.mark.parametrize("agent", ["", " ", "é/1 (a@b.at)", "a\r\nX-Evil: b"])
def test_agents_that_are_no_header(agent, url):
    with pytest.raises(SourceError, match="empty or not ASCII"):
        check_agent(agent, url)
