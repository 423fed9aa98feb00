"""Sharing files between versions, and the ``current`` link that readers follow."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

from store import durable
from store.errors import StateUnwritable
from store.failures import disk_failures

if TYPE_CHECKING:
    from pathlib import Path

# Another file system, one without hard links, and the two ways in which one too many is refused:
# the file's link count is exhausted, or the kernel protects other users' files (fs.protected_hardlinks).
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EPERM, errno.EACCES})


def link_or_copy(source: Path, target: Path) -> bool:
    """Give the content of ``source`` a second name; copy it where the file system cannot.

    Symbolic links in ``source`` are followed, so that ``target`` is always a plain file.

    Returns:
        Whether the two names share one file. A copy costs space and must be hashed again.

    Raises:
        StateUnwritable: ``target`` cannot be written.
        FileNotFoundError: there is no ``source``.

    """
    source = source.resolve(strict=True)
    with disk_failures(target):
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            shutil.copyfile(source, target)
            return False
    return True


def point_current(link: Path, target: Path) -> None:
    """Make the symbolic link ``link`` lead to the directory ``target``, in one step for whoever reads it.

    The link is relative, so the state directory can be moved or mounted elsewhere. Doing it again is
    harmless. Only one process may do it at a time: hold the writer lock.

    Raises:
        StateUnwritable: ``target`` is not a directory, ``link`` is something else than a symbolic link,
            or its directory cannot be written.

    """
    if not target.is_dir():
        raise StateUnwritable(f"{target} is not there, so {link} stays as it is: run `factsyncd verify`")
    if link.exists() and not link.is_symlink():
        raise StateUnwritable(f"{link} is not a symbolic link: move it out of the way")
    destination = os.path.relpath(target.absolute(), link.parent.absolute())
    fresh = link.with_name(f".{link.name}.new")
    with disk_failures(link):
        # Always redone, also where the link is right already: a kill may have come before the sync.
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(destination, target_is_directory=True)
        fresh.replace(link)
        durable.sync(link.parent)
