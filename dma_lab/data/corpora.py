"""Which documents there are, in which order, and which of them validate."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dma_lab.data.readers import Document

VALIDATES = "training documents that validate left out"


@dataclass
class Taken:
    """What was read of one kind."""

    files: int = 0
    documents: int = 0
    bytes: int = 0

    def add(self, document: Document) -> None:
        self.documents += 1
        self.bytes += document.size


class Corpus(ABC):
    """An ordered collection of documents, each of them for training or for validation.

    No document trains that is, to the byte, one of those set apart for validation. Where instead a share of one
    collection validates, chosen by the documents' digests, copies fall on one side by themselves.
    """

    identity: Any
    """JSON: whatever decides which documents there are and in which order, by content and never by path."""
    taken: dict[str, Taken]
    """By kind; documents and bytes are those of the last pass."""
    left: Counter[str]
    """Files, by why."""
    counts: Counter[str]
    """Documents of the last pass that were left out, or that repeat others, by why."""
    set_apart = False
    """Those that validate come before all others, and all of them."""
    own_split = False
    """Those that validate were set apart by the publisher: copies of them are counted, and train."""

    def __init__(self) -> None:
        self.taken, self.left, self.counts = {}, Counter(), Counter()
        self._held_out: set[str] | None = None

    @property
    @abstractmethod
    def split(self) -> dict[str, Any]:
        """How it was decided what validates: ``by`` what, and further facts. JSON."""

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
        for taken in self.taken.values():
            taken.documents = taken.bytes = 0
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
                self.counts[VALIDATES] += 1

    def not_reached(self) -> Counter[str]:
        """Files that the last pass was ended before, by why."""
        return Counter()

    def fraction_read(self) -> float:
        """How much of the corpus ``documents`` has gone through, 0 to 1; 0 where nobody knows."""
        return 0.0

    def refuse_change(self) -> None:  # noqa: B027 (a corpus in memory cannot change)
        """Raise UserError if what was read is no longer what ``identity`` says."""
