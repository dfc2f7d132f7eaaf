"""Which documents there are, in which order, and which of them validate: the standard library, local files, the hub."""

import glob
import hashlib
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dma_lab.data.digests import DigestCache, share_below, text_digest
from dma_lab.data.progress import BuildProgress
from dma_lab.data.readers import FORMATS, Document, format_of, read_documents
from dma_lab.data.settings import DataSettings
from dma_lab.messages import UserError, announce_once


class Corpus(ABC):
    """An ordered collection of documents, each of them for training or for validation."""

    identity: Any
    """JSON: whatever decides which documents there are and in which order, by content and never by path."""

    @abstractmethod
    def documents(self, *, training_only: bool = False) -> Iterator[tuple[Document, bool]]:
        """(document, whether it validates), from the start. Read a document's chunks before you ask for the next."""

    def fraction_read(self) -> float:
        """How much of the corpus ``documents`` has gone through, 0 to 1; 0 where nobody knows."""
        return 0.0


@dataclass
class SourceFile:
    path: Path
    digest: str
    size: int


@dataclass
class LocalCorpus(Corpus):
    """Files, in the order of their names within what was asked for."""

    train: list[SourceFile]
    validation: list[SourceFile]
    validation_fraction: float | None
    """The share of the training files' documents that validates, by their digest; None if there are other files."""
    text_field: str
    _read: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.identity = {
            "train": [[format_of(file.path), file.digest] for file in self.train],
            "validation": [[format_of(file.path), file.digest] for file in self.validation],
            "validation_fraction": self.validation_fraction,
            "text_field": self.text_field,
        }

    def documents(self, *, training_only: bool = False) -> Iterator[tuple[Document, bool]]:
        self._read = 0
        # Validation first: it must be whole even if max_tokens ends the reading early.
        for file in [] if training_only else self.validation:
            for document in read_documents(file.path, self.text_field, file.digest, self._on_bytes):
                yield document, True
        for file in self.train:
            for document in read_documents(file.path, self.text_field, file.digest, self._on_bytes):
                validates = self.validation_fraction is not None and share_below(
                    document.digest, self.validation_fraction
                )
                if not (validates and training_only):
                    yield document, validates

    def fraction_read(self) -> float:
        return self._read / max(1, sum(file.size for file in self.train + self.validation))

    def _on_bytes(self, count: int) -> None:
        self._read += count


@dataclass
class StandardLibrary(Corpus):
    """The .py files of the running Python's standard library, a file a document.

    Both the order and the split go by a hash of the file's name relative to the library's root: neighbours in the
    stream are strangers, and a file validates or trains wherever Python is installed.
    """

    validation_fraction: float
    root: Path = field(default_factory=lambda: Path(sysconfig.get_path("stdlib")))
    _done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        files: list[tuple[str, str]] = []
        for path in self.root.rglob("*.py"):
            name = path.relative_to(self.root).as_posix()
            text = None if {"site-packages", "dist-packages"} & set(path.parts) else _utf8_or_none(path)
            if text:
                files.append((name, text_digest(text)))
        self._files = sorted(files, key=lambda file: _name_hash("order", file[0]))
        listing = hashlib.blake2b("\n".join(f"{name} {digest}" for name, digest in self._files).encode())
        self.identity = {"stdlib": listing.hexdigest(), "validation_fraction": self.validation_fraction}

    def documents(self, *, training_only: bool = False) -> Iterator[tuple[Document, bool]]:
        for number, (name, digest) in enumerate(self._files):
            self._done = number
            validates = share_below(_name_hash("split", name), self.validation_fraction)
            if not (validates and training_only):
                text = (self.root / name).read_bytes().decode("utf-8")
                yield Document((text,), digest), validates

    def fraction_read(self) -> float:
        return self._done / max(1, len(self._files))


def _name_hash(purpose: str, name: str) -> str:
    return text_digest(f"{purpose}:{name}".encode())


def _utf8_or_none(path: Path) -> bytes | None:
    """The library has a few files in other encodings on purpose (tests of the parser)."""
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return content


def open_local(settings: DataSettings, digests: DigestCache) -> LocalCorpus:
    """Find and digest the files of ``data.path`` and ``data.validation_path``.

    Raises:
        UserError: nothing lies there, a file is in no known format or cannot be read.
    """
    train_paths = _expand(settings.path or [], "data.path")
    validation_paths = _expand(settings.validation_path or [], "data.validation_path")
    total = max(1, sum(path.stat().st_size for path in train_paths + validation_paths))
    done = 0

    with BuildProgress("looking at the files") as progress:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            progress.update(done / total, f"{done / 1e6:,.0f} MB")

        def digested(path: Path) -> SourceFile:
            try:
                return SourceFile(path, digests.file_digest(path, on_bytes), path.stat().st_size)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error

        train = [digested(path) for path in train_paths]
        validation = [digested(path) for path in validation_paths]
    held_out = {file.digest for file in validation}
    shared = [file for file in train if file.digest in held_out]
    if shared:
        announce_once(f"not trained on, because they validate: {', '.join(str(file.path) for file in shared)}.")
        train = [file for file in train if file.digest not in held_out]
    return LocalCorpus(
        train, validation, None if validation else settings.validation_fraction, text_field=settings.text_field
    )


def _expand(patterns: str | list[str], setting: str) -> list[Path]:
    """The files that ``patterns`` name: files, folders (all in known formats below them) and globs, each sorted."""
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and format_of(file))
        elif path.exists():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not files:
            raise UserError(
                f"{setting}={pattern} leads to no file: give a file, a folder or a glob of {', '.join(FORMATS)}."
            )
        for file in files:
            if format_of(file) is None:
                raise UserError(f"{setting}: {file} is in no known format; there are {', '.join(FORMATS)}.")
            found[file] = None
    return list(found)
