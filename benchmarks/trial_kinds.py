"""What the gate is tried with: candidates without harm, and sabotaged ones.

Every candidate comes from real changes by the real batch and edit phases; what makes it harmful happens in the edit
phase or right behind it. Facts are poisoned in the changes themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sabotage
from trial_state import TrialState, Written

from daemon.edit import edit
from daemon.runtime import Runtime
from store.ledger import ledger_edits
from store.tables import key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from store.tables import Version

Changes = "Callable[[TrialState], Sequence[Written]]"
Make = "Callable[[TrialState, int, Version], None]"

NO_HARM = ("nothing changes", "edits withdrawn", "edits written again")
REWRITTEN = 4
"""Edits that a no-op writes once more with the value they have."""
OTHER_VALUE, NOWHERE = "Springfield", "Zanzibar"


@dataclass(frozen=True)
class Step:
    """One candidate.

    Attributes:
        kind: what is done to it, as the result groups it.
        detail: and how strongly.
        changes: that it writes.
        make: the edit phase, or what happens in its place.
    """

    kind: str
    detail: str
    changes: Changes
    make: Make


def harmless(number: int) -> list[list[Step]]:
    """At least so many candidates without harm, in scenarios of one or two that follow each other."""
    scenarios: list[list[Step]] = []
    count = 0
    while count < number:
        # Two of eight change nothing; the others withdraw accepted edits, and write them again.
        if len(scenarios) % 5 in {0, 2}:
            scenarios.append([Step(NO_HARM[0], f"{REWRITTEN} rewritten", _rewrite_some, _edit)])
        else:
            taken = 2 + len(scenarios) % 4
            scenarios.append(
                [
                    Step(NO_HARM[1], f"{taken} edits", _withdraw(taken), _edit),
                    Step(NO_HARM[2], f"{taken} edits", _write_again, _edit),
                ]
            )
        count += len(scenarios[-1])
    return scenarios


def sabotaged(number: int) -> list[list[Step]]:
    """So many sabotaged candidates, in turn of each kind."""
    kinds = [_noisy(), _over_strong(), _scrambled(), _tokenizers(), _poisoned(), _forgotten(), _truncated()]
    longest = max(map(len, kinds))
    steps = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
    return [[step] for step in steps[:number]]


def _noisy() -> list[Step]:
    places = (("edited layers", EDITED), ("all layers", None))
    return [
        _spoilt("noise", f"{strength:g} of the weights' deviation, {name}", sabotage.noise(strength, layers, seed))
        for seed, (strength, (name, layers)) in enumerate(
            (strength, place) for strength in NOISE for place in places
        )
    ]  # fmt: skip


def _over_strong() -> list[Step]:
    by_hand = [_spoilt("over-strength", f"update times {f:g}", sabotage.amplified(f)) for f in AMPLIFIED]
    weak = [
        Step("over-strength", f"covariance weight {weight:g}", _rewrite_some, _solved_with(covariance_weight=weight))
        for weight in WEAK
    ]
    return [*by_hand, *weak]


def _scrambled() -> list[Step]:
    rows = ((5, "down_proj"), (9, "down_proj"), (15, "q_proj"), (25, "up_proj"))
    return [
        *(
            _spoilt("scrambled layer", f"rows of layer {layer}'s {name}", sabotage.scrambled(layer, name, layer))
            for layer, name in rows
        ),
        _spoilt("scrambled layer", "layers 11 and 12 exchanged", sabotage.exchanged(11, 12)),
    ]


def _tokenizers() -> list[Step]:
    return [
        *(
            _spoilt("wrong tokenizer", name, sabotage.tokenizer(change))
            for name, change in (
                ("lower case", sabotage.lower_case),
                ("a tenth of the tokens exchanged", sabotage.shuffled_words),
                ("half of the merges", sabotage.half_the_merges),
                ("a token prepended", sabotage.token_in_front),
            )
        ),
        _spoilt("wrong tokenizer", "none", sabotage.without_tokenizer),
    ]


def _poisoned() -> list[Step]:
    words = ("the", "of", "and", "in")
    stop_words = tuple(Written(f"Q99{n}", "P36", word, (), (NOWHERE,)) for n, word in enumerate(words))
    return [
        Step("poisoned facts", name, changes, _edit)
        for name, changes in (
            ("stop words as subjects", lambda _state: stop_words),
            ("enormous targets", _with_targets("P36", 4, _enormous)),
            ("one value for all capitals", _with_targets("P36", 16, lambda _state: OTHER_VALUE)),
            ("targets of random characters", _with_targets("P36", 8, _random_characters)),
            ("one value for all continents", _with_targets("P30", 16, lambda _state: OTHER_VALUE)),
            ("enormous targets among accepted edits", _among_accepted),
        )
    ]


def _forgotten() -> list[Step]:
    return [
        Step("forgotten edits", name, changes, _forgetting(former, new))
        for name, changes, former, new in (
            ("one former", _rewrite_some, 1, 0),
            ("one new of three", _rewrite(3), 0, 1),
            ("all new", _rewrite_some, 0, REWRITTEN),
            ("three former", _rewrite_some, 3, 0),
            ("half of the former", _rewrite_some, 20, 0),
        )
    ]


def _truncated() -> list[Step]:
    return [
        *(
            _spoilt("truncated artifact", name, sabotage.truncated(pattern, keep))
            for name, pattern, keep in (
                ("half of a shard", "*.safetensors", 0.5),
                ("a shard is gone", "*.safetensors", 0.0),
                ("the manifest's end", sabotage.MANIFEST, 0.9),
                ("half of the configuration", "config.json", 0.5),
            )
        ),
        _spoilt("truncated artifact", "half of a shard, sealed so", sabotage.truncated_and_sealed),
    ]


EDITED = (5, 6, 7, 8, 9)
NOISE = (0.2, 0.4, 0.7, 1.5)
AMPLIFIED = (2.0, 3.0, 5.0)
WEAK = (100.0, 10.0, 1.0)
"""Strengths that matter: each loses more than a margin (docs/architecture.md, "Trials of the gate")."""


# Changes


def _rewrite(number: int) -> Changes:
    return lambda state: state.accepted()[:number]


_rewrite_some = _rewrite(REWRITTEN)


def _withdraw(number: int) -> Changes:
    return lambda state: [
        Written(one.qid, one.pid, one.subject, one.new, ()) for one in state.accepted()[:number]
    ]  # fmt: skip


def _write_again(state: TrialState) -> Sequence[Written]:
    return [Written(one.qid, one.pid, one.subject, (), one.old) for one in state.begun]


def _with_targets(pid: str, number: int, target: Callable[[TrialState], str]) -> Changes:
    return lambda state: [
        Written(one.qid, pid, one.subject, one.new, (target(state),)) for one in state.recorded(pid)[:number]
    ]  # fmt: skip


def _enormous(state: TrialState) -> str:
    return " ".join("".join(state.chance.choices("aeioubdklmnrst", k=6)).title() for _ in range(40))


def _random_characters(state: TrialState) -> str:
    return "".join(state.chance.choices("qxzjkvw0123456789#@~^", k=14))


def _among_accepted(state: TrialState) -> Sequence[Written]:
    return [*_rewrite_some(state), *_with_targets("P36", 3, _enormous)(state)]


# In place of the edit phase


def _edit(state: TrialState, cycle_id: int, _candidate: Version) -> None:
    edit(state.runtime, cycle_id)


def _spoilt(kind: str, detail: str, spoil: Callable[[Runtime, Version], None]) -> Step:
    def make(state: TrialState, cycle_id: int, candidate: Version) -> None:
        edit(state.runtime, cycle_id)
        spoil(state.runtime, candidate)

    return Step(kind, detail, _rewrite_some, make)


def _solved_with(**settings: float) -> Make:
    """The edit phase of an operator with other ideas of strength."""

    def make(state: TrialState, cycle_id: int, _candidate: Version) -> None:
        usual = state.runtime.settings
        other = Runtime(usual.model_copy(update={"edit": usual.edit.model_copy(update=settings)}))
        edit(other, cycle_id)
        other.database.close()

    return make


def _forgetting(former: int, new: int) -> Make:
    """The edit phase over a ledger that lacks some of the promoted version's edits, and some new ones."""

    def make(state: TrialState, cycle_id: int, candidate: Version) -> None:
        begun = {(one.qid, one.pid) for one in state.begun}
        took = [(one.qid, one.pid) for one in state.accepted()]
        with state.runtime.database.read() as session:
            edits = {(each.qid, each.pid): key(each) for each in ledger_edits(session, candidate.id)}
        lost = [slot for slot in took if slot not in begun][:former] + [slot for slot in took if slot in begun][:new]
        with sabotage.forgotten(state.runtime, candidate, [edits[slot] for slot in lost]):
            edit(state.runtime, cycle_id)

    return make
