"""Random files of every format, whole and damaged: one sentence, or every document comes back from its tokens.

What a file holds is read a second time here with the standard library alone. Formats that it cannot read (zst, parquet,
arrow) are held to what was written: damaged, they are refused or read in full all the same.
"""

import csv
import gzip
import io
import itertools
import json
import lzma
import random
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dma_lab.data.build import prepare_data
from dma_lab.data.settings import DataSettings
from dma_lab.data.store import TokenData
from dma_lab.data.tokenizer import train_tokenizer
from dma_lab.messages import UserError

FORMATS = ("txt", "txt.gz", "jsonl", "jsonl.gz", "jsonl.xz", "jsonl.zst", "json", "csv", "parquet", "arrow")
BOM = b"\xef\xbb\xbf"
SCRAPS = [
    *(
        "the cat",
        "sat on",
        "1984",
        "3.14",
        "東京",
        "🦉",
        "👩\u200d👧",
        "e\u0301",
        "\ufeff",
        "\x00",
        "\u2028",
        "\x85",
        "\r\n",
    ),
    *("\n", "\n\n", "\t", " ", "   ", "", "<|endoftext|>", "<|", "\\ud800", '"', "\\", "\x7f", "x" * 300, "\U0010ffff"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter(SCRAPS * 20), 300).save(str(path))
    return str(path)


@pytest.mark.parametrize(
    "number", [pytest.param(30, id="short"), pytest.param(500, id="long", marks=pytest.mark.faults)]
)
def test_every_document_comes_back_or_one_sentence(trials, draw, wrong, tokenizer, tmp_path, number):
    for trial in range(number):
        folder = tmp_path / str(trial)
        folder.mkdir()
        made = [_make(draw, folder, n) for n in range(draw.randint(1, 3))]
        fault = ", ".join(f"{path.name} {done}" for path, done, _ in made)
        expected = [texts for _, _, texts in made]
        whole = all(done == "whole" for _, done, _ in made)
        trials.try_here(fault, partial(_hold, folder, tokenizer, expected, whole, wrong))


def _hold(folder: Path, tokenizer: str, expected: list[list[str] | None], whole: bool, wrong: type[Exception]) -> None:
    """Prepare the files of ``folder``; raises ``wrong`` unless their documents are the ``expected`` ones."""
    settings = DataSettings(
        name="local",
        source="local",
        path=str(folder),
        validation_fraction=0.3,
        tokenizer=tokenizer,
        cache_dir=str(folder / "cache"),
    )
    try:
        data = prepare_data(settings, 1)
    except UserError as error:
        documents = {text for texts in expected for text in texts or () if text}
        if whole and len(documents) > 1:
            raise wrong(f"whole files are refused: {error}") from error
        raise
    if None in expected:
        raise wrong("a damaged file is taken")
    train, validation = _decoded(data, "train"), _decoded(data, "validation")
    read, written = Counter(train + validation), Counter(text for texts in expected for text in texts or () if text)
    if set(train) & set(validation):
        raise wrong("a document that validates trains")
    if data.meta["split"]["by"] == "stretches":
        if not all(any(part in text for text in written) for part in read):
            raise wrong("a part is of no document")
        if not all(_is_made_of(text, list(read)) for text in written):
            raise wrong("a document is not its parts")
    elif read != written:
        raise wrong(
            f"{(written - read).total()} documents of {written.total()} are missing, {(read - written).total()} new"
        )


def _is_made_of(text: str, parts: list[str]) -> bool:
    reached = {0}
    for at in range(len(text)):
        if at in reached:
            reached |= {at + len(part) for part in parts if text.startswith(part, at)}
    return len(text) in reached


def _decoded(data: TokenData, stream: str) -> list[str]:
    tokens = getattr(data, f"{stream}_tokens").tolist()
    bounds = [*getattr(data, f"{stream}_document_starts").tolist(), len(tokens)]
    tokenizer = data.load_tokenizer()
    return [tokenizer.decode(tokens[a + 1 : b], skip_special_tokens=False) for a, b in itertools.pairwise(bounds)]


def _make(draw: random.Random, folder: Path, number: int) -> tuple[Path, str, list[str] | None]:
    """A file, what was done to it, and the documents it then holds; None where it cannot be read to its end."""
    kind = draw.choice(FORMATS)
    path = folder / f"{number}.{kind}"
    one = kind in ("txt", "txt.gz")
    texts = [_text(draw) for _ in range(1 if one else draw.choice([1, 60, 60, 60]))]
    texts += draw.choices(texts, k=draw.choice([0, 0, 5])) if texts and not one else []
    content = _written(draw, path, kind, texts)
    done = draw.choice(["whole", "whole", "truncated", "flipped", "marked", "blank lines", "emptied"])
    if done == "truncated":
        content = content[: draw.randint(0, len(content))]
    elif done == "flipped" and content and kind not in ("jsonl.zst", "csv", "arrow"):  # which have no checksum
        at = draw.randrange(len(content))
        content = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    elif done == "marked" and kind in ("txt", "jsonl", "json", "csv"):
        content = BOM + content
    elif done == "blank lines" and kind == "jsonl":
        content = b"\n \n" + content + b"\n\r\n"
    elif done == "emptied":
        content = b""
    else:
        done = "whole"
    path.write_bytes(content)
    return path, done, _independently(kind, content, texts)


def _text(draw: random.Random) -> str:
    scraps = draw.choices(SCRAPS, k=draw.randint(0, 30))
    return "".join([*scraps, *(chr(draw.choice([*range(0xD7FF), *range(0xE000, 0x11000)])) for _ in range(3))])


def _written(draw: random.Random, path: Path, kind: str, texts: list[str]) -> bytes:
    if kind in ("txt", "txt.gz"):
        return _compressed(kind, texts[0].encode())
    if kind == "json":
        return json.dumps([{"n": 1, "text": text} for text in texts], ensure_ascii=draw.random() < 0.5).encode()
    if kind == "csv":
        out = io.StringIO(newline="")
        csv.writer(out).writerows([("n", "text"), *((1, text) for text in texts)])
        return out.getvalue().encode()
    if kind == "arrow":
        table = pyarrow.table({"n": range(len(texts)), "text": pyarrow.array(texts, pyarrow.string())})
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=draw.choice([7, 1000]))
        return sink.getvalue().to_pybytes()
    if kind == "parquet":
        table = pyarrow.table({"n": range(len(texts)), "text": pyarrow.array(texts, pyarrow.string())})
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, row_group_size=draw.choice([7, 1000]), write_page_checksum=True)
        return sink.getvalue().to_pybytes()
    lines = [json.dumps({"n": 1, "text": text}, ensure_ascii=draw.random() < 0.5) + "\n" for text in texts]
    # A compressed file may be two, one after the other.
    cut = draw.choice([0, len(lines) // 2])
    parts = ["".join(part).encode() for part in (lines[:cut], lines[cut:]) if part]
    return b"".join(_compressed(kind, part) for part in parts)


def _compressed(kind: str, content: bytes) -> bytes:
    if kind == "jsonl.zst":
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as out:
            out.write(content)
        return sink.getvalue().to_pybytes()
    return {"gz": gzip.compress, "xz": lzma.compress}.get(kind.rpartition(".")[2], bytes)(content)


def _independently(kind: str, content: bytes, texts: list[str]) -> list[str] | None:
    if not content and kind not in ("txt", "jsonl", "json"):
        return None
    if kind in ("jsonl.zst", "parquet", "arrow"):
        return texts
    try:
        plain = {"gz": gzip.decompress, "xz": lzma.decompress}.get(kind.rpartition(".")[2], bytes)(content)
        plain = plain.removeprefix(BOM)
        if kind in ("txt", "txt.gz"):
            return [plain.decode()]
        if kind == "json":
            return [row["text"] for row in json.loads(plain.decode())] if plain.strip() else []
        if kind == "csv":
            rows = list(csv.reader(io.StringIO(plain.decode(), newline=""), strict=True))
            return [dict(zip(rows[0], row, strict=True))["text"] for row in rows[1:] if row]
        found = [json.loads(line)["text"] for line in plain.split(b"\n") if line.strip()]
        "".join(found).encode()
    except (OSError, EOFError, ValueError, LookupError, TypeError, lzma.LZMAError, zlib.error, csv.Error):
        return None
    return found
