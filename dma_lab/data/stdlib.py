"""The embedded corpus: the source text of the running Python's standard library, which every machine has."""

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dma_lab.data.corpora import Corpus, Taken
from dma_lab.data.digests import share_below, text_digest
from dma_lab.data.readers import Document, whole_document
from dma_lab.messages import UserError

_EXCERPT_CHARACTERS = 6000
"""Of a validation document: many contexts of the small rungs, and yet dozens of them in what is scored by default."""
_EXCERPTS_A_FILE = 8

_BOUNDARIES = [
    re.compile(r"\n\n(?=@|def |class |async def )"),  # a definition at top level
    re.compile(r"\n\n(?=\S)"),
    re.compile(r"\n\n"),
    re.compile(r"\n"),
]


@dataclass
class StandardLibrary(Corpus):
    """The .py files of the running Python's standard library.

    A training document is a file. A file that validates is cut at its definitions into excerpts, at most
    ``_EXCERPTS_A_FILE`` of which are taken, for else the few largest modules would be all that is scored. Order and
    split go by a hash of the file's name relative to the library's root: neighbours in the stream are strangers, and a
    file validates or trains wherever Python is installed.
    """

    validation_fraction: float
    set_apart = True
    root: Path = field(default_factory=lambda: Path(sysconfig.get_path("stdlib")))
    _done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__init__()
        files: list[tuple[str, str]] = []
        excerpts: list[tuple[str, Document]] = []
        read = 0
        for path in self.root.rglob("*.py"):
            name = path.relative_to(self.root).as_posix()
            if {"site-packages", "dist-packages"} & set(path.parts):
                self.left[".py: installed packages, not the standard library's"] += 1
                continue
            content = _utf8_or_none(path)
            if not content:
                self.left[".py: undecodable" if content is None else ".py: empty"] += 1
                continue
            read += 1
            if share_below(_name_hash("split", name), self.validation_fraction):
                cut = cut_at_definitions(content.decode("utf-8"), _EXCERPT_CHARACTERS)
                self.left[f"excerpts: of a file that validates, beyond {_EXCERPTS_A_FILE}"] += len(
                    cut[_EXCERPTS_A_FILE:]
                )
                cut = cut[:_EXCERPTS_A_FILE]
                excerpts += [
                    (_name_hash("order", f"{name}:{number}"), whole_document(text, name))
                    for number, text in enumerate(cut)
                ]
            else:
                files.append((name, text_digest(content)))
        self._files = sorted(files, key=lambda file: _name_hash("order", file[0]))
        self._excerpts = [document for _, document in sorted(excerpts, key=lambda excerpt: excerpt[0])]
        listing = [f"{name} {digest}" for name, digest in self._files]
        listing += [document.digest for document in self._excerpts]
        self.identity = {
            "stdlib": hashlib.blake2b("\n".join(listing).encode()).hexdigest(),
            "validation_fraction": self.validation_fraction,
        }
        self.taken = {".py": Taken(files=read)}

    @property
    def split(self) -> dict[str, Any]:
        return {"by": "files", "share": self.validation_fraction, "stretch_characters": _EXCERPT_CHARACTERS}

    def _validation(self) -> Iterator[Document]:
        for excerpt in self._excerpts:
            self.taken[".py"].add(excerpt)
            yield excerpt

    def _training(self) -> Iterator[tuple[Document, bool]]:
        for number, (name, digest) in enumerate(self._files):
            self._done = number
            content = (self.root / name).read_bytes()
            if text_digest(content) != digest:
                raise UserError(f"{self.root / name} changed while it was read: start again once Python is installed.")
            document = Document((content.decode("utf-8"),), digest, len(content))
            self.taken[".py"].add(document)
            yield document, False

    def fraction_read(self) -> float:
        return self._done / max(1, len(self._files))


def cut_at_definitions(text: str, characters: int) -> list[str]:
    """``text`` in equal parts of at most about ``characters``, moved to where a definition begins if one is near.

    A part is between two thirds and four thirds of what would be equal; without a definition it ends at the last
    paragraph or line within that.
    """
    parts, start = [], 0
    while (left := len(text) - start) > characters:
        equal = left // -(-left // characters)
        low, high = start + 2 * equal // 3, start + 4 * equal // 3
        ends = (list(boundary.finditer(text, low, high)) for boundary in _BOUNDARIES)
        found = next((matches[-1].end() for matches in ends if matches), start + equal)
        parts.append(text[start:found])
        start = found
    return [*parts, text[start:]] if start < len(text) else parts


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
