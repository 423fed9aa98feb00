"""The Hugging Face Hub: one commit and one tag per version.

The upload is a process of its own: that bounds all of it, and keeps the library's settings, which are global, out of
the daemon.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import PublishFailed

if TYPE_CHECKING:
    from daemon.publishers.base import Release
    from daemon.targets import HubTarget

UPLOAD = Path(__file__).with_name("hub_upload.py")


class HubPublisher:
    """Publishes by commits; the branch leads to the version that is promoted, tags stay."""

    def __init__(self, target: HubTarget) -> None:
        self._target = target

    def publish(self, version: Release, previous: Release | None) -> None:
        """Commit what differs from the branch's head, and tag it; a version that is there already makes no commit."""
        target = self._target
        token = target.token.read()
        order = {
            "endpoint": target.endpoint,
            "token": token,
            "repository": target.repository,
            "private": target.private,
            "branch": target.branch,
            "directory": str(version.directory.absolute()),
            "message": f"factsyncd version {version.number} ({version.digest[:12]})",
            "tag": version.label,
        }
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and script
                [sys.executable, "-P", UPLOAD],
                input=json.dumps(order),  # not an argument: those are seen by every user of the machine
                capture_output=True, text=True, check=False, timeout=target.upload_seconds,
                env=_environment(xet=target.xet),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise PublishFailed(
                f"the upload to {target.repository} did not end in {target.upload_seconds:g} s: raise upload_seconds"
            ) from None
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1].replace(token, "***")
            raise PublishFailed(f"the upload to {target.repository} failed ({why[:300]}): check token and repository")

    def holds(self, version: Release) -> bool:
        """Nobody else moves the branch: that would be somebody's decision."""
        return True


def _environment(*, xet: bool) -> dict[str, str]:
    """Ours, without what would forbid or report an upload, and without another token."""
    ours = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    return (
        ours
        | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
        | {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        }
    )
