"""Random documents, written in any of the formats, and the corpora and tokenizers made of them."""

import gzip
import itertools
import json
import lzma
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dma_lab.data import build
from dma_lab.data.build import prepare_data
from dma_lab.data.settings import DataSettings
from dma_lab.data.store import TokenData
from dma_lab.data.tokenizer import train_tokenizer

_WORDS = [
    *(
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "that",
        "it",
        "was",
        "for",
        "on",
        "don't",
        "we'll",
        "1984",
        "3.14",
        "a, b.",
    ),
    *("naïve", "Œuvre", "東京", "日本語", "🦉", "👩\u200d👩\u200d👧", "e\u0301", "\ufeff", "\x00", "\u2028"),
    *("\r\n", "\n", "\n\n", "\t", "   ", "", "<|endoftext|>", "<|", "<think>", "def f(x):", "x" * 60),
]


def random_documents(count: int, seed: int = 0, longest: int = 120) -> list[str]:
    """Documents of words, digits, scripts, joined emoji, blanks of all kinds, and text that looks like an EOT."""
    generator = random.Random(seed)
    documents = []
    for number in range(count):
        words = generator.choices(_WORDS, k=generator.randint(0, longest))
        documents.append(f"{number} " + generator.choice(["", " ", "\n"]).join(words))
    return documents


def write_documents(path: Path, documents: list[str], field: str = "text") -> Path:
    """``documents`` in the format that the name of ``path`` asks for; a folder of files for ``.txt``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.mkdir()
        for number, text in enumerate(documents):
            (path / f"{number:06d}.txt").write_bytes(text.encode())
        return path
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(documents)), field: documents}), path)
        return path
    lines = "".join(json.dumps({"id": 1, field: text}) + "\n" for text in documents).encode()
    if path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
            out.write(lines)
    else:
        path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(lines))
    return path


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., DataSettings]:
    """``settings_of(path, **changes)``: local files, a small vocabulary, a cache that ends with the test."""

    def make(path: Path | str | list[str], /, **changes: object) -> DataSettings:
        chosen: dict = {
            "name": "local",
            "source": "local",
            "path": path if isinstance(path, list) else str(path),
            "validation_fraction": 0.3,
            "vocab_size": 300,
            "cache_dir": str(tmp_path / "cache"),
        } | changes
        return DataSettings(**chosen)

    return make


@pytest.fixture(scope="session")
def in_a_process() -> Callable[..., subprocess.CompletedProcess]:
    """``in_a_process(settings, environment)``: prepare the data where libraries read their environment anew.

    Prints the folder of the token files, or the user's mistake and exits with status 2; of several settings, one after
    another, a line each, and exits with status 2 if all were mistakes.
    """

    def prepare(*settings: DataSettings, environment: dict | None = None, before: str = "") -> Any:
        program = f"""
            import resource, sys
            from dma_lab.data.build import prepare_data
            from dma_lab.data.settings import DataSettings
            from dma_lab.messages import UserError
            {before}
            mistakes = 0
            for settings in {settings!r}:
                try:
                    print(prepare_data(settings, 1000).folder)
                except UserError as error:
                    print(error)
                    mistakes += 1
            sys.exit(2 if mistakes == {len(settings)} else 0)
            """
        command = [sys.executable, "-c", textwrap.dedent(program)]
        inherited = os.environ | (environment or {})
        return subprocess.run(command, env=inherited, capture_output=True, text=True, timeout=60)

    return prepare


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return random_documents(200)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> TokenData:
    """The token files of ``documents``."""
    folder = tmp_path_factory.mktemp("corpus")
    path = write_documents(folder / "corpus.jsonl", documents)
    settings = DataSettings(
        name="local",
        source="local",
        path=str(path),
        validation_fraction=0.3,
        vocab_size=300,
        cache_dir=str(folder / "cache"),
    )
    return prepare_data(settings, 1)


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_documents


@pytest.fixture(scope="session")
def make_documents() -> Callable[..., list[str]]:
    return random_documents


@pytest.fixture(scope="session")
def decode_stream() -> Callable[..., list[str]]:
    """``decode_stream(data, "train")``: every document of a stream, decoded from its tokens."""

    def decode(data: TokenData, stream: str) -> list[str]:
        tokenizer = data.load_tokenizer()
        tokens = getattr(data, f"{stream}_tokens").tolist()
        bounds = [*getattr(data, f"{stream}_document_starts").tolist(), len(tokens)]
        assert bounds[0] == 0
        texts = []
        for begin, end in itertools.pairwise(bounds):
            assert tokens[begin] == data.eot_id
            assert data.eot_id not in tokens[begin + 1 : end]
            texts.append(tokenizer.decode(tokens[begin + 1 : end], skip_special_tokens=False))
        return texts

    return decode


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """How often token files were made: the real builder, counted."""
    made: list[Path] = []
    real = build._build

    def counted(folder: Path, *rest: Any) -> None:
        made.append(folder)
        real(folder, *rest)

    monkeypatch.setattr(build, "_build", counted)
    return made


@pytest.fixture
def pair(tmp_path: Path, make_documents: Callable[..., list[str]]) -> Path:
    """A small encoder.json and vocab.bpe, written as GPT-2's are."""
    trained = json.loads(train_tokenizer(iter(make_documents(300)), 400).to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(t for t in trained["vocab"] if t != "<|endoftext|>")}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in trained["merges"]]
    folder = tmp_path / "pair"
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps(vocabulary))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return folder
