"""HTTP to a target: bounded in time and size, JSON, no redirects; addresses and secrets stay out of errors and logs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from daemon.errors import PublishFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.targets import Secret

CONNECT_SECONDS = 10.0
MOST_BYTES = 1 << 20


def encoded(document: Any) -> bytes:
    """A document as the bytes that are sent, and signed."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def bearer(secret: Secret | None) -> dict[str, str]:
    """The header that authorises, if there is a key."""
    return {} if secret is None else {"Authorization": f"Bearer {secret.read()}"}


def call(
    method: str,
    url: str,
    *,
    seconds: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    secret_route: bool = False,
) -> Any:
    """Send one request.

    Args:
        method: GET or POST.
        url: the whole address.
        seconds: for all of it.
        body: JSON to send.
        headers: further ones.
        secret_route: whether errors must name no more than the host.

    Returns:
        The answer as JSON, or as text where it is none.

    Raises:
        PublishFailed: no answer in time, too long an answer, or another status than 2xx.
    """
    parts = urlsplit(url)
    where = parts.netloc if secret_route else f"{parts.netloc}{parts.path}"
    sent = {"Content-Type": "application/json"} if body is not None else {}
    end = time.monotonic() + seconds
    timeout = httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
    try:
        with (
            httpx2.Client(timeout=timeout, headers={"User-Agent": "factsyncd"}) as client,
            client.stream(method, url, content=body, headers={**sent, **(headers or {})}) as reply,
        ):
            text = _read(reply, where, end).decode("utf-8", "replace")
    except httpx2.TimeoutException:
        raise PublishFailed(f"{where} gave no answer in {seconds:g} s: check the engine") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise PublishFailed(f"{where} cannot be reached ({cause}): check that it runs and its address") from None
    if not reply.is_success:
        raise PublishFailed(f"{where} answered HTTP {reply.status_code} ({_excerpt(text)}): see its log")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(reply: httpx2.Response, where: str, end: float) -> bytes:
    """The body; a timeout of the client bounds a single read only."""
    body = bytearray()
    for piece in reply.iter_bytes():
        body += piece
        if len(body) > MOST_BYTES:
            raise PublishFailed(f"{where} answered with more than {MOST_BYTES} bytes: check the address")
        if time.monotonic() > end:
            raise PublishFailed(f"{where} did not end its answer in time: check the engine")
    return bytes(body)


def _excerpt(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.split())[:160] or "no text"
