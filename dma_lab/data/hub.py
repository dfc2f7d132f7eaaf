"""Documents streamed from a Hugging Face data set, pinned to one revision of it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub

from dma_lab.data.corpora import Corpus, Taken
from dma_lab.data.digests import share_below
from dma_lab.data.readers import NULL, Document, whole_document
from dma_lab.data.records import field_text
from dma_lab.data.settings import DataSettings
from dma_lab.files import write_whole
from dma_lab.messages import UserError, warn_once
from dma_lab.seals import sealed, unsealed

_TIMEOUT_SECONDS = 10.0


class HubCorpus(Corpus):
    """Rows of ``data.hub_name`` in the data set's order, streamed. A revision's content never changes."""

    def __init__(self, settings: DataSettings, cache_dir: Path) -> None:
        super().__init__()
        self._settings = settings
        self.own_split = self.set_apart = settings.hub_validation_split is not None
        self._revision = _current_revision(str(settings.hub_name), cache_dir)
        self.identity = {
            "hub": [settings.hub_name, self._revision, settings.hub_config],
            "splits": [settings.hub_split, settings.hub_validation_split],
            "validation_fraction": None if settings.hub_validation_split else settings.validation_fraction,
            "text_field": list(settings.text_fields),
        }
        self.taken = {"rows of the hub": Taken()}

    @property
    def split(self) -> dict[str, Any]:
        if self.own_split:
            return {"by": "data.hub_validation_split"}
        return {"by": "documents", "share": self._settings.validation_fraction}

    def _validation(self) -> Iterator[Document]:
        if self._settings.hub_validation_split:
            yield from self._rows(self._settings.hub_validation_split)

    def _training(self) -> Iterator[tuple[Document, bool]]:
        for document in self._rows(self._settings.hub_split or "train"):
            yield (
                document,
                not self.own_split and share_below(document.digest, self._settings.validation_fraction),
            )

    def _rows(self, split: str) -> Iterator[Document]:
        import datasets  # half a second that runs on other data need not wait

        settings = self._settings
        source = f"the data set {settings.hub_name} (data.hub_config={settings.hub_config}, split {split})"
        try:
            rows: Any = datasets.load_dataset(
                str(settings.hub_name), settings.hub_config, split=split, streaming=True, revision=self._revision
            )
            stream = iter(rows)
        except Exception as error:  # of datasets, the hub's client or the network: no common ancestor
            raise UserError(f"{source} cannot be opened: {_first_line(error)}.") from error
        for number in itertools.count(1):
            try:
                row = next(stream)
            except StopIteration:
                return
            except Exception as error:
                raise UserError(f"{source} broke off at row {number}: {_first_line(error)}. Start again.") from error
            where = f"row {number} of {source}"
            text = field_text(row, settings.text_fields, where)
            if text is None:
                self.counts[NULL] += 1
                continue
            document = whole_document(text, where)
            self.taken["rows of the hub"].add(document)
            yield document


def hub_tokenizer_file(name: str) -> Path:
    """A local copy of the tokenizer.json of the hub's model ``name``. Raises UserError if it cannot be had."""
    try:
        revision = huggingface_hub.HfApi().model_info(name, timeout=_TIMEOUT_SECONDS).sha
        return Path(huggingface_hub.hf_hub_download(name, "tokenizer.json", revision=revision))
    except Exception as error:
        try:  # an earlier run may have fetched it
            return Path(huggingface_hub.hf_hub_download(name, "tokenizer.json", local_files_only=True))
        except Exception:
            raise UserError(
                f"data.tokenizer={name} is neither a file or folder here nor could it be fetched from the hub "
                f"({_first_line(error)}): give a path, check the name and the network, or use data.tokenizer=bpe."
            ) from error


def _current_revision(name: str, cache_dir: Path) -> str:
    """The data set's newest commit; without network the one last seen, so that what was built can be used again."""
    remembered = cache_dir / "hub_revisions.json"
    try:
        known: dict[str, str] = unsealed(remembered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    try:
        revision = str(huggingface_hub.HfApi().dataset_info(name, timeout=_TIMEOUT_SECONDS).sha)
    except Exception as error:
        if name in known:
            warn_once(f"the hub does not answer; taking {name} as last seen (revision {known[name]}).")
            return known[name]
        raise UserError(
            f"data.hub_name={name} cannot be read from the hub ({_first_line(error)}): check the name and the network, "
            "or read files with data=local data.path=…, or the standard library with data=stdlib."
        ) from error
    if known.get(name) == revision:
        return revision
    known[name] = revision
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_whole(remembered, sealed(known))
    return revision


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
