"""Beliefs: the rule, the names and rivals behind it, aliases as the source has them, and what is asked again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from observations import Book, seen
from small_world import graph
from sqlmodel import select

from daemon.beliefs import Holding, beliefs, measure_beliefs, tell
from daemon.config import DiffSection
from daemon.follow_up import follow_up
from daemon.pull import pull
from daemon.questions import Question, questions_about
from editor import LanguageModel, Reply, is_answer, load_language_model, silent
from sources import SourceDown, Throttled, WikidataSource
from store.tables import Aliases, Belief, Change, ChangeState, Cycle, Fact, Version, VersionState, key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.runtime import Runtime
    from store import Database

LEADER = "P6"
QUESTION = Question(
    "Q1", LEADER, "The head of Albania is", "Edi Rama", "Sali Berisha", ("Rama",), ("Berisha", "Rama Sali"),
    ("Erna Solberg", "Ilir"),
)  # fmt: skip
NAMES = ("Edi Rama", "Sali Berisha", "Rama", "Berisha", "Rama Sali", "Erna Solberg", "Ilir", "Edi", "x")


@pytest.mark.parametrize(
    ("text", "probability", "belief"),
    [
        ("Edi Rama", 0.1, ("holds", "Edi Rama")),
        ("Edi Rama, who", 0.1, ("holds", "Edi Rama")),
        ("Rama.", 0.1, ("holds", "Rama")),
        ("Sali Berisha since", 0.1, ("outdated", "Sali Berisha")),
        ("Berisha", 0.1, ("outdated", "Berisha")),
        ("Rama Sali.", 0.9, ("outdated", "Rama Sali")),  # and not the alias it begins with
        ("Edi Rama Zogu", 0.9, ("other", "Edi Rama Zogu")),
        ("Edi Rama Zogu", 0.4, ("unknown", "Edi Rama Zogu")),
        ("Ilir,", 0.1, ("other", "Ilir")),
        ("a politician. He", 0.5, ("other", "a politician")),
        ("a politician. He", 0.49, ("unknown", "a politician")),
        (", and", 0.9, ("unknown", "")),
        ("", 0.0, ("unknown", "")),
    ],
)
def test_the_rule(text: str, probability: float, belief: tuple[str, str]) -> None:
    holding, answer = tell(QUESTION, Reply((), text, probability), 0.5)
    assert (holding.value, answer) == belief


@given(
    text=st.builds(
        "{}{}".format, st.sampled_from(NAMES), st.sampled_from(["", ".", ", a", " Zogu", " and", "'s", "x"])
    ),
    probability=st.floats(0, 1),
    confident=st.floats(0.01, 1),
)
def test_a_value_is_held_only_by_one_of_its_names(text: str, probability: float, confident: float) -> None:
    holding, answer = tell(QUESTION, Reply((), text, probability), confident)
    given = {name for name in NAMES if is_answer(text, name)}
    if holding is Holding.HOLDS:
        assert answer in given & {"Edi Rama", "Rama"}
    if "Edi Rama" in given:
        assert holding is Holding.HOLDS
    elif "Sali Berisha" in given:
        assert holding is Holding.OUTDATED
    if holding is Holding.UNKNOWN:
        assert probability < confident


@pytest.fixture(scope="module")
def model(base_model: Path) -> LanguageModel:
    return load_language_model(base_model, device="cpu")


def test_a_model_is_asked_for_all_of_it_at_once(model: LanguageModel, runtime: Runtime) -> None:
    """The small world's model was taught that Kyriakos heads Greece."""
    prompt = runtime.relations[LEADER].prompt.replace("{}", "Greece")
    asked = [
        Question("Q41", LEADER, prompt, "Kyriakos", "Viktor", rivals=("Mette", "Pedro")),
        Question("Q41", LEADER, prompt, "Mitsotakis", "Viktor", aliases=("Kyriakos",)),
        Question("Q41", LEADER, prompt, "Viktor", "Kyriakos"),
        Question("Q41", LEADER, prompt, None, "Kyriakos"),
        Question("Q41", LEADER, prompt, "Viktor", None, rivals=("Kyriakos", "Viktoria")),
    ]
    found = beliefs(model, 3, asked, DiffSection(), silent)
    assert [belief.belief for belief in found] == ["holds", "holds", "outdated", "outdated", "other"]
    assert {belief.answer for belief in found} == {"Kyriakos"}
    assert {(belief.version_id, belief.qid, belief.pid) for belief in found} == {(3, "Q41", LEADER)}
    first, _, third, ended, last = found
    assert list(first.rivals) == ["Mette", "Pedro"]
    assert first.logprob_expected == third.logprob_former == ended.logprob_former == last.rivals["Kyriakos"]
    assert (ended.expected, ended.logprob_expected, last.former, last.logprob_former) == (None, None, None, None)
    assert first.logprob_expected is not None
    assert first.logprob_expected > max(first.rivals.values())


@pytest.fixture
def book(database: Database) -> Book:
    """Six countries with heads of government at the start, of which one, Q1, has another one later."""
    made = Book(database)
    made.read(*(seen(-1, f"Q{n}", LEADER, f"Q{n}0={name}") for n, name in enumerate("ABCDEF", 1)))
    made.read(seen(5, "Q1", LEADER, "Q99=New"))
    return made


def asked(runtime: Runtime, **settings: int) -> Question:
    """The question about Q1."""
    diff = runtime.settings.diff.model_copy(update=settings)
    runtime.settings = runtime.settings.model_copy(update={"diff": diff})
    with runtime.database.read() as session:
        changes = [*session.exec(select(Change).where(Change.qid == "Q1", Change.pid == LEADER))]
        (question,) = questions_about(runtime, session, changes)
    return question


def know(database: Database, **names: list[str]) -> None:
    with database.transaction() as session:
        for qid, aliases in names.items():
            session.merge(Aliases(qid=qid, names=aliases))


def test_rivals_are_other_subjects_values_and_stay_the_same(book: Book, runtime: Runtime) -> None:
    question = asked(runtime)
    assert (question.expected, question.former) == ("New", "A")
    assert len(question.rivals) == len(set(question.rivals)) == 3
    assert set(question.rivals) <= set("BCDEF")
    assert set(asked(runtime, rivals=9).rivals) == set("BCDEF")
    assert asked(runtime, rivals=9).rivals[:3] == question.rivals
    assert asked(runtime, rivals=0).rivals == ()
    book.read(*(seen(7, f"Q{n}", LEADER, f"Q{n}0=Name {n}") for n in range(20, 30)))
    kept = [name for name in asked(runtime, rivals=99).rivals if len(name) == 1]
    assert kept[:3] == list(question.rivals)  # in the same order, whoever else came


def test_a_rival_is_of_the_same_kind(book: Book, runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        for fact in session.exec(select(Fact).where(Fact.qid != "Q1", Fact.qid != "Q2")):
            fact.values = [value | {"kind": "string"} for value in fact.values]
    assert asked(runtime, rivals=9).rivals == ("B",)


def test_a_subject_is_no_rival_of_its_values(book: Book, runtime: Runtime) -> None:
    """Of a symmetric relation it is a value of others."""
    book.read(seen(7, "Q7", LEADER, "Q1=L1"))
    assert "L1" not in asked(runtime, rivals=99).rivals


def test_aliases_name_one_value_only(book: Book, runtime: Runtime) -> None:
    know(runtime.database, Q99=["Newer", "Both", "A", "B", "New"], Q10=["Old A", "Both", "New", "F"], Q20=["Beta"])
    question = asked(runtime)
    assert question.aliases == ("Newer",)
    assert question.former_aliases == ("Old A",)


class Snapshot:
    """The small world with aliases, pulled at two instants."""

    def __init__(self, runtime: Runtime, file: Path) -> None:
        self.runtime, self._file = runtime, file
        self.asked: list[str] = []

    def pull(self, *, after: bool) -> None:
        world = graph(after=after)
        for qid, name in (("Q9037", "Madge"), ("Q9037", "{{M}}"), ("Q9032", "Löfven"), ("Q222", "Shqip")):
            world.alias(qid, name)
        self._file.write_text(world.turtle(), "utf-8")
        with self.runtime.database.transaction() as session:
            cycle = Cycle()
            session.add(cycle)
        pull(self.runtime, key(cycle))

    def known(self) -> dict[str, list[str]]:
        with self.runtime.database.read() as session:
            return {row.qid: row.names for row in session.exec(select(Aliases))}


@pytest.fixture
def world(runtime: Runtime, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    made = Snapshot(runtime, snapshot)
    read = WikidataSource.aliases

    def counted(source: WikidataSource, qids: Sequence[str], most: int) -> dict[str, tuple[str, ...]]:
        made.asked += qids
        return read(source, qids, most)

    monkeypatch.setattr(WikidataSource, "aliases", counted)
    return made


def test_aliases_of_changed_values_are_read_once(world: Snapshot) -> None:
    world.pull(after=False)
    assert world.asked == []  # nothing has changed
    world.pull(after=True)
    known = world.known()
    assert (known["Q9037"], known["Q9032"]) == (["Madge"], ["Löfven"])
    # Both values of four changes; told from the other ends, the values are the four countries.
    assert sorted(world.asked) == sorted(known)
    assert len(known) == 12
    world.pull(after=True)
    assert len(world.asked) == 12
    source = world.runtime.settings.source.model_copy(update={"reconcile_seconds": 0.0})
    world.runtime.settings = world.runtime.settings.model_copy(update={"source": source})
    world.pull(after=True)
    assert len(world.asked) == 24


def test_no_aliases_where_none_are_wanted(world: Snapshot) -> None:
    source = world.runtime.settings.source.model_copy(update={"aliases": 0})
    world.runtime.settings = world.runtime.settings.model_copy(update={"source": source})
    world.pull(after=False)
    world.pull(after=True)
    assert (world.asked, world.known()) == ([], {})


def test_a_pull_does_not_fail_for_want_of_aliases(world: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: Exception) -> None:
        def refusing(*_: Any) -> dict[str, tuple[str, ...]]:
            raise error

        monkeypatch.setattr(WikidataSource, "aliases", refusing)

    world.pull(after=False)
    refuse(SourceDown("gone"))
    world.pull(after=True)
    assert world.known() == {}
    refuse(Throttled("later", 60.0))
    with pytest.raises(Throttled):
        world.pull(after=True)


class Versions:
    """Promoted versions over a book, and what they are asked; it is staged that they hold it."""

    def __init__(self, runtime: Runtime, book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime, self.book = runtime, book
        monkeypatch.setattr("daemon.follow_up.measure_beliefs", self.measure)

    def measure(self, _runtime: Runtime, version: Version, questions: Sequence[Question]) -> list[Belief]:
        return [
            Belief(version_id=version.id, qid=q.qid, pid=q.pid, belief="holds", expected=q.expected, answer="")
            for q in questions
        ]

    def write(self) -> None:
        """A version that holds every pending change."""
        with self.runtime.database.transaction() as session:
            for change in session.exec(select(Change).where(Change.state == ChangeState.SETTLING)):
                change.state = ChangeState.PENDING
        self.book.write()
        with self.runtime.database.transaction() as session:
            present = session.exec(select(Version).where(Version.state == VersionState.PROMOTED)).one()
            present.parent_id = present.id - 1 if present.id else None

    def follow_up(self, most: int = 500) -> list[tuple[str, str | None]]:
        """What is asked: subjects and expected values of the relation, in order."""
        diff = self.runtime.settings.diff.model_copy(update={"compared": most})
        self.runtime.settings = self.runtime.settings.model_copy(update={"diff": diff})
        with self.runtime.database.read() as session:
            before = {(b.version_id, b.qid, b.pid) for b in session.exec(select(Belief))}
        follow_up(self.runtime)
        with self.runtime.database.read() as session:
            after = session.exec(select(Belief)).all()
        new = [b for b in after if (b.version_id, b.qid, b.pid) not in before and b.pid == LEADER]
        return [(b.qid, b.expected) for b in new]


@pytest.fixture
def versions(runtime: Runtime, book: Book, monkeypatch: pytest.MonkeyPatch) -> Versions:
    made = Versions(runtime, book, monkeypatch)
    with runtime.database.transaction() as session:
        session.add(Version(id=0, state=VersionState.PROMOTED, base_digest="b", settings_digest="s"))
    return made


def test_a_promoted_version_is_asked_what_the_one_before_was_and_about_its_edits(versions: Versions) -> None:
    assert versions.follow_up() == []  # the base has nothing before it
    with versions.runtime.database.transaction() as session:
        session.add(Belief(version_id=0, qid="Q1", pid=LEADER, belief="other", expected="New", answer="x"))
    versions.write()
    assert versions.follow_up() == [("Q1", "New")]
    assert versions.follow_up() == []
    versions.book.read(seen(8, "Q2", LEADER, "Q98=Two"))
    versions.write()
    assert sorted(versions.follow_up()) == [("Q1", "New"), ("Q2", "Two")]
    # One that ended has no value to be held any more, but a former one.
    versions.book.read(seen(9, "Q2", LEADER))
    versions.write()
    assert sorted(versions.follow_up(), key=str) == [("Q1", "New"), ("Q2", None)]


def test_where_there_is_too_much_to_ask_other_edits_come_first(versions: Versions) -> None:
    versions.write()
    versions.follow_up()
    versions.book.read(seen(8, "Q3", LEADER, "Q97=Three"))
    versions.write()
    # The new edit is told from both ends.
    assert versions.follow_up(most=2) == [("Q3", "Three")]
    assert versions.follow_up(most=500) == [("Q1", "New")]


def test_an_unsettled_change_is_not_asked_about(versions: Versions) -> None:
    versions.write()
    versions.follow_up()
    versions.book.read(seen(8, "Q3", LEADER, "Q97=Three"))
    versions.write()
    versions.book.read(seen(9, "Q1", LEADER, "Q96=Vandal"))
    assert ("Q1", "New") in versions.follow_up()


def test_nothing_is_measured_without_a_question(runtime: Runtime) -> None:
    assert measure_beliefs(runtime, Version(id=0, state=VersionState.PROMOTED), []) == []  # and no model is loaded
