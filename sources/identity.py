"""Who is asked, and who asks: checks of addresses and user agents."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from sources.errors import SourceError

_CONTACT = re.compile(r"https?://[^\s/@;)]+\.[^\s;)]+|[^\s@;(<]+@[^\s@;)>]+\.[a-z]{2,}", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"\bexample\.(com|org|net|edu)\b|\.(example|invalid|test)\b|\byour[-_. @]|@your|<|\bname/version\b",
    re.IGNORECASE,
)
_LIBRARIES = (
    "aiohttp", "curl", "go-http-client", "httpx", "java", "libwww-perl", "mozilla", "okhttp", "python-httpx",
    "python-requests", "python-urllib", "rdflib", "requests", "sparqlwrapper", "urllib", "wget",
)  # fmt: skip
"""Starts of the user agents that libraries and browsers send of their own accord."""


def checked_host(url: str) -> str:
    """Return host and port of an address.

    Raises:
        SourceError: it is malformed, not http(s), or carries credentials.

    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError as error:
        raise SourceError(f"the endpoint address {url!r} is malformed ({error}): correct it") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise SourceError(f"the endpoint address {url!r} is no http(s) address: correct it")
    if parts.username is not None:
        raise SourceError(f"the endpoint address at {host} carries credentials: leave them out")
    return host if port is None else f"{host}:{port}"


def is_public(url: str) -> bool:
    """Whether a checked address is on the internet: neither loopback nor private nor a single label."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host.rstrip(".")


def check_agent(agent: str, url: str) -> None:
    """Check the user agent with which ``url`` will be asked.

    Raises:
        SourceError: it is no header, or a public host could not tell from it whom to write to.

    """
    if not agent.strip() or not agent.isascii() or not agent.isprintable():
        raise SourceError(f"the user agent {agent!r} is empty or not ASCII: {_WANTED}")
    if not is_public(url):
        return
    if agent.lower().startswith(_LIBRARIES):
        raise SourceError(f"the user agent {agent!r} is a library's or a browser's: {_WANTED}")
    if _PLACEHOLDER.search(agent):
        raise SourceError(f"the user agent {agent!r} is a placeholder: {_WANTED}")
    if not _CONTACT.search(agent):
        raise SourceError(f"the user agent {agent!r} has no mail address and no URL for {checked_host(url)}: {_WANTED}")


_WANTED = "set it to `name/version (url; mail)`, with your own contact"
