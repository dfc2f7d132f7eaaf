"""Folders that are built beside their place and moved there whole, and what killed builds leave."""

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dma_lab.data.store import TornCacheError
from dma_lab.files import sync

_ABANDONED_SECONDS = 3600  # of a build on another machine, which writes all the while
_HOST = socket.gethostname()


def partial_of(folder: Path) -> Path:
    """Where this process builds ``folder``."""
    return folder.with_name(f"{folder.name}.partial-{_HOST}-{os.getpid()}")


def put_in_place(partial: Path, folder: Path, check: Callable[[], object]) -> None:
    """Rename the finished ``partial`` to ``folder``, on the disk for good; whoever was first there stays, if undamaged.

    Args:
        check: raises TornCacheError where the ``folder`` that is there is damaged.
    """
    for file in partial.iterdir():
        sync(file)
    sync(partial)
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        try:
            check()
            return  # another process built the same meanwhile
        except TornCacheError:
            damaged = partial.with_name(f"damaged-{partial.name}")
            folder.rename(damaged)  # not deleted in its place: a run may be reading it
            partial.rename(folder)
            _remove(damaged)
    sync(folder.parent)


def remove_abandoned(cache_dir: Path) -> None:
    """Delete what killed builds left: at once if their process was one of this machine, else when it is old."""
    for left in cache_dir.glob("*.partial-*"):
        host, _, process = left.name.rpartition(".partial-")[2].rpartition("-")
        alive = Path(f"/proc/{process}").exists()
        with suppress(FileNotFoundError):  # another process removes it too
            newest = max([left.stat().st_mtime, *(file.stat().st_mtime for file in left.glob("*"))])
            old = time.time() - newest > _ABANDONED_SECONDS
            # Without a host's name it may be of any machine, and of this one's living.
            if not alive if host == _HOST else old and not (alive and not host):
                _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
