"""The corpus of local files."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dma_lab.data.corpora import Corpus, Taken
from dma_lab.data.digests import DigestCache, file_state
from dma_lab.data.finding import find_files, user_path
from dma_lab.data.formats import format_of, kind_of
from dma_lab.data.readers import Document, read_documents
from dma_lab.data.settings import DataSettings
from dma_lab.data.splits import Split, choose_split, parts_of
from dma_lab.messages import UserError, warn_once
from dma_lab.progress import WorkProgress

_NOT_REACHED = "file not reached: data.max_tokens came first"


@dataclass
class SourceFile:
    path: Path
    format: str
    digest: str
    state: list[int]
    """``digests.file_state`` before it was digested."""


class LocalCorpus(Corpus):
    """Files, in the order of their names within what was asked for."""

    def __init__(
        self, train: list[SourceFile], validation: list[SourceFile], left: Counter[str], settings: DataSettings
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self._settings = settings
        self._read, self._begun = 0, 0
        self.left, self.set_apart = left, bool(validation)
        for file in train + validation:
            self.taken.setdefault(kind_of(file.path), Taken()).files += 1
        self.identity = {
            "train": [[file.format, file.digest] for file in train],
            "validation": [[file.format, file.digest] for file in validation],
            "validation_fraction": None if validation else settings.validation_fraction,
            "text_field": list(settings.text_fields),
            "encoding": settings.encoding,
        }

    @property
    def split(self) -> dict[str, Any]:
        return {"by": "data.validation_path"} if self.validation else self._share.recorded()

    @cached_property
    def _share(self) -> Split:
        def documents() -> Iterator[Document]:
            self._read = 0
            for document in self._documents(self.train):
                yield document
                progress.update(self.fraction_read(), f"{self._read / 1e6:,.0f} MB")

        with WorkProgress("choosing what validates") as progress:
            return choose_split(documents, self._settings.validation_fraction)

    def _validation(self) -> Iterator[Document]:
        if not self.validation:
            _ = self._share  # before anything of the pass is counted
        self._read = self._begun = 0
        self.counts.clear()
        yield from self._counted(self.validation)

    def _training(self) -> Iterator[tuple[Document, bool]]:
        if self.validation:
            yield from ((document, False) for document in self._counted(self.train))
            return
        validating: set[str] = set()
        for document in self._counted(self.train):
            for part, validates in parts_of(document, self._share):
                if validates and self._share.by == "stretches":
                    if part.digest in validating:
                        self.counts["stretches that repeat one that validates left out"] += 1
                        continue
                    validating.add(part.digest)
                yield part, validates

    def _counted(self, files: list[SourceFile]) -> Iterator[Document]:
        for file in files:
            self._begun += 1
            for document in self._documents([file]):
                self.taken[kind_of(file.path)].add(document)
                yield document

    def _documents(self, files: list[SourceFile]) -> Iterator[Document]:
        for file in files:
            yield from read_documents(
                file.path,
                file.format,
                fields=self._settings.text_fields,
                encoding=self._settings.encoding,
                file_digest=file.digest,
                left=self.counts,
                on_bytes=self._on_bytes,
            )

    def not_reached(self) -> Counter[str]:
        return +Counter({_NOT_REACHED: len(self.train) + len(self.validation) - self._begun})

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
    paths, validation = _saved_splits(settings)
    train_paths, left = find_files(paths, "data.path", settings.pattern)
    validation_paths, left_of_validation = find_files(validation, "data.validation_path", settings.pattern)
    any_folder = any(user_path(given, "data.path").is_dir() for given in paths + validation)
    _say_without_effect(settings, train_paths + validation_paths, any_folder=any_folder)
    total = max(1, sum(path.stat().st_size for path in train_paths + validation_paths))
    done = 0

    with WorkProgress("looking at the files") as progress:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            progress.update(done / total, f"{done / 1e6:,.0f} MB")

        def digested(path: Path) -> SourceFile:
            try:
                state = file_state(path)
                format = format_of(path, else_text=settings.pattern is not None)
                return SourceFile(path, format or "", digests.file_digest(path, on_bytes), state)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error

        train = [digested(path) for path in train_paths]
        held_out = [digested(path) for path in validation_paths]
    return LocalCorpus(train, held_out, left + left_of_validation, settings)


def _say_without_effect(settings: DataSettings, files: list[Path], *, any_folder: bool) -> None:
    """Tell the user of settings that change nothing of what these files are read as."""
    if settings.pattern is not None and not any_folder and all(map(format_of, files)):
        warn_once(
            f"data.pattern={settings.pattern} changes nothing: it is of folders and of files in no known format, and "
            "neither is given."
        )
    plain = all((format_of(file, else_text=True) or "").startswith(".txt") for file in files)
    if plain and settings.text_fields != (DataSettings.text_field,):
        warn_once(f"data.text_field={settings.text_field} changes nothing: plain text has no fields, and all is that.")


def _saved_splits(settings: DataSettings) -> tuple[list[str], list[str]]:
    """``data.path`` and ``data.validation_path``, a folder of several saved splits replaced by its train split.

    Its validation split validates, unless other documents are to.
    """
    paths, validation = _listed(settings.path), _listed(settings.validation_path)
    chosen = []
    for given in paths:
        place = user_path(given, "data.path")
        if not (place / "dataset_dict.json").is_file():
            chosen.append(given)
            continue
        splits = sorted(folder.name for folder in place.iterdir() if folder.is_dir())
        if "train" not in splits:
            raise UserError(
                f"data.path={given} holds the splits {', '.join(splits)} and none called train: give the one that "
                f"trains, as data.path={place / splits[0] if splits else place}."
            )
        chosen.append(str(place / "train"))
        if "validation" in splits and not settings.validation_path:
            validation.append(str(place / "validation"))
        rest = [name for name in splits if name != "train" and str(place / name) not in validation]
        warn_once(
            f"data.path={given} holds the splits {', '.join(splits)}: train trains"
            + (", validation validates" if str(place / "validation") in validation else "")
            + (f", {', '.join(rest)} is left." if rest else ".")
        )
    return chosen, validation


def _listed(paths: str | list[str] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or [])
