"""SGLang: weights are read from a directory while it serves, and it tells the version that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.errors import PublishFailed
from daemon.publishers.client import bearer, call, encoded

if TYPE_CHECKING:
    from daemon.publishers.base import Release
    from daemon.targets import SglangTarget


class SglangPublisher:
    """Publishes with ``/update_weights_from_disk``.

    SGLang's own rollback reads the new path once more, so a failed update is followed by one to the old directory.
    """

    def __init__(self, target: SglangTarget) -> None:
        self._target = target

    def publish(self, version: Release, previous: Release | None) -> None:
        """Have the version loaded, and see that the engine says so; on failure have the previous one loaded again."""
        try:
            self._update(version)
        except PublishFailed as failure:
            if previous is not None:
                self._restore(previous, failure)
            raise

    def holds(self, version: Release) -> bool:
        """Whether the engine says that it has the version."""
        target = self._target
        info = call("GET", f"{target.url}/model_info", seconds=target.timeout_seconds, headers=bearer(target.api_key))
        return isinstance(info, dict) and info.get("weight_version") == version.label

    def _update(self, version: Release) -> None:
        target = self._target
        directory = (target.mount / version.name) if target.mount is not None else version.directory.absolute()
        answer = call(
            "POST",
            f"{target.url}/update_weights_from_disk",
            seconds=target.load_seconds,
            body=encoded({"model_path": str(directory), "weight_version": version.label, "flush_cache": True}),
            headers=bearer(target.admin_key or target.api_key),
        )
        if not isinstance(answer, dict) or answer.get("success") is not True:
            said = answer.get("message") if isinstance(answer, dict) else answer
            raise PublishFailed(f"SGLang did not load {directory} ({said}): see its log")
        if not self.holds(version):
            raise PublishFailed(f"SGLang loaded {directory} and does not name it as its version: see its log")

    def _restore(self, previous: Release, failure: PublishFailed) -> None:
        try:
            self._update(previous)
        except PublishFailed as second:
            raise PublishFailed(f"{failure}; the former version could not be loaded again either: {second}") from second
