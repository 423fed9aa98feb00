"""vLLM: weights are loaded anew from a directory, or an adapter under a stable name, while requests wait.

The control routes need ``VLLM_SERVER_DEV_MODE=1``, those of adapters ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import stamina

from daemon.errors import PublishFailed
from daemon.publishers.client import bearer, call, encoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.publishers.adapters import Adapter, Adapters
    from daemon.publishers.base import Release
    from daemon.targets import VllmEngine, VllmLoraTarget, VllmTarget

RESUME_ATTEMPTS = 5


class Vllm:
    """The routes that are used."""

    def __init__(self, target: VllmEngine) -> None:
        self._target = target

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold requests back for a block: those in work end first, new ones wait. Pausing empties the prefix cache.

        Raises:
            PublishFailed: it could not be paused, or not be resumed.
        """
        try:
            # Also where pausing fails: its answer may have been all that was lost.
            self._post("/pause?mode=wait", None, self._target.drain_seconds)
            yield
        finally:
            self._resume()

    def load(self, directory: Path) -> None:
        """Load weights from a directory, as the engine sees it."""
        body: dict[str, object] = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
        self._post("/collective_rpc", body, self._target.load_seconds)

    def load_adapter(self, directory: Path) -> None:
        """Load an adapter under the served name, in place of the one before it."""
        body: dict[str, object] = {"lora_name": self._target.model, "lora_path": str(directory), "load_inplace": True}
        self._post("/v1/load_lora_adapter", body, self._target.load_seconds)

    def path_of(self, version: Release) -> Path:
        """The version's directory as the engine sees it."""
        mount = self._target.mount
        return version.directory.absolute() if mount is None else mount / version.name

    def _resume(self) -> None:
        for attempt in stamina.retry_context(
            on=PublishFailed, attempts=RESUME_ATTEMPTS, timeout=None, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                self._post("/resume", None, self._target.timeout_seconds)

    def _post(self, route: str, body: dict[str, object] | None, seconds: float) -> None:
        call(
            "POST",
            f"{self._target.url}{route}",
            seconds=seconds,
            body=None if body is None else encoded(body),
            headers=bearer(self._target.api_key),
        )


class VllmPublisher:
    """Publishes full weights. vLLM has no rollback: on failure the old directory is sent again."""

    def __init__(self, target: VllmTarget) -> None:
        self._engine = Vllm(target)

    def publish(self, version: Release, previous: Release | None) -> None:
        """Pause, load, resume."""
        with self._engine.paused():
            try:
                self._engine.load(self._engine.path_of(version))
            except PublishFailed as failure:
                if previous is not None:
                    with _either(failure):
                        self._engine.load(self._engine.path_of(previous))
                raise

    def holds(self, version: Release) -> bool:
        """It does not tell: its answers do."""
        return True


class VllmLoraPublisher:
    """Publishes an exact adapter of the base; a version of too high a rank as full weights under an empty adapter."""

    def __init__(self, target: VllmLoraTarget, adapters: Adapters) -> None:
        self._engine, self._target, self._adapters = Vllm(target), target, adapters

    def publish(self, version: Release, previous: Release | None) -> None:
        """Load the adapter, and the weights below it where they have to change."""
        wanted = self._adapters.of(version)
        former = None if previous is None else self._adapters.of(previous)
        # Requests go on where the weights below stay: vLLM takes the new adapter for new requests.
        if not wanted.on_full_weights and not self._adapters.may_have_full_weights:
            self._swap(wanted, former)
            return
        with self._engine.paused():
            self._adapters.note_full_weights()
            try:
                self._engine.load(self._engine.path_of(wanted.below))
                self._swap(wanted, former)
            except PublishFailed as failure:
                if former is not None:
                    with _either(failure):
                        self._engine.load(self._engine.path_of(former.below))
                        self._engine.load_adapter(self._seen(former))
                raise
        if not wanted.on_full_weights:
            self._adapters.forget_full_weights()

    def holds(self, version: Release) -> bool:
        """It does not tell: its answers do."""
        return True

    def _swap(self, wanted: Adapter, former: Adapter | None) -> None:
        try:
            self._engine.load_adapter(self._seen(wanted))
        except PublishFailed as failure:
            if former is not None and former.below.number == wanted.below.number:
                with _either(failure):
                    self._engine.load_adapter(self._seen(former))
            raise

    def _seen(self, adapter: Adapter) -> Path:
        """The adapter's directory as the engine sees it."""
        mount = self._target.adapter_mount
        return adapter.directory.absolute() if mount is None else mount / adapter.route


@contextmanager
def _either(failure: PublishFailed) -> Iterator[None]:
    """Around going back after a failure: if that fails too, both are told."""
    try:
        yield
    except PublishFailed as second:
        raise PublishFailed(f"{failure}; the former version could not be loaded again either: {second}") from second
