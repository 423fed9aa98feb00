"""Ask: the same words to several versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.errors import NothingPromoted, NotPossible
from editor import greedy_answers
from store.ledger import get_version, promoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.runtime import Runtime


def ask(runtime: Runtime, prompt: str, version_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Each version's greedy continuation of the prompt; without versions, the promoted one's.

    Raises:
        NotPossible: the prompt is empty.
        UnknownVersion: a version is not recorded.
        ArtifactCorrupt, ModelUnavailable: a version cannot be loaded.
    """
    if not prompt:
        raise NotPossible("the prompt is empty: give the beginning of a text")
    with runtime.database.read() as session:
        present = promoted(session)
        if present is None:
            raise NothingPromoted("no version exists yet: run `factsyncd once` first")
        asked = [get_version(session, version_id) for version_id in version_ids] or [present]
    return [
        {
            "version": version.id,
            "state": version.state.value,
            "prompt": prompt,
            "answer": greedy_answers(
                runtime.model(version), [prompt], runtime.settings.diff.answer_tokens, runtime.progress
            )[0],
        }
        for version in asked
    ]
