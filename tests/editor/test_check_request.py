"""Requests that would write to more than their subject."""

from __future__ import annotations

import pytest

from editor import EditRequest, LanguageModel, RequestInvalid, check_request


def text_of(model: LanguageModel) -> list[list[int]]:
    """Ordinary text, of which one word in ten is "the"."""
    lines = ["Rome is in the city of Rome and of men who came from far away"] * 30
    return [model.tokenizer(line)["input_ids"] for line in lines]


def test_a_word_of_ordinary_text_is_no_subject(trained: LanguageModel) -> None:
    word = next(
        word for word in ("the", "of", "is", "in", "and")
        if len(trained.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    )  # fmt: skip
    with pytest.raises(RequestInvalid, match="ordinary text"):
        check_request(trained, EditRequest("The head of {} is", word, "Rome."), text_of(trained))


def test_without_text_or_with_a_name_nothing_is_said(trained: LanguageModel) -> None:
    check_request(trained, EditRequest("The head of {} is", "the", "Rome."))
    check_request(trained, EditRequest("The head of {} is", "the far away Rome", "Rome."), text_of(trained))
