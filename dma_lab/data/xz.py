"""Reading .xz whole: every stream of a file, and the padding between them, which Python's lzma takes for the end."""

import io
import lzma
from typing import Any

from dma_lab.data.digests import CHUNK_BYTES


class XzReader(io.RawIOBase):
    """The decompressed bytes of ``raw``: streams, each followed by zeros in fours (the .xz format, section 2.2).

    Reading raises lzma.LZMAError where something else follows a stream, and EOFError where a stream breaks off.
    """

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof and not self._next_stream():
                return 0
            if self._stream.needs_input and not self._pending:
                self._pending = self._raw.read(CHUNK_BYTES)
                if not self._pending:
                    raise EOFError("a stream breaks off")
            given, self._pending = self._pending, b""
            if text := self._stream.decompress(given, len(buffer)):
                buffer[: len(text)] = text
                return len(text)

    def _next_stream(self) -> bool:
        """Go behind the padding to the next stream; False if there is none."""
        rest, padding = self._stream.unused_data, 0
        while True:
            self._pending = rest.lstrip(b"\0")
            padding += len(rest) - len(self._pending)
            if self._pending or not (rest := self._raw.read(CHUNK_BYTES)):
                break
        if padding % 4:
            raise lzma.LZMAError(f"{padding} zeros behind a stream are no padding")
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        return bool(self._pending)
