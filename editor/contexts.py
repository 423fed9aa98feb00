"""Context templates: short sampled prefixes under which an edit must also hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editor.ordinary_text import sample

if TYPE_CHECKING:
    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

BARE = "{}"
STARTS = ("The", "Therefore", "Because", "I", "You")
"""The reference implementation's starts of sampled prefixes."""


def context_templates(language_model: LanguageModel, settings: MemitSettings) -> tuple[str, ...]:
    """The bare template and ``settings.contexts`` sampled ones such as ``"Therefore, we went to. {}"``."""
    if settings.contexts == 0:
        return (BARE,)
    starts = [STARTS[i % len(STARTS)] for i in range(settings.contexts)]
    sampled = sample(language_model, starts, settings.context_tokens, seed=settings.seed)
    prefixes = (" ".join(language_model.tokenizer.decode(text).split()) for text in sampled)
    return (BARE, *(prefix.replace("{", " ").replace("}", " ") + ". {}" for prefix in prefixes))
