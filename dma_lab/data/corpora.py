"""Which documents there are, in which order, and which of them validate; and the corpus of local files."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dma_lab.data.digests import DigestCache, file_state, share_below
from dma_lab.data.finding import find_files
from dma_lab.data.progress import BuildProgress
from dma_lab.data.readers import Document, format_of, read_documents
from dma_lab.data.settings import DataSettings
from dma_lab.messages import UserError


class Corpus(ABC):
    """An ordered collection of documents, each of them for training or for validation.

    No document trains that is, to the byte, one of those set apart for validation. Where instead a share of one
    collection validates, chosen by the documents' digests, copies fall on one side by themselves.
    """

    identity: Any
    """JSON: whatever decides which documents there are and in which order, by content and never by path."""
    files: dict[str, dict[str, int]]
    """How many files were taken, and how many left, by kind."""
    counts: Counter[str]
    """Documents of the last pass that were left out, or that repeat others, by why."""
    own_split = False
    """Those that validate were set apart by the publisher: copies of them are counted, and train."""

    def __init__(self) -> None:
        self.files, self.counts = {}, Counter()
        self._held_out: set[str] | None = None

    @abstractmethod
    def _validation(self) -> Iterator[Document]:
        """The documents set apart for validation; none where a share of the others validates."""

    @abstractmethod
    def _training(self) -> Iterator[tuple[Document, bool]]:
        """The other documents, each with whether it validates."""

    def documents(self, *, training_only: bool = False) -> Iterator[tuple[Document, bool]]:
        """(document, whether it validates), from the start. Read a document's chunks before you ask for the next.

        Those that validate come first where they are set apart: they must be whole even if max_tokens ends the reading
        early.
        """
        self.counts = Counter()
        if training_only and self._held_out is None:
            self._held_out = {document.digest for document in self._validation()}
        elif not training_only:
            held_out: set[str] = set()
            for document in self._validation():
                self.counts["validation documents repeat another"] += document.digest in held_out
                held_out.add(document.digest)
                yield document, True
            self._held_out = held_out
        for document, validates in self._training():
            if validates:
                if not training_only:
                    yield document, True
            elif document.digest not in (self._held_out or ()):
                yield document, False
            elif self.own_split:
                self.counts["training documents also validate, as the data set has it"] += 1
                yield document, False
            else:
                self.counts["training documents that validate left out"] += 1

    def fraction_read(self) -> float:
        """How much of the corpus ``documents`` has gone through, 0 to 1; 0 where nobody knows."""
        return 0.0

    def refuse_change(self) -> None:  # noqa: B027 (a corpus in memory cannot change)
        """Raise UserError if what was read is no longer what ``identity`` says."""


@dataclass
class SourceFile:
    path: Path
    digest: str
    state: list[int]
    """``digests.file_state`` before it was digested."""


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
        super().__init__()
        self.identity = {
            "train": [[format_of(file.path), file.digest] for file in self.train],
            "validation": [[format_of(file.path), file.digest] for file in self.validation],
            "validation_fraction": self.validation_fraction,
            "text_field": self.text_field,
        }

    def _validation(self) -> Iterator[Document]:
        self._read = 0
        for file in self.validation:
            yield from read_documents(file.path, self.text_field, file.digest, self._on_bytes)

    def _training(self) -> Iterator[tuple[Document, bool]]:
        for file in self.train:
            for document in read_documents(file.path, self.text_field, file.digest, self._on_bytes):
                share = self.validation_fraction
                yield document, share is not None and share_below(document.digest, share)

    def fraction_read(self) -> float:
        return self._read / max(1, sum(file.state[0] for file in self.train + self.validation))

    def refuse_change(self) -> None:
        for file in self.train + self.validation:
            if file_state(file.path) != file.state:
                raise UserError(f"{file.path} changed while it was read: start again when nothing writes to it.")

    def _on_bytes(self, count: int) -> None:
        self._read += count


def open_local(settings: DataSettings, digests: DigestCache) -> LocalCorpus:
    """Find and digest the files of ``data.path`` and ``data.validation_path``.

    Raises:
        UserError: nothing lies there, a file is in no known format or cannot be read.
    """
    train_paths, left = find_files(settings.path or [], "data.path")
    validation_paths, left_of_validation = find_files(settings.validation_path or [], "data.validation_path")
    total = max(1, sum(path.stat().st_size for path in train_paths + validation_paths))
    done = 0

    with BuildProgress("looking at the files") as progress:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            progress.update(done / total, f"{done / 1e6:,.0f} MB")

        def digested(path: Path) -> SourceFile:
            try:
                state = file_state(path)
                return SourceFile(path, digests.file_digest(path, on_bytes), state)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error

        train = [digested(path) for path in train_paths]
        validation = [digested(path) for path in validation_paths]
    corpus = LocalCorpus(
        train, validation, None if validation else settings.validation_fraction, text_field=settings.text_field
    )
    taken = Counter(format_of(path) or "" for path in train_paths + validation_paths)
    corpus.files = {"taken": dict(taken), "left": dict(left + left_of_validation)}
    return corpus
