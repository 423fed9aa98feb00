"""The configuration of publishing: ``[publish]``, what is asked to confirm, and the targets."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from daemon.errors import PublishFailed
from daemon.section import Section


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry credentials: give them as a secret")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_checked_url)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]


class Secret(Section):
    """Where a secret is read each time it is used; its value is never part of the configuration."""

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env (the name of a variable) or file (a path)")
        return self

    def read(self) -> str:
        """The secret, without white space around it.

        Raises:
            PublishFailed: it is not there.
        """
        if self.env is not None:
            value, where = os.environ.get(self.env, "").strip(), f"environment variable {self.env}"
        else:
            assert self.file is not None
            where = f"file {self.file}"
            try:
                value = self.file.read_text("utf-8").strip()
            except (OSError, ValueError) as error:
                raise PublishFailed(f"cannot read the secret in {where} ({type(error).__name__}): provide it") from None
        if not value:
            raise PublishFailed(f"the secret in {where} is empty or missing: provide it")
        return value


class TargetSection(Section):
    """What all targets have."""

    name: Name = ""
    """The key of its publications and metrics; by default its type."""
    timeout_seconds: float = Field(30.0, gt=0)
    """Of a request that has no longer one of its own."""

    @property
    def asked_at(self) -> tuple[str, str, Secret | None] | None:
        """Address, served model name and API key of the engine that is asked to confirm; None: it cannot be asked."""
        return None

    @property
    def patience_seconds(self) -> float:
        """For how long an engine may go on with its old answers."""
        return 0.0


class _Reloaded(TargetSection):
    """A target whose engine reloads by itself some time after it was told, and can perhaps be asked."""

    ask_url: Url | None = None
    """An engine that is asked to confirm, without the ``/v1``."""
    model: str | None = None
    """The name under which it serves."""
    api_key: Secret | None = None
    confirm_seconds: float = Field(300.0, ge=0)
    """For how long it may go on with its old answers."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.ask_url is None) != (self.model is None):
            raise ValueError("ask_url and model go together")
        return self

    @property
    def asked_at(self) -> tuple[str, str, Secret | None] | None:
        """The engine that is asked, if one is named."""
        return None if self.ask_url is None or self.model is None else (self.ask_url, self.model, self.api_key)

    @property
    def patience_seconds(self) -> float:
        """As configured."""
        return self.confirm_seconds


class _Engine(TargetSection):
    """An engine that loads a version's directory when told to."""

    url: Url
    """Its address, without the ``/v1``."""
    model: str = Field(min_length=1)
    """The name under which it serves, which clients use."""
    api_key: Secret | None = None
    mount: Path | None = None
    """The directory of versions as the engine sees it; by default as we do."""
    load_seconds: float = Field(600.0, gt=0)
    """For it to load a version."""

    @property
    def asked_at(self) -> tuple[str, str, Secret | None] | None:
        """The engine itself."""
        return self.url, self.model, self.api_key


class DirectoryTarget(_Reloaded):
    """A link that is swapped to the version's directory."""

    type: Literal["directory"] = "directory"
    directory: Path | None = None
    """Where versions are copied to (hard links where possible); by default they are served from the state."""
    link: Path = Path("current")
    """Relative to the directory, or else to the state directory."""
    keep: int = Field(3, ge=1)
    """Versions that stay in the directory, the newest publications first."""


class VllmEngine(_Engine):
    """A vLLM server with its control routes."""

    drain_seconds: float = Field(120.0, gt=0)
    """For requests in work to end before weights are changed."""


class VllmTarget(VllmEngine):
    """vLLM with full weights."""

    type: Literal["vllm"] = "vllm"


class VllmLoraTarget(VllmEngine):
    """vLLM that serves the base with an adapter; ``model`` is the adapter's name."""

    type: Literal["vllm_lora"] = "vllm_lora"
    max_rank: int = Field(256, ge=1)
    """As ``--max-lora-rank``; a version above it is served with full weights."""
    adapter_mount: Path | None = None
    """The directory of adapters as the engine sees it; by default as we do."""


class SglangTarget(_Engine):
    """SGLang."""

    type: Literal["sglang"] = "sglang"
    admin_key: Secret | None = None
    """As ``--admin-api-key``."""


class WebhookTarget(_Reloaded):
    """Anything that is told over HTTP."""

    type: Literal["webhook"] = "webhook"
    url: Url
    secret: Secret
    """Shared with the receiver, to sign with."""


class HubTarget(_Reloaded):
    """A repository on the Hugging Face Hub: one commit and tag per version."""

    type: Literal["huggingface"] = "huggingface"
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    branch: str = "main"
    token: Secret
    endpoint: Url = "https://huggingface.co"
    private: bool = True
    """Of a repository that is not there yet."""
    xet: bool = True
    """Whether large files go by Xet, which the Hub has; other servers may only know Git LFS."""
    upload_seconds: float = Field(3600.0, gt=0)
    """For all of it."""


Target = Annotated[
    DirectoryTarget | VllmTarget | VllmLoraTarget | SglangTarget | WebhookTarget | HubTarget,
    Field(discriminator="type"),
]


class ConfirmSection(Section):
    """What engines are asked after a publication, and by the drift watch."""

    facts: int = Field(8, ge=0)
    """Most edited facts; half as many of them, at least, tell the version from the one before it."""
    controls: int = Field(8, ge=0)
    """Most facts that no edit is about."""
    agreement: float = Field(0.75, gt=0, le=1)
    """Share of each kind that must be answered as the version was measured to."""
    answer_tokens: int = Field(32, ge=1)


class PublishSection(Section):
    """How promoted versions reach what serves them."""

    targets: tuple[Target, ...] = (DirectoryTarget(name="directory"),)
    keep: int = Field(10, ge=0)
    """Retired and rejected versions whose files stay in the state, the newest first; 0: all."""
    retry_seconds: float = Field(10.0, gt=0)
    """After a failed attempt; doubled after each further one."""
    retry_max_seconds: float = Field(900.0, gt=0)
    drift_seconds: float = Field(600.0, ge=0)
    """Between two times that engines are asked whether they still answer with their version; 0: never."""
    confirm: ConfirmSection = ConfirmSection()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: object) -> object:
        """A target without a name is called by its type."""
        if not isinstance(values, dict) or not isinstance(values.get("targets"), (list, tuple)):
            return values
        targets = [
            {"name": target.get("type", ""), **target} if isinstance(target, dict) else target
            for target in values["targets"]
        ]
        return {**values, "targets": targets}

    @model_validator(mode="after")
    def _apart(self) -> Self:
        counts = Counter(target.name for target in self.targets)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"two targets are called {twice[0]}: give each a name of its own")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all targets."""
        return tuple(target.name for target in self.targets)
