from __future__ import annotations

import gzip

import pyoxigraph as ox
import pytest
from small_graph import ALBANIA_RELATIONS, albania

from sources import BadQuery, SnapshotUnreadable, open_embedded
from sources.embedded import EmbeddedEngine
from sources.queries import Query


def observations(path):
    pages = list(open_embedded(path, ALBANIA_RELATIONS).pages(None))
    return {o for page in pages for o in page.observations}


@pytest.fixture
def turtle(tmp_path):
    path = tmp_path / "albania.ttl"
    path.write_text(albania().turtle(), encoding="utf-8")
    return path


@pytest.fixture
def store():
    store = ox.Store()
    store.load(albania().turtle(), ox.RdfFormat.TURTLE)
    return store


@pytest.mark.parametrize("suffix", [".nt", ".nq", ".trig", ".ttl.gz", ".nq.gz"])
def test_every_format_gives_the_same(tmp_path, turtle, store, suffix):
    expected = observations(turtle)
    assert len(expected) == 3 * len(ALBANIA_RELATIONS)
    path = tmp_path / f"other{suffix}"
    formats = {".nt": ox.RdfFormat.N_TRIPLES, ".nq": ox.RdfFormat.N_QUADS, ".trig": ox.RdfFormat.TRIG}
    name = suffix.removesuffix(".gz")
    if name in formats:
        quads = name != ".nt"
        text = store.dump(format=formats[name], from_graph=None if quads else ox.DefaultGraph())
    else:
        text = turtle.read_bytes()
    path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    assert observations(path) == expected


def test_named_graphs_count(tmp_path, turtle, store):
    path = tmp_path / "named.nq"
    graph = ox.NamedNode("http://example.org/graph")
    quads = [ox.Quad(q.subject, q.predicate, q.object, graph) for q in store]
    path.write_bytes(ox.serialize(quads, format=ox.RdfFormat.N_QUADS))
    assert observations(path) == observations(turtle)


def test_a_store_on_disk(tmp_path, turtle):
    directory = tmp_path / "store"
    written = ox.Store(str(directory))
    written.bulk_load(path=str(turtle), format=ox.RdfFormat.TURTLE)
    written.flush()
    del written
    assert observations(directory) == observations(turtle)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.ttl", b"<http://a> <http://b> .", "not readable as RDF"),
        ("binary.ttl", bytes(range(256)), "not readable as RDF"),
        ("empty.ttl", b"", "holds no triples"),
        ("comment.ttl", b"# nothing here\n", "holds no triples"),
        ("plain.ttl.gz", b"no gzip", "not readable as RDF"),
        ("short.ttl.gz", gzip.compress(albania().turtle().encode())[:-40], "not readable as RDF"),
        ("table.csv", b"a,b", "no known RDF suffix"),
        ("archive.gz", b"", "no known RDF suffix"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SnapshotUnreadable, match=message) as caught:
        open_embedded(path, ALBANIA_RELATIONS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(SnapshotUnreadable, match="does not exist"):
        open_embedded(tmp_path / "none.ttl", ALBANIA_RELATIONS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SnapshotUnreadable, match="no Oxigraph store"):
        open_embedded(tmp_path / "folder", ALBANIA_RELATIONS)


@pytest.mark.parametrize("text", ["SELEC", "ASK {}", "CONSTRUCT {} WHERE {}"])
def test_only_select_is_answered(turtle, text):
    with pytest.raises(BadQuery):
        EmbeddedEngine(turtle).select(Query(text, ()))
