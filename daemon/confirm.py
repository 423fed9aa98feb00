"""Confirmation from outside: an engine is asked, under the name it serves, what the version was measured to answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import stamina
from sqlmodel import col, select

from daemon.errors import Disagrees, PublishFailed
from daemon.probes import OF_EDITS, Kind, shuffled
from daemon.publishers.client import bearer, call, encoded
from daemon.runtime import BASE_VERSION
from editor import fill, is_answer
from store.ledger import ledger_edits
from store.tables import Belief, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlmodel import Session

    from daemon.targets import ConfirmSection, Target
    from store.tables import Edit


class About(StrEnum):
    """What a question is for."""

    DIFFERENCE = "difference"  # tells the version from the one before it
    EDIT = "edit"  # an edit that both have
    CONTROL = "control"  # a fact that no edit is about


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that the version was measured to give, or one that it was measured not to give."""

    about: About
    prompt: str
    answer: str
    given: bool = True

    def agrees(self, text: str) -> bool:
        """Whether an engine that wrote this text may have the version."""
        return is_answer(text, self.answer) == self.given


def questions(session: Session, version_id: int, former_id: int | None, settings: ConfirmSection) -> list[Question]:
    """What an engine that has the version answers; nothing is asked that the version itself was measured to miss.

    Args:
        session: to read with.
        version_id: the version it should have.
        former_id: the version it had before, or might go back to; None: the base.
        settings: how many.
    """
    former_id = BASE_VERSION if former_id is None else former_id
    here, there = ledger_edits(session, version_id), ledger_edits(session, former_id)
    new = {edit.id for edit in here} - {edit.id for edit in there}
    measured = _measured(session, version_id)
    difference = [_of_edit(About.DIFFERENCE, edit) for edit in here if edit.id in new and _slot(edit) in measured]
    difference += _no_longer(session, version_id, former_id, here, there)
    kept = [_of_edit(About.EDIT, edit) for edit in here if edit.id not in new and _slot(edit) in measured]
    salt = str(version_id)
    difference, kept = shuffled(difference, salt), shuffled(kept, salt)
    first = difference[: settings.facts - min(len(kept), settings.facts // 2)]
    controls = shuffled(_controls(session, version_id), salt)
    return [*first, *kept[: settings.facts - len(first)], *controls[: settings.controls]]


def ask(target: Target, asked: Sequence[Question], tokens: int) -> list[str]:
    """What the target's engine writes behind each prompt, by greedy decoding.

    Raises:
        PublishFailed: it does not answer, or not as the OpenAI API has it.
    """
    engine = target.asked_at
    assert engine is not None
    url, model, key = engine
    reply = call(
        "POST",
        f"{url}/v1/completions",
        seconds=target.timeout_seconds,
        body=encoded({"model": model, "prompt": [q.prompt for q in asked], "max_tokens": tokens, "temperature": 0}),
        headers=bearer(key),
    )
    try:
        texts = {choice["index"]: str(choice["text"]) for choice in reply["choices"]}
        return [texts[number] for number in range(len(asked))]
    except (TypeError, KeyError):
        raise PublishFailed(f"{target.name} did not answer as /v1/completions does: check the address") from None


def check(target: Target, asked: Sequence[Question], settings: ConfirmSection) -> None:
    """Ask once.

    Raises:
        Disagrees: too few of one kind of question were answered as expected.
        PublishFailed: the engine could not be asked.
    """
    if not asked:
        return
    texts = ask(target, asked, settings.answer_tokens)
    agreed = [question.agrees(text) for question, text in zip(asked, texts, strict=True)]
    for about in About:
        of_kind = [i for i, question in enumerate(asked) if question.about is about]
        right = sum(agreed[i] for i in of_kind)
        if right < settings.agreement * len(of_kind):
            wrong = next(i for i in of_kind if not agreed[i])
            instead = "" if asked[wrong].given else "still "
            raise Disagrees(
                f"{target.name} answers {right} of {len(of_kind)} questions ({about.value}) as the version does: "
                f"behind {asked[wrong].prompt!r} it {instead}writes {' '.join(texts[wrong].split())[:60]!r}"
            )


def confirm(target: Target, asked: Sequence[Question], settings: ConfirmSection, pulse: Callable[[], None]) -> None:
    """Ask until the engine agrees; one that reloads by itself is given its time.

    Args:
        target: whose engine is asked.
        asked: the questions.
        settings: what counts as agreement.
        pulse: called before each time; may raise to stop.

    Raises:
        Disagrees, PublishFailed: as `check`.
    """
    patience = target.patience_seconds
    for attempt in stamina.retry_context(
        on=PublishFailed,
        attempts=1 if patience == 0 else None,
        timeout=patience or None,
        wait_initial=0.2,
        wait_max=2.0,
    ):
        with attempt:
            pulse()
            check(target, asked, settings)


def _slot(edit: Edit | ProbeResult | Belief) -> tuple[str, str]:
    return edit.qid, edit.pid


def _measured(session: Session, version_id: int) -> set[tuple[str, str]]:
    """Slots whose edit the version was measured to answer with its value."""
    rows = select(ProbeResult).where(ProbeResult.version_id == version_id, col(ProbeResult.correct))
    return {_slot(row) for row in session.exec(rows.where(col(ProbeResult.kind).in_(OF_EDITS)))}


def _of_edit(about: About, edit: Edit, *, given: bool = True) -> Question:
    return Question(about, fill(edit.prompt, edit.subject), edit.target, given)


def _no_longer(
    session: Session, version_id: int, former_id: int, here: Sequence[Edit], there: Sequence[Edit]
) -> list[Question]:
    """Edits that only the former version has and answers, where this one was measured to say something else."""
    answered = _measured(session, former_id)
    slots = {_slot(edit) for edit in here}
    beliefs = {_slot(row): row for row in session.exec(select(Belief).where(Belief.version_id == version_id))}
    gone = [edit for edit in there if _slot(edit) in answered - slots and _slot(edit) in beliefs]
    return [
        _of_edit(About.DIFFERENCE, edit, given=False)
        for edit in gone
        if not is_answer(beliefs[_slot(edit)].answer, edit.target)
    ]


def _controls(session: Session, version_id: int) -> list[Question]:
    """Facts without an edit that the version was measured to know; for the base, what candidates were compared with."""
    rows: Any = select(ProbeResult).where(ProbeResult.kind == Kind.CONTROL)
    if version_id == BASE_VERSION:
        rows = rows.where(col(ProbeResult.base_correct))
    else:
        rows = rows.where(ProbeResult.version_id == version_id, col(ProbeResult.correct))
    return [
        Question(About.CONTROL, prompt, expected)
        for prompt, expected in {(r.prompt, r.expected) for r in session.exec(rows)}
    ]
