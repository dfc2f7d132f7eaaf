"""Locks on files that a process holds no longer than it lives, however it ends.

``flock``, which holds among all machines that share a directory, where its file system passes it on (NFS does). The
filelock package calls the same, but its shared locks are an SQLite file's, which is not to lie on such a file system:
whoever looked whether a file is held would hold it alone, and of two that look at once each would take the other for
its holder.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

_ATTEMPTS = 3


def hold(stream: TextIO) -> None:
    """Hold the file until ``stream`` is closed. Processes that are forked meanwhile do not hold it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: its file system has no locks.
    """
    os.register_at_fork(after_in_child=stream.close)  # a loader's worker would hold it longer than this process
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:  # by a holder, or for a moment by whoever looks whether there is one
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(0.05)


def is_held(path: Path) -> bool:
    """Whether a process holds the file.

    Raises:
        OSError: it cannot be read, or its file system has no locks.
    """
    with path.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
