"""First start: the state directory, the database, and the base model as version 0."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import ConfigInvalid, NameTaken
from daemon.publish import begin
from daemon.runtime import BASE_VERSION
from editor import write_base
from store.ledger import promoted
from store.tables import Version, VersionState, utc_now

if TYPE_CHECKING:
    from daemon.runtime import Runtime

PACKAGES = ("daemon", "sources", "editor", "store")


def set_up(runtime: Runtime) -> None:
    """Bring the state to where a cycle can run; doing it again changes nothing. Call under the writer lock.

    Raises:
        StateUnwritable: the state directory cannot be written.
        ModelUnavailable: the base cannot be had.
        ConfigInvalid: the state belongs to another base.
    """
    runtime.database.migrate()
    runtime.artifacts.clean_staging()
    with runtime.database.read() as session:
        known = session.get(Version, BASE_VERSION)
        present = promoted(session)
    wanted = runtime.settings.model
    if known is None:
        _write_base_version(runtime)
        known_base = {"base": wanted.base, "dtype": wanted.dtype}
    else:
        known_base = runtime.artifacts.manifest(BASE_VERSION).extra
    if present is not None and {"base": wanted.base, "dtype": wanted.dtype} != known_base:
        raise ConfigInvalid(
            f"this state was begun with model {known_base.get('base')!r} ({known_base.get('dtype')}): "
            "a base is pinned for the life of a state, use another [state] directory"
        )
    begin(runtime)


def _write_base_version(runtime: Runtime) -> None:
    """Convert the configured base into version 0 and promote it."""
    wanted = runtime.settings.model
    runtime.log.info("preparing the base model", base=wanted.base)
    runtime.progress("base model", 0, 1)
    with runtime.artifacts.stage(BASE_VERSION) as staging:
        write_base(wanted.base, staging, dtype=wanted.dtype)
        digest = runtime.artifacts.seal(staging, BASE_VERSION, extra={"base": wanted.base, "dtype": wanted.dtype})
    runtime.progress("base model", 1, 1)
    with runtime.database.transaction() as session:
        session.add(
            Version(
                id=BASE_VERSION, state=VersionState.PROMOTED, base_digest=digest, settings_digest="",
                digest=digest, path=f"versions/{runtime.artifacts.path(BASE_VERSION).name}",
                reason="the base, before any edit", decided_at=utc_now(),
            )
        )  # fmt: skip


def check_package_names() -> None:
    """Refuse to run where another distribution's ``daemon`` (or another room) is imported instead of ours.

    Raises:
        NameTaken: names the package and where it came from.
    """
    ours = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        module = sys.modules.get(name)
        found = getattr(module, "__file__", None)
        if found is not None and Path(found).resolve().parent.parent != ours:
            raise NameTaken(
                f"package {name!r} comes from {found}, not from factsyncd: install factsyncd alone in its environment"
            )
    owners = metadata.packages_distributions()
    for name in PACKAGES:
        others = sorted(set(owners.get(name, [])) - {"factsyncd"})
        if others:
            raise NameTaken(f"package {name!r} also belongs to {others[0]}: install factsyncd alone in its environment")
