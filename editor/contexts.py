"""Context templates: short sampled prefixes under which an edit must also hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editor.ordinary_text import sample

if TYPE_CHECKING:
    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

BARE = "{}"
STARTS = ("The history of", "In the early", "According to", "She studied at", "During the war")
"""Beginnings of the prefixes. The reference's single words ("The", "Because") lead chat models into lists and code, and
value vectors optimised behind such a prefix carry over to other wordings worse (measured in docs/architecture.md)."""

LIKELIEST = 5
"""As in the reference, a prefix is drawn from the likeliest tokens only: it must read as language."""


def context_templates(language_model: LanguageModel, settings: MemitSettings) -> tuple[str, ...]:
    """The bare template and ``settings.contexts`` sampled ones such as ``"Therefore, we went to. {}"``."""
    if settings.contexts == 0:
        return (BARE,)
    starts = [STARTS[i % len(STARTS)] for i in range(settings.contexts)]
    sampled = sample(language_model, starts, settings.context_tokens, seed=settings.seed, likeliest=LIKELIEST)
    prefixes = (" ".join(language_model.tokenizer.decode(text).split()) for text in sampled)
    return (BARE, *(prefix.replace("{", " ").replace("}", " ") + ". {}" for prefix in prefixes))
