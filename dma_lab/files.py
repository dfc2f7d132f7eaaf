"""Files that appear whole or not at all, and stay where they are through a power cut."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NOT_FOR_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP)
"""What file systems answer that keep their directories without being asked."""


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of ``path`` at the context's end, on the disk for good.

    Ended by an exception the context leaves ``path`` as it was. Whatever a kill leaves beside it, ``remove_partials``
    removes. Permissions are the umask's.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # which a failed write does not say
        raise
    sync(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8."""
    with whole(path) as stream:
        stream.write(text.encode("utf-8"))


def copy_whole(source: Path, path: Path) -> None:
    """Replace ``path`` by the content of ``source``."""
    with source.open("rb") as original, whole(path) as stream:
        shutil.copyfileobj(original, stream, 2**20)


def sync(path: Path) -> None:
    """Return when the file's content, or the directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NOT_FOR_DIRECTORIES):
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make ``path`` and what is missing above it, for good."""
    if path.exists():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def remove_partials(directory: Path) -> None:
    """Remove what killed writers left in ``directory``, which must have no other writer now."""
    for left in directory.glob("*.partial*"):
        left.unlink(missing_ok=True)
