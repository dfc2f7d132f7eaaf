"""What a file holds, as a short name: digests of content, remembered so that a large file is read for it once."""

import codecs
import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dma_lab.files import write_whole
from dma_lab.seals import sealed, unsealed

CHUNK_BYTES = 1 << 22
_PART_BYTES = 1 << 24
_REMEMBER_BYTES = 1 << 20  # smaller files are read faster than they are worth remembering
_SETTLED_SECONDS = 2  # a file changed this recently may change again within its timestamp's resolution


Digest = partial(hashlib.blake2b, digest_size=16)
"""Of a document's UTF-8 bytes; a text file's ``file_digest`` is its document's."""


def text_digest(text: bytes) -> str:
    """Hexadecimal ``Digest``."""
    return Digest(text).hexdigest()


def share_below(digest: str, fraction: float) -> bool:
    """True for the ``fraction`` of all digests that are smallest."""
    return int(digest[:16], 16) < fraction * 2**64


def mapped_digest(path: Path) -> str:
    """Hexadecimal digest of a file's bytes, of all cores' work: SHA-256 of the SHA-256 of each ``_PART_BYTES``.

    Raises OSError, or ValueError of a file that cannot be mapped.
    """
    if path.stat().st_size == 0:
        return hashlib.sha256().hexdigest()
    content = np.memmap(path, dtype=np.uint8, mode="r")
    parts = (content[at : at + _PART_BYTES] for at in range(0, len(content), _PART_BYTES))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda part: hashlib.sha256(part).digest(), parts)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def file_state(path: Path) -> list[int]:
    """Size, times of change (the second cannot be set back) and inode: equal as long as the file is. Raises OSError."""
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


class DigestCache:
    """Digests of files by path and ``file_state``, kept in ``<cache_dir>/digests.json``.

    The file is a convenience: unreadable or lost, it is rebuilt.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._file = cache_dir / "digests.json"
        try:
            self._known: dict[str, list[Any]] = unsealed(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        self._changed = False

    def file_digest(self, path: Path, on_bytes: Callable[[int], None]) -> str:
        """Digest of the file's bytes, without a byte order mark; ``on_bytes`` is told the bytes done as they are read.

        Raises OSError.
        """
        key, state = str(path.resolve()), file_state(path)
        if (entry := self._known.get(key)) is not None and entry[0] == state:
            on_bytes(state[0])
            return str(entry[1])
        digest = Digest()
        with open(path, "rb") as file:
            start = file.read(CHUNK_BYTES)
            digest.update(start.removeprefix(codecs.BOM_UTF8))
            on_bytes(len(start))
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                on_bytes(len(chunk))
        settled = time.time() - path.stat().st_ctime > _SETTLED_SECONDS
        if settled and state[0] >= _REMEMBER_BYTES and file_state(path) == state:
            self._known[key] = [state, digest.hexdigest()]
            self._changed = True
        return digest.hexdigest()

    def save(self) -> None:
        """Write what was learnt, whole or not at all."""
        if not self._changed:
            return
        with contextlib.suppress(OSError):  # no room or no right to write: token files there can still be used
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, sealed(self._known))
