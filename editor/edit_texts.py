"""The texts of an insertion, packed, on their way through the edited blocks.

Texts that begin with the same context share its tokens: they are run once, and the rest attends to them. A text's
results do not depend on which others it is packed with (editor/packing.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.covariance import KeyRecorder
from editor.packing import Packing, Segment
from editor.requests import TokenRow, common_beginning
from editor.stack import KeyValues, Prefix, Stack, token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.language_model import LanguageModel

TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Line:
    """One text: its tokens, and the context it begins with."""

    row: TokenRow
    context: int = 0


@dataclass
class _Packed:
    """Packed tokens: ``hidden`` [size, d] enters the next block to run, ``start`` the first edited one."""

    packing: Packing
    start: Tensor
    hidden: Tensor


@dataclass
class EditTexts:
    """Some texts without their shared beginnings.

    Attributes:
        subject: place of the subject's last token, of each text that has one.
        elsewhere: places of the tokens that resist an update.
        weight: how strongly they do.
    """

    subject: Tensor
    elsewhere: Tensor
    weight: float
    _lm: LanguageModel
    _own: _Packed
    _contexts: _Packed | None

    def rewind(self) -> None:
        """Begin again at the first edited block."""
        for packed in filter(None, (self._own, self._contexts)):
            packed.hidden = packed.start

    def keys(self, layer: int) -> tuple[Tensor, Tensor]:
        """Output ``[size, d]`` of one edited block, and what enters its down projection ``[size, d_ff]``."""
        stack = self._stack(layer, layer + 1)
        prefix, _ = self._shared(stack)
        with KeyRecorder(self._lm, [layer]) as recorder:
            out = stack(self._own.hidden, self._own.packing, prefix)
        return out, recorder.recorded[layer]

    def advance(self, first: int, last: int) -> None:
        """Go through the blocks from ``first`` to one before ``last``, with the weights as they are now."""
        stack = self._stack(first, last)
        prefix, contexts = self._shared(stack)
        self._own.hidden = stack(self._own.hidden, self._own.packing, prefix)
        if self._contexts is not None and contexts is not None:
            self._contexts.hidden = contexts

    def subjects_at(self, top: int, hidden: Tensor | None = None, first: int = 0) -> Tensor:
        """Outputs of block ``top`` at the subjects' last tokens, float64 ``[texts, d]``.

        Args:
            top: the block.
            hidden: enters the block ``first``; None for what enters the first edited one, ``first``.
            first: the first block to run; none is run where it is behind ``top``.
        """
        states = self._own.start if hidden is None else hidden
        if first <= top:
            states = self._stack(first, top + 1)(states, self._own.packing)
        return states[self.subject].double()

    def _shared(self, stack: Stack) -> tuple[Prefix | None, Tensor | None]:
        """Keys and values of the contexts in a stack's blocks, and their states behind it."""
        if self._contexts is None:
            return None, None
        store = KeyValues()
        out = stack(self._contexts.hidden, self._contexts.packing, None, store)
        return Prefix(store, self._own.packing, stack.first, stack.last), out

    def _stack(self, first: int, last: int) -> Stack:
        return Stack(self._lm.model, self._lm.architecture, first, last, from_tokens=False)


class EditTextReader:
    """Packs texts for one model.

    Args:
        language_model: the model.
        contexts: context templates with one ``{}``, the first bare.
        first: the first edited block.
    """

    def __init__(self, language_model: LanguageModel, contexts: Sequence[str], first: int) -> None:
        self._lm = language_model
        self._leads = [tuple(language_model.tokenizer(text.split("{}", 1)[0])["input_ids"]) for text in contexts]
        self._below = Stack(language_model.model, language_model.architecture, 0, first, from_tokens=True)

    def __call__(self, lines: Sequence[Line], weight: float) -> list[EditTexts]:
        """Texts in order, in packings of about :data:`TOKENS_AT_ONCE`; with a weight their tokens resist."""
        chunks: list[list[Line]] = []
        tokens = 0
        for line in lines:
            length = len(line.row.ids) - self._common(line)
            tokens += length
            if not chunks or tokens > TOKENS_AT_ONCE:
                chunks.append([])
                tokens = length
            chunks[-1].append(line)
        return [self._packed(chunk, weight) for chunk in chunks]

    def _common(self, line: Line) -> int:
        """How many tokens a text has from its context's beginning; the subject's last is never among them."""
        row = line.row
        return common_beginning(self._leads[line.context], row.ids[: row.subject] if row.subject >= 0 else ())

    def _packed(self, lines: Sequence[Line], weight: float) -> EditTexts:
        device = self._lm.device
        shared = [self._common(line) for line in lines]
        contexts, store, places = self._contexts(any(shared))
        packing = Packing(
            [
                Segment(len(line.row.ids) - common, places[line.context][:common])
                for line, common in zip(lines, shared, strict=True)
            ],
            device,
        )
        ids = token_ids([line.row.ids[common:] for line, common in zip(lines, shared, strict=True)], packing, device)
        prefix = None if store is None else Prefix(store, packing, 0, self._below.last)
        hidden = self._below(ids, packing, prefix)
        subjects = [
            start + line.row.subject - common
            for line, common, start in zip(lines, shared, packing.starts, strict=True)
            if line.row.subject >= 0
        ]
        rest = sorted(set(range(packing.tokens)) - set(subjects)) if weight else []
        subject, elsewhere = (torch.tensor(at, dtype=torch.long, device=device) for at in (subjects, rest))
        return EditTexts(subject, elsewhere, weight, self._lm, _Packed(packing, hidden, hidden), contexts)

    def _contexts(self, wanted: bool) -> tuple[_Packed | None, KeyValues | None, list[tuple[int, ...]]]:
        """All contexts' own tokens up to the first edited block, their keys and values, and their places in these."""
        if not wanted:
            return None, None, [()] * len(self._leads)
        filled = [ids for ids in self._leads if ids]
        packing = Packing([Segment(len(ids)) for ids in filled], self._lm.device)
        store = KeyValues()
        hidden = self._below(token_ids(filled, packing, self._lm.device), packing, None, store)
        starts = iter(packing.starts)
        places = [tuple(range(start := next(starts), start + len(ids))) if ids else () for ids in self._leads]
        return _Packed(packing, hidden, hidden), store, places
