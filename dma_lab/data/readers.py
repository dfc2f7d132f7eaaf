"""Files to documents: texts, JSON and tables, streamed; every fault named by file and line, every null row counted."""

import codecs
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dma_lab.data.digests import CHUNK_BYTES, Digest, text_digest
from dma_lab.data.formats import is_utf8
from dma_lab.data.records import field_text
from dma_lab.data.streams import OnBytes, not_utf8, open_utf8
from dma_lab.data.tables import Rows, arrow_rows, csv_rows, parquet_rows
from dma_lab.messages import UserError

NULL = "null: a row whose text is missing"


class Document(NamedTuple):
    """A document's text in order, in chunks so that one larger than memory can be read."""

    chunks: Iterable[str]
    digest: str
    """``text_digest`` of the whole."""
    size: int
    """Bytes of UTF-8."""


def read_documents(
    path: Path,
    format: str,
    *,
    fields: Sequence[str] = ("text",),
    encoding: str = "utf-8",
    file_digest: str | None = None,
    left: Counter[str] | None = None,
    on_bytes: OnBytes = lambda count: None,
) -> Iterator[Document]:
    """The documents of one file: a text is one, of the other formats every record.

    Args:
        format: as ``format_of`` tells it.
        fields: where a record's text is, as ``records.field_text`` takes them.
        encoding: of what is text; parquet and arrow have their own.
        file_digest: of the file; a UTF-8 text is read a first time for its digest without it.
        left: counts rows that are null.

    Raises:
        UserError: what the file is, where, if it cannot be read, ends early, is in another encoding, or lacks a field.
    """
    if format.startswith(".txt"):
        plain = file_digest is not None and format == ".txt" and is_utf8(encoding)
        digest, size = (file_digest or "", _text_bytes(path)) if plain else _digested(path, format, encoding)
        yield Document(_text_chunks(path, format, encoding, on_bytes), digest, size)
        return
    left = Counter() if left is None else left
    for row, where in _records(path, format, fields, encoding, on_bytes):
        text = field_text(row, fields, where)
        if text is None:
            left[NULL] += 1
        else:
            yield whole_document(text, where)


def whole_document(text: str, where: str) -> Document:
    """A document from memory. Raises UserError, saying ``where``, if its text has no UTF-8 form."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds {text[error.start]!r}, half a surrogate pair: repair or remove it.") from None
    return Document((text,), text_digest(encoded), len(encoded))


def read_objects(
    path: Path, format: str, *, encoding: str = "utf-8", on_bytes: OnBytes = lambda count: None
) -> Iterator[tuple[object, str]]:
    """What the lines of a jsonl file, or the list of a json file, hold; and where each is.

    Raises:
        UserError: what the file is, where, if it cannot be read, ends early, is in another encoding or no JSON.
    """
    with _faults_said(path) as told, open_utf8(path, format, encoding, on_bytes) as stream:
        if format.startswith(".json") and not format.startswith(".jsonl") and _is_list(stream):
            yield from _listed(path, stream)
            return
        for line in stream:
            told["line"] += 1
            if line and not line.isspace():
                where = f"{path}, line {told['line']}"
                yield _parsed(line, where), where


def _records(
    path: Path, format: str, fields: Sequence[str], encoding: str, on_bytes: OnBytes
) -> Iterator[tuple[object, str]] | Rows:
    if format == ".parquet":
        return parquet_rows(path, fields, on_bytes)
    if format == ".arrow":
        return arrow_rows(path, fields, on_bytes)
    if format.startswith((".csv", ".tsv")):
        return _table(path, format, fields, encoding, on_bytes)
    return read_objects(path, format, encoding=encoding, on_bytes=on_bytes)


def _table(path: Path, format: str, fields: Sequence[str], encoding: str, on_bytes: OnBytes) -> Rows:
    with _faults_said(path), open_utf8(path, format, encoding, on_bytes) as stream:
        yield from csv_rows(path, format, fields, stream)


def _text_bytes(path: Path) -> int:
    with _faults_said(path), open(path, "rb") as file:
        return path.stat().st_size - (len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)


def _digested(path: Path, format: str, encoding: str) -> tuple[str, int]:
    digest, size = Digest(), 0
    for chunk in _text_chunks(path, format, encoding, lambda count: None):
        encoded = chunk.encode("utf-8")
        digest.update(encoded)
        size += len(encoded)
    return digest.hexdigest(), size


def _text_chunks(path: Path, format: str, encoding: str, on_bytes: OnBytes) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _faults_said(path) as told, open_utf8(path, format, encoding, on_bytes) as stream:
        line = 1
        while True:
            chunk = stream.read(CHUNK_BYTES)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise not_utf8(f"{path}, line {line}", error) from None
            line += text.count("\n")
            told["line"] = line
            yield text
            if not chunk:
                return


def _is_list(stream: io.BufferedReader) -> bool:
    return stream.peek(1)[:4096].lstrip()[:1] == b"["


def _listed(path: Path, stream: io.BufferedReader) -> Iterator[tuple[object, str]]:
    """The items of one JSON list, which is read whole."""
    content = stream.read()
    try:
        items = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise not_utf8(f"{path}, line {line}", error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}): it must hold one list of records, or one per line."
        ) from None
    for number, item in enumerate(items, start=1):
        yield item, f"{path}, record {number}"


def _parsed(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(where, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}): a line must hold one whole object.") from None


@contextmanager
def _faults_said(path: Path) -> Iterator[dict[str, int]]:
    """A file that breaks off as a UserError; yields where the line that was read last is kept."""
    told = {"line": 0}
    try:
        yield told
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        raise UserError(
            f"{path} is damaged or ends early, after line {told['line']}: {error}. Fetch it again."
        ) from error
