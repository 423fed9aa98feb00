"""A webhook: whoever serves is told, signed as Standard Webhooks (https://www.standardwebhooks.com) has it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import TYPE_CHECKING

from daemon.publishers.client import call, encoded

if TYPE_CHECKING:
    from daemon.publishers.base import Release
    from daemon.targets import WebhookTarget

_PREFIX = "whsec_"


class WebhookPublisher:
    """Publishes by a signed POST. ``webhook-id`` is the idempotency key: the same when a delivery is tried again."""

    def __init__(self, target: WebhookTarget) -> None:
        self._target = target

    def publish(self, version: Release, previous: Release | None) -> None:
        """Tell the receiver; any 2xx says that it has understood."""
        body = encoded(
            {
                "type": "version.published",
                "target": self._target.name,
                "version": _described(version),
                "previous": None if previous is None else _described(previous),
            }
        )
        moment = str(int(time.time()))
        call(
            "POST",
            self._target.url,
            seconds=self._target.timeout_seconds,
            body=body,
            headers={
                "webhook-id": version.key,
                "webhook-timestamp": moment,
                "webhook-signature": signature(self._target.secret.read(), version.key, moment, body),
            },
            secret_route=True,
        )

    def holds(self, version: Release) -> bool:
        """A receiver cannot be asked."""
        return True


def signature(secret: str, key: str, moment: str, body: bytes) -> str:
    """``v1,`` and the Base64 of the HMAC-SHA256 over ``id.timestamp.body``.

    A secret that begins with ``whsec_`` is Base64 behind that; any other is taken as it stands.
    """
    raw = base64.b64decode(secret.removeprefix(_PREFIX)) if secret.startswith(_PREFIX) else secret.encode()
    code = hmac.new(raw, f"{key}.{moment}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(code).decode()}"


def _described(version: Release) -> dict[str, object]:
    return {"number": version.number, "digest": version.digest, "directory": str(version.directory.absolute())}
