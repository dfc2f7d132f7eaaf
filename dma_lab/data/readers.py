"""Files to documents: txt, jsonl (plain, gz, xz, zst) and parquet, streamed; every fault named by file and line."""

import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from dma_lab.data.digests import CHUNK_BYTES, text_digest
from dma_lab.data.xz import XzReader
from dma_lab.messages import UserError

FORMATS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet")


class Document(NamedTuple):
    """A document's text in order, in chunks so that one larger than memory can be read; and its ``text_digest``."""

    chunks: Iterable[str]
    digest: str


OnBytes = Callable[[int], None]
"""Told how many bytes of a file (as it lies on disk) were read since the last call."""


def format_of(path: Path) -> str | None:
    """Which of ``FORMATS`` the file's name says it is in."""
    return next((suffix for suffix in reversed(FORMATS) if path.name.lower().endswith(suffix)), None)


def read_documents(path: Path, text_field: str, digest: str, on_bytes: OnBytes) -> Iterator[Document]:
    """The documents of one file whose ``file_digest`` is ``digest``.

    Raises:
        UserError: what the file is, where, if it cannot be read, ends early, is not UTF-8, or lacks ``text_field``.
    """
    kind = format_of(path)
    if kind == ".txt":
        yield Document(_text_chunks(path, on_bytes), digest)
    elif kind == ".parquet":
        yield from _parquet_documents(path, text_field, on_bytes)
    else:
        yield from _jsonl_documents(path, text_field, on_bytes)


def whole_document(text: str, where: str) -> Document:
    """A document from memory. Raises UserError, saying ``where``, if its text has no UTF-8 form."""
    try:
        return Document((text,), text_digest(text.encode("utf-8")))
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds {text[error.start]!r}, half a surrogate pair: repair or remove it.") from None


def field_text(row: object, text_field: str, where: str) -> str:
    """The text of a JSON object or table row. Raises UserError at ``where`` if there is none."""
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}, not an object with the key data.text_field={text_field}.")
    if text_field not in row:
        raise UserError(f"{where} has no data.text_field={text_field}; it has: {', '.join(map(str, row))}.")
    text = row[text_field]
    if not isinstance(text, str):
        raise UserError(f"{where}: data.text_field={text_field} holds a {type(text).__name__}, not text.")
    return text


def _text_chunks(path: Path, on_bytes: OnBytes) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # a byte order mark is no text
    line = 1
    try:
        with open(path, "rb") as file:
            while True:
                chunk = file.read(CHUNK_BYTES)
                if file.tell() == len(chunk) and 4 * chunk.count(0) > len(chunk):
                    raise UserError(f"{path} looks like UTF-16, every other byte a NUL: convert the file to UTF-8.")
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    line += error.object[: error.start].count(b"\n")
                    raise _not_utf8(f"{path}, line {line}", error) from None
                line += text.count("\n")
                on_bytes(len(chunk))
                yield text
                if not chunk:
                    return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _jsonl_documents(path: Path, text_field: str, on_bytes: OnBytes) -> Iterator[Document]:
    for row, where in read_objects(path, on_bytes):
        yield whole_document(field_text(row, text_field, where), where)


def read_objects(path: Path, on_bytes: OnBytes) -> Iterator[tuple[object, str]]:
    """What the lines of a jsonl file, compressed or not, hold; and where each is.

    Raises:
        UserError: what the file is, where, if it cannot be read, ends early, is not UTF-8 or no JSON.
    """
    number = 0
    try:
        with open(path, "rb") as raw, _decompressed(path, raw) as lines:
            if lines is not raw and not path.stat().st_size:
                raise EOFError("what is compressed takes bytes even where it is empty")
            done = 0
            for number, line in enumerate(lines, start=1):
                on_bytes(raw.tell() - done)
                done = raw.tell()
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line and not line.isspace():
                    where = f"{path}, line {number}"
                    yield _parsed(line, where), where
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is damaged or ends early, after line {number}: {error}. Fetch it again.") from error


def _decompressed(path: Path, raw: io.BufferedReader) -> io.BufferedReader:
    match format_of(path):
        case ".jsonl.gz":
            return io.BufferedReader(gzip.GzipFile(fileobj=raw), CHUNK_BYTES)
        case ".jsonl.xz":
            return io.BufferedReader(XzReader(raw), CHUNK_BYTES)
        case ".jsonl.zst":
            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
            return io.BufferedReader(stream, CHUNK_BYTES)
        case _:
            return raw


def _parsed(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}): a line must hold one whole object.") from None


def _parquet_documents(path: Path, text_field: str, on_bytes: OnBytes) -> Iterator[Document]:
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if text_field not in file.schema_arrow.names:
                raise UserError(
                    f"{path} has no column data.text_field={text_field}; it has: {', '.join(file.schema_arrow.names)}."
                )
            size, rows = path.stat().st_size, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    where = f"{path}, row {row}"
                    yield whole_document(field_text({text_field: value}, text_field, where), where)
                on_bytes(size * row // rows - size * (row - len(batch)) // rows)
    except (OSError, pyarrow.ArrowException) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{path} is damaged or ends early, after row {row}: {said}. Fetch it again.") from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(f"{where} is not UTF-8 text (byte 0x{byte:02x}: {error.reason}): convert the file to UTF-8.")
