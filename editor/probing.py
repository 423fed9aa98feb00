"""Probing: what a model answers, and how likely it finds an answer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from editor.language_model import quiet_transformers
from editor.packing import Packing, Segment
from editor.progress import Progress, silent
from editor.requests import probe_row
from editor.stack import KeyValues, Prefix, Stack, token_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from editor.language_model import LanguageModel

TOKENS_PER_BATCH = 3072
ROWS_PER_BATCH = 64
LOGITS_AT_ONCE = 128
"""Positions whose logits are held at once: 26 MB for 50,000 words in float32, which the allocator reuses."""

ENDS_ANSWER = re.compile(r"[\n.,;:!?(\[\"“”]|<\|")
CONTINUES_LABEL = re.compile(r"^(\w|[-'’]\w|\s+[A-Z0-9])")
"""What may not follow a label: the word goes on, or another capitalised word makes it a longer name."""


@dataclass(frozen=True)
class Score:
    """How a model takes one answer to one prompt.

    Attributes:
        log_probability: of the whole answer, in nats.
        tokens: of the answer.
        greedy: whether greedy decoding gives exactly this answer and then stops naturally.
    """

    log_probability: float
    tokens: int
    greedy: bool

    @property
    def mean_probability(self) -> float:
        """Geometric mean probability per token, 0 to 1."""
        return math.exp(self.log_probability / self.tokens)


def is_answer(text: str, label: str) -> bool:
    """Whether generated text answers with a label and then stops naturally (it does not go on as a longer name)."""
    text = text.lstrip()
    return text.startswith(label) and CONTINUES_LABEL.match(text[len(label) :]) is None


def natural_stop(text: str) -> str:
    """Generated text up to where a first answer ends."""
    return ENDS_ANSWER.split(text.strip(), maxsplit=1)[0].strip()


@torch.no_grad()
def scores(language_model: LanguageModel, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> list[Score]:
    """Score each (prompt, answer), both plain text.

    Greedy decoding gives an answer exactly if every token of it is the most likely one after those before it, so
    forward passes decide it without generating. Answers to one prompt share its pass, texts are packed without padding,
    logits are taken only where an answer is predicted, and what follows an answer is only asked where it is exact.
    """
    groups: dict[tuple[int, ...], list[_Asked]] = {}
    for index, (prompt, answer) in enumerate(pairs):
        row = probe_row(language_model.tokenizer, prompt, answer)
        groups.setdefault(row.ids[: row.target], []).append(_Asked(index, row.ids[row.target :]))
    result: dict[int, Score] = {}
    scorer = _Scorer(language_model)
    for batch in by_tokens(groups):
        result |= scorer([(ids, groups[ids]) for ids in batch])
        progress("probing", len(result), len(pairs))
    return [result[index] for index in range(len(pairs))]


@dataclass(frozen=True)
class _Asked:
    """An answer's tokens, and the number of the pair it belongs to."""

    index: int
    answer: tuple[int, ...]


class _Scorer:
    """Scores answers behind prompts that are read once."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._lm = language_model
        self._stack = Stack(
            language_model.model, language_model.architecture, 0, language_model.depth, from_tokens=True
        )

    def __call__(self, groups: Sequence[tuple[tuple[int, ...], Sequence[_Asked]]]) -> dict[int, Score]:
        """Scores by number for prompts with the answers to them."""
        store = KeyValues()
        prompts = [ids for ids, _ in groups]
        states, starts = self._read(store, prompts, [()] * len(prompts))
        asked = [(group, item) for group, (_, items) in enumerate(groups) for item in items]
        places = [tuple(range(start, start + len(ids))) for ids, start in zip(prompts, starts, strict=True)]
        # The last token of an answer is only predicted.
        heads = [item.answer[:-1] for _, item in asked]
        more, more_starts = self._read(store, heads, [places[group] for group, _ in asked])
        at = []
        for (group, _), head, start in zip(asked, heads, more_starts, strict=True):
            at += [places[group][-1], *range(len(states) + start, len(states) + start + len(head))]
        wanted = torch.tensor([token for _, item in asked for token in item.answer], device=states.device)
        predicting = torch.cat([states, more])[torch.tensor(at, device=states.device)]
        picked, best = _picked_and_best(self._lm, predicting, wanted)
        lengths = [len(item.answer) for _, item in asked]
        total = [float(part.sum()) for part in torch.split(picked, lengths)]
        exact = [bool(part.all()) for part in torch.split(best == wanted.cpu(), lengths)]
        own = [
            (*places[group], *range(len(states) + start, len(states) + start + len(head)))
            for (group, _), head, start in zip(asked, heads, more_starts, strict=True)
        ]
        stops = self._stops(store, [(item.answer[-1], own[i]) for i, (_, item) in enumerate(asked) if exact[i]])
        return {item.index: Score(total[i], lengths[i], exact[i] and next(stops)) for i, (_, item) in enumerate(asked)}

    def _stops(self, store: KeyValues, ends: Sequence[tuple[int, tuple[int, ...]]]) -> Iterator[bool]:
        """Whether a greedy answer stops naturally behind its last token, given with the places of those before it."""
        states, starts = self._read(store, [(token,) for token, _ in ends], [places for _, places in ends])
        if ends:
            following = states[torch.tensor(starts, device=states.device)]
            _, best = _picked_and_best(
                self._lm, following, torch.zeros(len(ends), dtype=torch.long, device=states.device)
            )
            for token in best.tolist():
                yield CONTINUES_LABEL.match(self._lm.tokenizer.decode([token])) is None

    def _read(
        self, store: KeyValues, texts: Sequence[tuple[int, ...]], prefixes: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, list[int]]:
        """Final hidden states of texts (some may be empty) behind what the store has, and where each text's begin."""
        segments = [Segment(len(ids), prefix) for ids, prefix in zip(texts, prefixes, strict=True) if ids]
        packing = Packing(segments, self._lm.device)
        starts = iter(packing.starts)
        begins = [next(starts) if ids else 0 for ids in texts]
        if not segments:
            return torch.empty(0, self._lm.model.config.get_text_config().hidden_size, device=self._lm.device), begins
        ids = token_ids([ids for ids in texts if ids], packing, self._lm.device)
        hidden = self._stack(ids, packing, Prefix(store, packing, 0, self._lm.depth), store)
        return hidden[: packing.tokens], begins


def _picked_and_best(language_model: LanguageModel, states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each wanted token and the most likely token, both ``[positions]`` on the CPU."""
    picked, best = [], []
    for part, tokens in zip(torch.split(states, LOGITS_AT_ONCE), torch.split(wanted, LOGITS_AT_ONCE), strict=True):
        logits = language_model.head(part).float()
        picked.append(logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(1))
        best.append(logits.argmax(1))
    return torch.cat(picked).cpu(), torch.cat(best).cpu()


class _StopAtLineBreak(StoppingCriteria):  # type: ignore[misc]
    """A row is done once it has written a line break (``Ċ`` in byte-level vocabularies)."""

    def __init__(self, language_model: LanguageModel) -> None:
        vocabulary = language_model.tokenizer.convert_ids_to_tokens(range(len(language_model.tokenizer)))
        ends = [i for i, token in enumerate(vocabulary) if token and ("\n" in token or "Ċ" in token)]
        self._ends = torch.tensor(ends, device=language_model.device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self._ends)


@torch.no_grad()
def greedy_answers(
    language_model: LanguageModel,
    prompts: Sequence[str],
    new_tokens: int = 16,
    progress: Progress = silent,
) -> list[str]:
    """What greedy decoding writes after each prompt, up to the first line break or ``new_tokens``."""
    tokenizer = language_model.tokenizer
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    answers = [""] * len(rows)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    stop = StoppingCriteriaList([_StopAtLineBreak(language_model)])
    done = 0
    for batch in _by_length([len(row) for row in rows]):
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([[fill] * (width - len(rows[i])) + rows[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in batch])
        with quiet_transformers():
            out = language_model.model.generate(
                input_ids=ids.to(language_model.device), attention_mask=mask.to(language_model.device),
                max_new_tokens=new_tokens, do_sample=False, stopping_criteria=stop, pad_token_id=fill,
            )  # fmt: skip
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        for index, text in zip(batch, texts, strict=True):
            answers[index] = text.strip().split("\n", 1)[0]
        done += len(batch)
        progress("asking", done, len(rows))
    return answers


def _by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of similar length, bounded in rows and padded tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) >= ROWS_PER_BATCH or (len(batch) + 1) * lengths[index] > TOKENS_PER_BATCH):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def by_tokens(texts: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Texts in batches of similar length, bounded in tokens."""
    batch: list[tuple[int, ...]] = []
    tokens = 0
    for text in sorted(texts, key=lambda text: (len(text), text)):
        tokens += len(text)
        if batch and tokens > TOKENS_PER_BATCH:
            yield batch
            batch, tokens = [], len(text)
        batch.append(text)
    if batch:
        yield batch
