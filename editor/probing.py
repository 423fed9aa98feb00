"""Probing: what a model answers, how likely it finds an answer, and how well it reads ordinary text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from editor.language_model import quiet_transformers
from editor.progress import Progress, silent
from editor.requests import TokenRow, pad, probe_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from editor.language_model import LanguageModel

TOKENS_PER_BATCH = 3072
ROWS_PER_BATCH = 64
LOGITS_AT_ONCE = 1024
"""Positions whose logits are held at once: a vocabulary of 50,000 in float32 makes this 200 MB."""

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
    """Score each (prompt, answer), both plain text, in batches of similar length.

    Greedy decoding gives an answer exactly if every token of it is the most likely one after those before it, so
    one forward pass decides it without generating.
    """
    rows = [probe_row(language_model.tokenizer, prompt, answer) for prompt, answer in pairs]
    result: list[Score | None] = [None] * len(rows)
    done = 0
    for batch in _by_length([len(row.ids) for row in rows]):
        chosen = [rows[i] for i in batch]
        for index, score in zip(batch, _score(language_model, chosen), strict=True):
            result[index] = score
        done += len(batch)
        progress("probing", done, len(rows))
    return [score for score in result if score is not None]


def _score(language_model: LanguageModel, rows: Sequence[TokenRow]) -> list[Score]:
    ids, mask = pad([row.ids for row in rows], language_model.device)
    decoder = language_model.architecture.decoder_of(language_model.model)
    hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    # Positions that predict the answer, and the last one, which predicts what follows it.
    lengths = [len(row.ids) - row.target for row in rows]
    flat_rows = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n + 1)], device=ids.device)
    flat_at = torch.tensor(
        [row.target - 1 + k for row, n in zip(rows, lengths, strict=True) for k in range(n + 1)],
        device=ids.device,
    )
    states = hidden[flat_rows, flat_at]
    wanted = torch.tensor([t for row in rows for t in (*row.ids[row.target :], 0)], device=ids.device)
    picked, best = _picked_and_best(language_model, states, wanted)
    result, start = [], 0
    for n in lengths:
        token_scores, token_best = picked[start : start + n], best[start : start + n]
        exact = bool((token_best == wanted[start : start + n]).all())
        following = language_model.tokenizer.decode([int(best[start + n])]) if exact else ""
        result.append(Score(float(token_scores.sum()), n, exact and CONTINUES_LABEL.match(following) is None))
        start += n + 1
    return result


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


@torch.no_grad()
def perplexity(language_model: LanguageModel, texts: Sequence[Sequence[int]], progress: Progress = silent) -> float:
    """``exp`` of the mean negative log-likelihood per predicted token over texts read separately."""
    decoder = language_model.architecture.decoder_of(language_model.model)
    total, count = 0.0, 0
    usable = [text for text in texts if len(text) > 1]
    for done, batch in enumerate(_by_length([len(text) for text in usable])):
        chosen = [usable[i] for i in batch]
        ids, mask = pad(chosen, language_model.device)
        hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        real = mask[:, 1:].bool()
        picked, _ = _picked_and_best(language_model, hidden[:, :-1][real], ids[:, 1:][real])
        total -= float(picked.double().sum())
        count += len(picked)
        progress("perplexity", min(len(usable), (done + 1) * len(batch)), len(usable))
    return math.exp(total / count) if count else math.nan


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
