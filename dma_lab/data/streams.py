"""The text of a file as a stream of UTF-8: decompressed, recoded, without a byte order mark; others are refused."""

import codecs
import gzip
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow

from dma_lab.data.digests import CHUNK_BYTES
from dma_lab.data.formats import is_utf8
from dma_lab.data.xz import XzReader
from dma_lab.messages import UserError

OnBytes = Callable[[int], None]
"""Told how many bytes of a file (as it lies on disk) were read since the last call."""

_LOOKED_AT = 1 << 12  # bytes of a file that tell whether it is text at all


class Utf8Stream(io.RawIOBase):
    """The text of the file ``path``, of ``format`` as ``format_of`` tells it and in ``encoding``, as UTF-8 bytes.

    Bytes of a UTF-8 file are passed on as they are: whoever decodes them can name the line of a fault.

    Reading raises:
        UserError: the file looks like none of text, or is not in ``encoding``.
        OSError, EOFError, lzma.LZMAError, zlib.error: it cannot be read, or its compression is damaged or ends early.
    """

    def __init__(self, path: Path, format: str, encoding: str, on_bytes: OnBytes) -> None:
        self._path, self._encoding, self._on_bytes = path, encoding, on_bytes
        self._raw = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._source = _decompressed(self._raw, format)
        if self._source is not self._raw and not path.stat().st_size:
            self._raw.close()
            raise EOFError("what is compressed takes bytes even where it is empty")
        utf8 = is_utf8(encoding)
        self._decoder = None if utf8 else codecs.getincrementaldecoder(encoding)()
        self._done, self._begun, self._ended = 0, False, False
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and not self._ended:
            read = self._source.read(CHUNK_BYTES)
            self._on_bytes(self._raw.tell() - self._done)
            self._done, self._ended = self._raw.tell(), len(read) < CHUNK_BYTES
            self._pending = self._recoded(read)
            if not self._begun and self._pending:
                self._begun = True
                self._pending = self._pending.removeprefix(codecs.BOM_UTF8)
        given = self._pending[: len(buffer)]
        buffer[: len(given)] = given
        self._pending = self._pending[len(given) :]
        return len(given)

    def close(self) -> None:
        self._raw.close()
        super().close()

    def _recoded(self, read: bytes) -> bytes:
        if self._decoder is None:
            if not self._begun:
                _refuse_no_text(self._path, read[:_LOOKED_AT])
            return read
        try:
            return self._decoder.decode(read, final=self._ended).encode("utf-8")
        except UnicodeError as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{self._path} is not text in data.encoding={self._encoding} ({reason}): give the encoding it is in."
            ) from None


def open_utf8(path: Path, format: str, encoding: str, on_bytes: OnBytes) -> io.BufferedReader:
    """A buffered ``Utf8Stream``."""
    return io.BufferedReader(Utf8Stream(path, format, encoding, on_bytes), CHUNK_BYTES)


def not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{where} is not UTF-8 text (byte 0x{byte:02x}: {error.reason}): give the files' data.encoding, such as "
        "latin-1 or cp1252, or convert the file to UTF-8."
    )


def _decompressed(raw: io.BufferedReader, format: str) -> io.BufferedReader:
    if format.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), CHUNK_BYTES)
    if format.endswith(".xz"):
        return io.BufferedReader(XzReader(raw), CHUNK_BYTES)
    if format.endswith(".zst"):
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
        return io.BufferedReader(stream, CHUNK_BYTES)
    return raw


def _refuse_no_text(path: Path, start: bytes) -> None:
    """Raise UserError if a file that begins so is in UTF-16 or UTF-32, or is binary: NULs among what is not UTF-8."""
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    even, odd = start[::2].count(0), start[1::2].count(0)
    if wide or (4 * (even + odd) > len(start) and min(even, odd) * 8 < max(even, odd)):
        raise UserError(f"{path} looks like UTF-16, every other byte a NUL: give data.encoding=utf-16.")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
        binary = 4 * (even + odd) > len(start)
    except UnicodeDecodeError:
        binary = re.search(rb"[\x00-\x06\x0e-\x1a]", start) is not None
    if binary:
        raise UserError(f"{path} is a binary file, no text: leave it out, as with data.pattern=**/*.txt for the texts.")
