"""What a file holds, as a short name: digests of content, remembered so that a large file is read for it once."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

CHUNK_BYTES = 1 << 22
_REMEMBER_BYTES = 1 << 20  # smaller files are read faster than they are worth remembering
_SETTLED_SECONDS = 2  # a file changed this recently may change again within its timestamp's resolution


def text_digest(text: bytes) -> str:
    """Hexadecimal digest of a document's UTF-8 bytes; a text file's ``file_digest`` is its document's."""
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def share_below(digest: str, fraction: float) -> bool:
    """True for the ``fraction`` of all digests that are smallest."""
    return int(digest[:16], 16) < fraction * 2**64


class DigestCache:
    """Digests of files by (path, size, time of change), kept in ``<cache_dir>/digests.json``.

    The file is a convenience: unreadable or lost, it is made anew.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._file = cache_dir / "digests.json"
        try:
            self._known: dict[str, list] = dict(json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}
        self._changed = False

    def file_digest(self, path: Path, on_bytes: Callable[[int], None]) -> str:
        """Digest of the file's bytes; ``on_bytes`` is told the bytes done as they are read. Raises OSError."""
        state = os.stat(path)
        key, stamp = str(path.resolve()), [state.st_size, state.st_mtime_ns]
        entry = self._known.get(key)
        if isinstance(entry, list) and entry[:2] == stamp:
            on_bytes(state.st_size)
            return str(entry[2])
        digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                on_bytes(len(chunk))
        settled = time.time() - state.st_mtime > _SETTLED_SECONDS
        if settled and state.st_size >= _REMEMBER_BYTES:
            self._known[key] = [*stamp, digest.hexdigest()]
            self._changed = True
        return digest.hexdigest()

    def save(self) -> None:
        """Write what was learnt, whole or not at all."""
        if not self._changed:
            return
        partial = self._file.with_suffix(f".partial-{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(partial, self._file)
        except OSError:  # no room or no right to write: token files that are there can still be used
            with contextlib.suppress(OSError):
                partial.unlink()
