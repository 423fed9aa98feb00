"""Respondents: versions that are asked, read and write. What is known of a version is not asked again."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from daemon.probes import Answers, Kind, Probe, answer, explained
from daemon.recall import Recall
from editor import LanguageModel, Reading, continuations, readings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.recall import Answer
    from daemon.runtime import Runtime
    from store.tables import Version

SEED = 0
"""Of the texts that versions write; the same for all of them."""


class Respondent:
    """A version that is measured. Its model is loaded only when there is something that it was not asked before.

    Args:
        runtime: loads models and knows the settings.
        version: with a sealed artifact.
        around: surroundings in which it is asked, as :func:`daemon.recall.surroundings` gives them.
        anew: ask everything, whatever is known: the gate's candidate is measured as it lies on disk.
    """

    def __init__(self, runtime: Runtime, version: Version, around: str, *, anew: bool = False) -> None:
        self._runtime = runtime
        self._version = version
        self._around = around
        self._anew = anew
        self._answer_tokens = runtime.settings.diff.answer_tokens

    @property
    def model(self) -> LanguageModel:
        """The version's model, loaded where it is not.

        Raises:
            ArtifactCorrupt, ModelUnavailable: it cannot be.
        """
        return self._runtime.model(self._version)

    @cached_property
    def _recall(self) -> Recall:
        directory = self._runtime.settings.state.directory / "cache" / "measurements"
        return Recall(directory, self._version.digest or "", self._around)

    def answer(self, probes: Sequence[Probe]) -> Answers:
        """Whether it passes each probe, and what it wrote for those of which its own words are compared."""
        known: list[Answer | None] = [None] * len(probes)
        if not self._anew:
            known = self._recall.answers(probes, self._answer_tokens)
        missing = [i for i, each in enumerate(known) if each is None]
        if missing:
            asked = [probes[i] for i in missing]
            got = answer(self.model, asked, self._answer_tokens, self._runtime.progress)
            new: list[Answer] = [(ok, got.texts.get(i)) for i, ok in enumerate(got.passed)]
            self._recall.keep_answers(asked, self._answer_tokens, new)
            for i, each in zip(missing, new, strict=True):
                known[i] = each
        results = [each for each in known if each is not None]
        texts = {i: text for i, (_, text) in enumerate(results) if text is not None}
        return Answers([ok for ok, _ in results], texts)

    def own_words(self, prompts: Sequence[str]) -> list[str]:
        """The first answer that it gives to each prompt."""
        texts = self.answer([Probe(Kind.REVERSAL, "", "", prompt, "") for prompt in prompts]).texts
        return [texts[i] for i in range(len(prompts))]

    def explained(self, probes: Sequence[Probe], answers: Answers) -> list[str]:
        """An answer to show for every probe: its own words where it failed (see :func:`daemon.probes.explained`)."""
        return explained(self.model, probes, answers, self._answer_tokens, self._runtime.progress)

    def readings(self, texts: Sequence[Sequence[int]], base: LanguageModel | None = None) -> list[Reading]:
        """How it reads each text; with the divergence from the base where that is given and nothing is known yet."""
        read = None if self._anew else self._recall.readings(texts)
        if read is None:
            read = readings(self.model, texts, base, self._runtime.progress)
            self._recall.keep_readings(texts, read)
        return read

    def continuations(self, openings: Sequence[str]) -> list[list[int]]:
        """What it writes behind each opening, as token ids."""
        tokens = self._runtime.settings.gate.fluency_tokens
        written = None if self._anew else self._recall.texts(openings, tokens, SEED)
        if written is None:
            written = continuations(self.model, openings, tokens, SEED, self._runtime.progress)
            self._recall.keep_texts(openings, tokens, SEED, written)
        return written
