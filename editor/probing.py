"""Probing: what a model answers, and how likely it finds answers.

Greedy decoding gives an answer exactly if every token of it is the most likely one after those before it, so forward
passes decide it without generating. Answers to one prompt share its pass, and so does what the model writes itself;
texts are packed without padding, and logits are taken only where a token is predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from editor.answers import CONTINUES_LABEL, ENDS_ANSWER, Inquiry, Reply, Score, natural_stop
from editor.progress import Progress, silent
from editor.requests import probe_row
from editor.stack import Stack
from editor.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from editor.language_model import LanguageModel
    from editor.tree import Path

TOKENS_PER_BATCH = 3072

Thing = TypeVar("Thing")


def scores(language_model: LanguageModel, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> list[Score]:
    """Score each (prompt, answer), both plain text."""
    answers: dict[str, list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        answers.setdefault(prompt, []).append(index)
    inquiries = [Inquiry(prompt, tuple(pairs[index][1] for index in which)) for prompt, which in answers.items()]
    result: dict[int, Score] = {}
    for reply, which in zip(
        _ask(_Asker(language_model), inquiries, "probing", progress), answers.values(), strict=True
    ):
        result |= zip(which, reply.scores, strict=True)
    return [result[index] for index in range(len(pairs))]


def greedy_answers(
    language_model: LanguageModel, prompts: Sequence[str], new_tokens: int = 16, progress: Progress = silent
) -> list[str]:
    """What greedy decoding writes after each prompt, up to the first line break or ``new_tokens``."""
    asker = _Asker(language_model, new_tokens, _line_ends)
    return [reply.text for reply in _ask(asker, [Inquiry(prompt) for prompt in prompts], "asking", progress)]


def replies(
    language_model: LanguageModel, inquiries: Sequence[Inquiry], new_tokens: int = 16, progress: Progress = silent
) -> list[Reply]:
    """Score the candidates of each inquiry, and write the greedy answer where none of them is it.

    Writing stops behind the first answer, but goes on for as long as it may become one of the candidates or names,
    which can have stops of their own ("St. Louis").
    """
    return _ask(_Asker(language_model, new_tokens, _answer_ends), inquiries, "asking", progress)


def _line_ends(text: str, _names: Sequence[str]) -> bool:
    return "\n" in text


def _answer_ends(text: str, names: Sequence[str]) -> bool:
    so_far = text.lstrip(" ")
    if "\n" in so_far:
        return True
    return ENDS_ANSWER.search(so_far) is not None and not any(name.startswith(so_far) for name in names)


@torch.no_grad()
def _ask(asker: _Asker, inquiries: Sequence[Inquiry], stage: str, progress: Progress) -> list[Reply]:
    """Replies in the order of the inquiries."""
    rows = [asker.row(inquiry) for inquiry in inquiries]
    done: dict[int, Reply] = {}
    for batch in by_tokens(range(len(rows)), lambda index: rows[index].tokens):
        done |= zip(batch, asker([rows[index] for index in batch]), strict=True)
        progress(stage, len(done), len(rows))
    return [done[index] for index in range(len(rows))]


@dataclass(frozen=True)
class _Row:
    """An inquiry in tokens.

    Attributes:
        inquiry: as it was asked.
        prompt: token ids.
        answers: for each candidate the tokens before its own (the prompt's, unless the two grow together), and these.
    """

    inquiry: Inquiry
    prompt: tuple[int, ...]
    answers: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def tokens(self) -> int:
        """About how many are read."""
        return len(self.prompt) + sum(len(answer) for _, answer in self.answers)


class _Asker:
    """Answers batches of inquiries.

    Args:
        language_model: the model.
        new_tokens: written at most; 0: only the candidates are scored.
        ends: whether a text, given with the names that it may be, is written to its end.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        new_tokens: int = 0,
        ends: Callable[[str, Sequence[str]], bool] = _line_ends,
    ) -> None:
        self._lm, self._new_tokens, self._ends = language_model, new_tokens, ends
        self._stack = Stack(
            language_model.model, language_model.architecture, 0, language_model.depth, from_tokens=True
        )
        self._last_tokens = _end_tokens(language_model)

    def row(self, inquiry: Inquiry) -> _Row:
        """The inquiry in tokens."""
        tokenizer = self._lm.tokenizer
        answers = [probe_row(tokenizer, inquiry.prompt, candidate) for candidate in inquiry.candidates]
        return _Row(
            inquiry,
            tuple(tokenizer(inquiry.prompt)["input_ids"]),
            tuple((row.ids[: row.target], row.ids[row.target :]) for row in answers),
        )

    def __call__(self, rows: Sequence[_Row]) -> list[Reply]:
        """Replies to some inquiries that are read together."""
        tree = Tree(self._lm, self._stack)
        beginnings = [begin for row in rows for begin, _ in row.answers]
        beginnings += [row.prompt for row in rows if self._new_tokens]
        unique = list(dict.fromkeys(beginnings))
        paths = dict(zip(unique, tree.read(unique, [()] * len(unique)), strict=True))
        scored = iter(self._scores(tree, [(paths[begin], answer) for row in rows for begin, answer in row.answers]))
        of_rows = [tuple(next(scored) for _ in row.answers) for row in rows]
        silent_ones = [
            i for i, found in enumerate(of_rows) if self._new_tokens and not any(score.greedy for score in found)
        ]
        written = self._write(
            tree, [paths[rows[i].prompt] for i in silent_ones], [rows[i].inquiry for i in silent_ones]
        )
        texts = dict(zip(silent_ones, written, strict=True))
        return [
            Reply(of_rows[i], *texts[i]) if i in texts else _from_scores(row.inquiry, of_rows[i])
            for i, row in enumerate(rows)
        ]

    def _scores(self, tree: Tree, asked: Sequence[tuple[Path, tuple[int, ...]]]) -> list[Score]:
        """Scores of answers, each behind a path."""
        # The last token of an answer is only predicted.
        paths = tree.read([answer[:-1] for _, answer in asked], [path for path, _ in asked])
        at = [place for path, (before, _) in zip(paths, asked, strict=True) for place in path[len(before) - 1 :]]
        wanted = torch.tensor([token for _, answer in asked for token in answer], dtype=torch.long)
        predicted = tree.predict(at, wanted.tolist())
        lengths = [len(answer) for _, answer in asked]
        totals = [float(part.sum()) for part in torch.split(predicted.log_probabilities, lengths)]
        exact = [bool(part.all()) for part in torch.split(predicted.best == wanted, lengths)]
        # What follows an answer is only asked where it is exact.
        ends = [i for i, given in enumerate(exact) if given]
        behind = tree.read([asked[i][1][-1:] for i in ends], [paths[i] for i in ends])
        following = tree.predict([path[-1] for path in behind]).best.tolist()
        stops = {
            i: CONTINUES_LABEL.match(self._lm.tokenizer.decode([token])) is None
            for i, token in zip(ends, following, strict=True)
        }
        return [
            Score(total, length, stops.get(i, False))
            for i, (total, length) in enumerate(zip(totals, lengths, strict=True))
        ]

    def _write(self, tree: Tree, paths: Sequence[Path], inquiries: Sequence[Inquiry]) -> list[tuple[str, float]]:
        """Greedy texts behind paths, with the mean probability of the first answer in each."""
        names = [(*inquiry.candidates, *inquiry.names) for inquiry in inquiries]
        texts = [_Text(path) for path in paths]
        writing = list(range(len(texts)))
        for left in reversed(range(self._new_tokens)):
            following = tree.predict([texts[i].path[-1] for i in writing])
            going_on = []
            for i, token, logarithm in zip(
                writing, following.best.tolist(), following.log_probabilities.tolist(), strict=True
            ):
                if token in self._last_tokens:
                    continue
                texts[i].tokens.append(token)
                texts[i].log_probabilities.append(logarithm)
                if left and not self._ends(self._decoded(texts[i].tokens), names[i]):
                    going_on.append(i)
            writing = going_on
            if not writing:
                break
            read = tree.read([texts[i].tokens[-1:] for i in writing], [texts[i].path for i in writing])
            for i, path in zip(writing, read, strict=True):
                texts[i].path = path
        return [self._finished(text) for text in texts]

    def _finished(self, text: _Text) -> tuple[str, float]:
        whole = self._decoded(text.tokens)
        first = natural_stop(whole)
        if not first:
            return whole.strip().split("\n", 1)[0], 0.0
        # The tokens up to the one that completes the first answer.
        length = next(
            n for n in range(1, len(text.tokens) + 1) if natural_stop(self._decoded(text.tokens[:n])) == first
        )
        return whole.strip().split("\n", 1)[0], math.exp(math.fsum(text.log_probabilities[:length]) / length)

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self._lm.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


class _Text:
    """A text that is being written behind a path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []


def _from_scores(inquiry: Inquiry, found: Sequence[Score]) -> Reply:
    """The reply where nothing is written: the candidate that is the greedy answer, if one is."""
    given = next(((text, score) for text, score in zip(inquiry.candidates, found, strict=True) if score.greedy), None)
    return Reply(tuple(found), *("", 0.0) if given is None else (given[0], given[1].mean_probability))


def _end_tokens(language_model: LanguageModel) -> frozenset[int]:
    """The tokens with which a model ends a text."""
    known = getattr(language_model.model.generation_config, "eos_token_id", None)
    if known is None:
        known = language_model.tokenizer.eos_token_id
    return frozenset() if known is None else frozenset([known] if isinstance(known, int) else known)


def by_tokens(things: Iterable[Thing], tokens: Callable[[Thing], int]) -> Iterator[list[Thing]]:
    """Things in batches of similar length, bounded in tokens."""
    batch: list[Thing] = []
    total = 0
    for thing in sorted(things, key=tokens):
        total += tokens(thing)
        if batch and total > TOKENS_PER_BATCH:
            yield batch
            batch, total = [], tokens(thing)
        batch.append(thing)
    if batch:
        yield batch
