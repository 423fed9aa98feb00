"""Publishers: what makes a target answer with a version, one kind of target per module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.publishers.adapters import Adapters
from daemon.publishers.base import Publisher, Release
from daemon.publishers.directory import DirectoryPublisher
from daemon.publishers.hub import HubPublisher
from daemon.publishers.sglang import SglangPublisher
from daemon.publishers.vllm import VllmLoraPublisher, VllmPublisher
from daemon.publishers.webhook import WebhookPublisher
from daemon.targets import DirectoryTarget, HubTarget, SglangTarget, VllmLoraTarget, VllmTarget

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.config import Settings
    from daemon.targets import Target
    from store import ArtifactStore

__all__ = ["Publisher", "Release", "adapters_directory", "open_publisher"]


def open_publisher(
    settings: Settings, artifacts: ArtifactStore, target: Target, base: Release, needed: set[int]
) -> Publisher:
    """The publisher of a target; nothing is sent yet.

    Args:
        settings: the configuration.
        artifacts: the version directories of the state.
        target: one of the configured targets.
        base: version 0.
        needed: numbers of versions that must stay at the target.
    """
    match target:
        case DirectoryTarget():
            return DirectoryPublisher(artifacts, settings.link_of(target), target.directory, needed)
        case VllmTarget():
            return VllmPublisher(target)
        case VllmLoraTarget():
            return VllmLoraPublisher(target, Adapters(adapters_directory(settings), target.name, base, target.max_rank))
        case SglangTarget():
            return SglangPublisher(target)
        case HubTarget():
            return HubPublisher(target)
        case _:
            return WebhookPublisher(target)


def adapters_directory(settings: Settings) -> Path:
    """Where adapters are kept, in a directory for each highest rank."""
    return settings.state.directory / "adapters"
