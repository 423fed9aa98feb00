"""Small graphs in the shape of Wikidata's RDF, written as Turtle."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from sources import Relation

PREFIXES = """\
@prefix wd: <http://www.wikidata.org/entity/> .
@prefix wdata: <http://www.wikidata.org/wiki/Special:EntityData/> .
@prefix s: <http://www.wikidata.org/entity/statement/> .
@prefix p: <http://www.wikidata.org/prop/> .
@prefix ps: <http://www.wikidata.org/prop/statement/> .
@prefix psv: <http://www.wikidata.org/prop/statement/value/> .
@prefix pq: <http://www.wikidata.org/prop/qualifier/> .
@prefix wdno: <http://www.wikidata.org/prop/novalue/> .
@prefix wikibase: <http://wikiba.se/ontology#> .
@prefix schema: <http://schema.org/> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
"""
REPLICATED = datetime(2022, 12, 31, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def time_literal(text: str) -> str:
    return f'"{text}T00:00:00Z"^^xsd:dateTime'


def relation(pid: str, *, multi_valued: bool = False) -> Relation:
    return Relation(
        pid=pid,
        label=f"property {pid}",
        prompt=f"The {pid} of {{}} is",
        paraphrases=(f"{{}}'s {pid} is", f"{{}} has the {pid}", f"As {pid}, {{}} has"),
        questions=(f"What is the {pid} of {{}}?",),
        multi_valued=multi_valued,
        symmetric=False,
    )


@dataclass
class Graph:
    """Collects Turtle; items and statements are added by methods."""

    replicated: datetime | None = REPLICATED
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def item(self, qid: str, label: str | None, revision: int, modified: str, *, sitelinks: int | None = None) -> Graph:
        linked = "" if sitelinks is None else f" ; wikibase:sitelinks {sitelinks}"
        self.lines.append(
            f"wd:{qid} schema:version {revision} ; schema:dateModified "
            f'"{datetime.fromisoformat(modified).isoformat()}Z"^^xsd:dateTime{linked} .'
        )
        return self if label is None else self.label(qid, label)

    def label(self, qid: str, label: str, language: str = "en", predicate: str = "rdfs:label") -> Graph:
        quoted = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04X}" for c in label)
        self.lines.append(f'wd:{qid} {predicate} "{quoted}"@{language} .')
        return self

    def alias(self, qid: str, name: str, language: str = "en") -> Graph:
        return self.label(qid, name, language, "skos:altLabel")

    def says(self, qid: str, pid: str, value: str | None, rank: str = "Normal", **qualifiers: str) -> Graph:
        """One statement; ``value`` is Turtle, or None for "no value"; qualifiers are Turtle by P-id."""
        self.count += 1
        name = f"s:{qid}-{self.count}"
        what = f"a wdno:{pid}" if value is None else f"ps:{pid} {value}"
        more = "".join(f" ; pq:{qualifier} {turtle}" for qualifier, turtle in qualifiers.items())
        self.lines.append(f"wd:{qid} p:{pid} {name} .")
        self.lines.append(f"{name} wikibase:rank wikibase:{rank}Rank ; {what}{more} .")
        return self

    def dated(self, qid: str, pid: str, text: str, precision: int) -> Graph:
        """A statement whose value is a time of this precision."""
        self.says(qid, pid, time_literal(text))
        self.lines.append(f"s:{qid}-{self.count} psv:{pid} [ wikibase:timePrecision {precision} ] .")
        return self

    def merged(self, qid: str, into: str) -> Graph:
        self.lines.append(f"wd:{qid} owl:sameAs wd:{into} .")
        return self

    def turtle(self) -> str:
        head = []
        if self.replicated is not None:
            stamp = f'"{self.replicated:%Y-%m-%dT%H:%M:%SZ}"^^xsd:dateTime'
            head = [f"<http://www.wikidata.org> schema:dateModified {stamp} ."]
        return PREFIXES + "\n".join(head + self.lines) + "\n"


def albania() -> Graph:
    """A handover, several values, an unknown value, no value, and literals."""
    graph = Graph()
    graph.item("Q222", "Albania", 1700, "2022-07-24T10:00:00", sitelinks=312)
    graph.says("Q222", "P35", "wd:Q1", P580=time_literal("2012-07-24"), P582=time_literal("2017-07-24"))
    graph.says("Q222", "P35", "wd:Q2", P580=time_literal("2017-07-24"), P582=time_literal("2022-07-24"))
    graph.says("Q222", "P35", "wd:Q3", P580=time_literal("2022-07-24"))
    graph.says("Q222", "P35", "wd:Q4", rank="Deprecated")
    graph.says("Q222", "P47", "wd:Q403").says("Q222", "P47", "wd:Q41").says("Q222", "P6", None)
    graph.says("Q222", "P1082", '"+2793592.50"^^xsd:decimal')
    graph.says("Q222", "P571", '"1912-11-28T00:00:00Z"^^xsd:dateTime')
    graph.item("Q41", "Greece", 1600, "2022-03-01T00:00:00")
    graph.says("Q41", "P6", "<http://www.wikidata.org/.well-known/genid/abc>").says("Q41", "P47", "wd:Q222")
    graph.item("Q403", "Serbia", 1800, "2022-09-01T00:00:00")
    graph.says("Q403", "P35", "_:unknown").says("Q403", "P6", "wd:Q5", rank="Preferred")
    graph.says("Q403", "P6", "wd:Q6", P580=f"{time_literal('2000-01-01')}, {time_literal('2001-01-01')}")
    for number, label in enumerate(("Bujar Nishani", "Ilir Meta", "Bajram Begaj", "Nobody", "Ana Brnabić"), 1):
        graph.label(f"Q{number}", label)
    return graph.label("Q6", "Somebody Else", "mul")


ALBANIA_RELATIONS = (
    relation("P35"),
    relation("P6"),
    relation("P47", multi_valued=True),
    relation("P1082"),
    relation("P571"),
)
ALBANIA_FILTERS = {"P6": {"P31": ["Q6256", "Q3624078"], "P30": ["Q46"]}, "P47": {"P31": ["Q6256"]}}


def albania_in_kinds() -> Graph:
    """Albania, with what filters and dates need, a merged item, and an item at two revisions."""
    graph = albania().merged("Q8", "Q222").item("Q41", None, 1601, "2022-03-02T00:00:00")
    graph.says("Q222", "P31", "wd:Q6256").says("Q222", "P30", "wd:Q46").says("Q403", "P30", "wd:Q46")
    graph.says("Q403", "P31", "wd:Q3624078").says("Q41", "P31", "wd:Q6256", rank="Deprecated")
    return graph.dated("Q41", "P571", "1830-01-01", 9).dated("Q403", "P571", "1817-11-01", 10)
