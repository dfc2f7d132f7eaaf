"""Rows of tables, streamed: csv and tsv by Python's csv, parquet and arrow (what ``datasets`` saves) by pyarrow.

Not by the loaders of ``datasets``: its csv goes through pandas, for which "007" is 7 and the text "NA" is missing, and
none says which row of which file is at fault.
"""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from dma_lab.data.records import no_field
from dma_lab.data.streams import OnBytes
from dma_lab.messages import UserError

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS = 256
Rows = Iterator[tuple[dict[str, Any], str]]
"""A row as a dictionary, and where it is."""


def csv_rows(path: Path, format: str, fields: Sequence[str], stream: io.BufferedReader) -> Rows:
    """Rows of a table whose first row names its columns (RFC 4180: quotes around cells with commas, lines and quotes).

    A ``.csv`` with semicolons or tabs is taken for what it is where only they give the column that is asked for.

    Raises:
        UserError: a column is missing, a row has more or fewer cells than the first, or a quote is not closed.
    """
    csv.field_size_limit(sys.maxsize)
    number = 0
    try:
        with io.TextIOWrapper(stream, "utf-8", newline="") as text:
            start = text.buffer.peek(1 << 16)[: 1 << 16].decode("utf-8", "replace")
            rows = csv.reader(text, delimiter=_delimiter(start, format, fields), strict=True)
            header = next(rows, [])
            for field in fields:
                if header.count(field) != 1:
                    if field in header:
                        raise UserError(
                            f"{path} has {header.count(field)} columns data.text_field={field}: rename one."
                        )
                    raise no_field(field, fields, header, str(path))
            for number, cells in enumerate(rows, start=1):
                if not cells:
                    continue  # a blank line
                if len(cells) != len(header):
                    raise UserError(
                        f"{path}, row {number} (line {rows.line_num}) has {len(cells)} cells where the header has "
                        f"{len(header)}: put quotes around a cell that holds the delimiter, or a line break."
                    )
                yield dict(zip(header, cells, strict=True)), f"{path}, row {number}"
    except csv.Error as error:
        raise UserError(
            f"{path} is no valid csv after row {number} ({error}): write quotes within a cell twice."
        ) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path} is not UTF-8 text after row {number} (byte 0x{byte:02x}: {error.reason}): give its data.encoding."
        ) from None


def parquet_rows(path: Path, fields: Sequence[str], on_bytes: OnBytes) -> Rows:
    """Rows of the parquet file, of ``fields`` alone. Raises UserError if it is damaged or a field is missing."""
    with _faults_said(path) as told, pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        _check_columns(path, fields, file.schema_arrow)
        size, rows = path.stat().st_size, max(1, file.metadata.num_rows)
        batches = file.iter_batches(batch_size=_ROWS, columns=list(fields))
        yield from _rows_of(path, batches, told, on_bytes, lambda: size * told["row"] // rows)


def arrow_rows(path: Path, fields: Sequence[str], on_bytes: OnBytes) -> Rows:
    """Rows of the arrow file: a stream, as ``datasets`` writes it, or a file with a footer (Feather).

    Raises:
        UserError: it is damaged or ends early, or a field is missing.
    """
    with _faults_said(path) as told, pyarrow.OSFile(str(path)) as source:
        footed = source.read(6) == b"ARROW1"
        if not footed:
            # A stream that was cut between two batches would read as a whole one.
            source.seek(max(0, source.size() - len(_END_OF_STREAM)))
            if source.read() != _END_OF_STREAM:
                raise pyarrow.ArrowInvalid("the mark of its end is missing")
        source.seek(0)
        with pyarrow.ipc.open_file(source) if footed else pyarrow.ipc.open_stream(source) as file:
            _check_columns(path, fields, file.schema)
            columns = [name for name in file.schema.names if name in {*fields, *(f.partition(".")[0] for f in fields)}]
            every = map(file.get_batch, range(file.num_record_batches)) if footed else file
            batches = (batch.select(columns) for batch in every)
            yield from _rows_of(path, batches, told, on_bytes, source.tell)


def _rows_of(
    path: Path, batches: Iterator[Any], told: dict[str, int], on_bytes: OnBytes, position: Callable[[], int]
) -> Rows:
    done = 0
    for batch in batches:
        batch.validate(full=True)  # also that text is UTF-8
        for at in range(0, len(batch), _ROWS):
            for row in batch.slice(at, _ROWS).to_pylist():
                told["row"] += 1
                yield row, f"{path}, row {told['row']}"
        on_bytes(position() - done)
        done = position()


def _check_columns(path: Path, fields: Sequence[str], schema: pyarrow.Schema) -> None:
    known = [name for column in schema for name in _names(column)]
    for field in fields:
        if field not in known and field not in schema.names:
            raise no_field(field, fields, known, str(path))


def _names(column: pyarrow.Field, prefix: str = "") -> list[str]:
    name = f"{prefix}{column.name}"
    if not pyarrow.types.is_struct(column.type):
        return [name]
    return [inner for field in column.type for inner in _names(field, f"{name}.")]


@contextmanager
def _faults_said(path: Path) -> Iterator[dict[str, int]]:
    """What pyarrow raises as a UserError; yields where the row that was read last is kept."""
    told = {"row": 0}
    try:
        yield told
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path} is damaged after row {told['row']}: text that is not UTF-8 (byte 0x{byte:02x}). Fetch it again."
        ) from None
    except (OSError, pyarrow.ArrowException) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{path} is damaged or ends early, after row {told['row']}: {said}. Fetch it again.") from error


def _delimiter(start: str, format: str, fields: Sequence[str]) -> str:
    if format.startswith(".tsv"):
        return "\t"
    for delimiter in ",;\t":
        header = next(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter), [])
        if set(fields) <= set(header):
            return delimiter
    return ","
