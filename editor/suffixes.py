"""A batch's texts from the subject's last token on, with everything before it in a store of keys and values.

Nothing here depends on delta, so it is computed once per batch: the contexts' own tokens once for all facts, the
tokens between context and subject once per text, and blocks up to L once over the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.packing import Packing, Segment
from editor.requests import EditRequest, TokenRow, common_beginning, essence_row, rewrite_rows
from editor.stack import KeyValues, Prefix, Stack, token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.language_model import LanguageModel


@dataclass(frozen=True)
class Suffix:
    """One text from the subject's last token on.

    Attributes:
        unit: whose delta is added at its first token.
        request: the fact it states.
        place: its number among the fact's texts, 0 for the bare prompt; -1 for the essence prompt.
        segment: its tokens, and those before in the store.
        start: where its hidden states begin in :attr:`Suffixes.hidden`.
        first: the place in the segment that predicts the first target token.
        target: token ids of the target; none for the essence prompt.
    """

    unit: int
    request: int
    place: int
    segment: Segment
    start: int
    first: int
    target: tuple[int, ...]


@dataclass(frozen=True)
class Suffixes:
    """All texts of a batch: ``hidden`` ``[size, d]`` after block L, and the keys and values of what precedes them."""

    texts: list[Suffix]
    hidden: Tensor
    store: KeyValues


@dataclass(frozen=True)
class _Row:
    """One text on its way: the first ``shared`` tokens are those of its context."""

    unit: int
    request: int
    place: int
    tokens: TokenRow
    context: int
    shared: int
    end: int  # tokens behind are only predicted


class SuffixReader:
    """Reads texts for one model and one list of contexts.

    Args:
        language_model: the model; its blocks up to L are used.
        upper: the model whose blocks above L are used.
        contexts: context templates with one ``{}``, the first bare.
        top: one past the last edited block L.
    """

    def __init__(self, language_model: LanguageModel, upper: LanguageModel, contexts: Sequence[str], top: int) -> None:
        self._lm = language_model
        self._contexts = tuple(contexts)
        leads = [context.split("{}", 1)[0] for context in self._contexts]
        self._context_ids = [tuple(language_model.tokenizer(lead)["input_ids"]) for lead in leads]
        self._lower = Stack(language_model.model, language_model.architecture, 0, top, from_tokens=True)
        self._upper = Stack(upper.model, upper.architecture, top, upper.depth, from_tokens=False)
        self._upper_dtype = upper.model.get_output_embeddings().weight.dtype

    @torch.no_grad()
    def __call__(self, units: Sequence[Sequence[tuple[int, EditRequest]]]) -> Suffixes:
        """The texts of some units, each a list of numbered requests about one subject."""
        rows = [row for number, unit in enumerate(units) for row in self._rows(number, unit)]
        store, before = self._store(rows)
        segments = [Segment(row.end - row.tokens.subject, prefix) for row, prefix in zip(rows, before, strict=True)]
        packing = Packing(segments, self._lm.device)
        ids = token_ids([row.tokens.ids[row.tokens.subject : row.end] for row in rows], packing, self._lm.device)
        hidden = self._lower(ids, packing, Prefix(store, packing, 0, self._lower.last))
        store.forget(range(self._lower.last))
        texts = [
            Suffix(
                row.unit, row.request, row.place, segment, start,
                row.tokens.target - 1 - row.tokens.subject,
                row.tokens.ids[row.tokens.target :] if row.place >= 0 else (),
            )
            for row, segment, start in zip(rows, segments, packing.starts, strict=True)
        ]  # fmt: skip
        return Suffixes(texts, hidden, store)

    def _rows(self, number: int, unit: Sequence[tuple[int, EditRequest]]) -> list[_Row]:
        rows = []
        for index, request in unit:
            for place, tokens in enumerate(rewrite_rows(self._lm.tokenizer, self._contexts, request)):
                context = place if place < len(self._contexts) else 0
                shared = common_beginning(self._context_ids[context], tokens.ids[: tokens.subject])
                # The last target token is only predicted, never read.
                rows.append(_Row(number, index, place, tokens, context, shared, len(tokens.ids) - 1))
        # One KL for the subject. It is taken at the subject's last token, so nothing after it matters.
        index, request = unit[0]
        tokens = essence_row(self._lm.tokenizer, request.subject)
        shared = common_beginning(self._context_ids[0], tokens.ids[: tokens.subject])
        return [*rows, _Row(number, index, -1, tokens, 0, shared, tokens.subject + 1)]

    def _store(self, rows: Sequence[_Row]) -> tuple[KeyValues, list[tuple[int, ...]]]:
        """Keys and values of all tokens before the subjects' last, and where in them each row's are."""
        store = KeyValues()
        # Whole contexts, though a text may share less: what a token comes to must not depend on other texts.
        known, count = self._read(store, [((), ids) for ids in self._context_ids], 0)
        leads = [known[row.context][: row.shared] for row in rows]
        middles = [
            (lead, row.tokens.ids[row.shared : row.tokens.subject]) for lead, row in zip(leads, rows, strict=True)
        ]
        between, _ = self._read(store, middles, count)
        return store, [(*lead, *middle) for lead, middle in zip(leads, between, strict=True)]

    def _read(
        self, store: KeyValues, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], count: int
    ) -> tuple[list[tuple[int, ...]], int]:
        """Run texts (earlier tokens in the store, ids) through all blocks; their places in the store, and its size."""
        places: list[tuple[int, ...]] = []
        end = count
        for _, ids in texts:
            places.append(tuple(range(end, end + len(ids))))
            end += len(ids)
        filled = [(prefix, ids) for prefix, ids in texts if ids]
        if filled:
            packing = Packing([Segment(len(ids), prefix) for prefix, ids in filled], self._lm.device)
            flat = token_ids([ids for _, ids in filled], packing, self._lm.device)
            hidden = self._lower(flat, packing, Prefix(store, packing, 0, self._lower.last), store)
            prefix = Prefix(store, packing, self._upper.first, self._upper.last)
            self._upper(hidden.to(self._upper_dtype), packing, prefix, store)
        return places, end
