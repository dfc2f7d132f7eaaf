"""What a run says about its data: the `data` node of the configuration as a plain dataclass."""

from dataclasses import dataclass, fields

from dma_lab.data.formats import checked_encoding
from dma_lab.messages import UserError, warn_once

SOURCES = ("stdlib", "local", "hub")
_OF = {"encoding": ("local",), "text_field": ("local", "hub")} | dict.fromkeys(
    ("hub_name", "hub_config", "hub_split", "hub_validation_split"), ("hub",)
)
"""Settings that not every source takes."""


@dataclass(frozen=True)
class DataSettings:
    """Where the text comes from, how it is split, and what turns it into tokens.

    Raises:
        UserError: a setting that contradicts another or lies outside of what it may be.
    """

    name: str
    source: str
    """``stdlib`` (the .py files of the running Python), ``local`` (files) or ``hub`` (a Hugging Face data set)."""
    path: str | list[str] | None = None
    """Of ``local``: files, folders or globs, in ``formats.FORMATS``; or a folder of ``datasets.save_to_disk``."""
    validation_path: str | list[str] | None = None
    """Of ``local``: the validation documents; without it a share of ``path``'s text (``splits.choose_split``)."""
    pattern: str | None = None
    """Of ``local``: a glob below the folders of ``path``; files of no known format that match are plain text."""
    encoding: str = "utf-8"
    """Of ``local``: of all files that are text."""
    validation_fraction: float = 0.01
    """The least share of documents, chosen by a hash of their text (stdlib: of the file's name), that validates."""
    hub_name: str | None = None
    hub_config: str | None = None
    hub_split: str | None = None
    hub_validation_split: str | None = None
    """The split that validates; without it a share of ``hub_split``'s documents."""
    text_field: str | list[str] = "text"
    """The key or column that holds a record's text; ``meta.text`` is one within another, several are joined."""
    tokenizer: str = "bpe"
    """``bpe`` (trained on the training documents), a tokenizer.json, a folder with one or with GPT-2's
    encoder.json + vocab.bpe, or a hub name."""
    vocab_size: int | None = None
    """Of ``bpe``, the EOT included; any other tokenizer brings its own."""
    mask_documents: bool = True
    """Attention does not look across documents."""
    allow_repeat: bool = False
    """Train on a document more than once if the budget asks for it."""
    max_tokens: int | None = None
    """Stop reading once there are this many training tokens; hub sources otherwise stop at what the run needs."""
    cache_dir: str = ".cache/data"

    @property
    def text_fields(self) -> tuple[str, ...]:
        return (self.text_field,) if isinstance(self.text_field, str) else tuple(self.text_field)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"data.source={self.source} is unknown: choose one of {', '.join(SOURCES)}.")
        if self.source == "local" and not self.path:
            raise UserError("data=local needs data.path=… (a file, a folder or a glob).")
        if self.source == "hub" and not self.hub_name:
            raise UserError(f"data={self.name} reads from the hub and needs data.hub_name=… (such as owner/name).")
        if self.source != "local" and (self.path or self.validation_path or self.pattern):
            raise UserError(
                "data.path, data.validation_path and data.pattern belong to data=local; "
                f"data={self.name} reads no files."
            )
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value != setting.default and self.source not in _OF.get(setting.name, SOURCES):
                warn_once(f"data.{setting.name}={value} changes nothing: data={self.name} does not take it.")
        if not self.text_fields or not all(self.text_fields):
            raise UserError(f"data.text_field={self.text_field} names nothing: give the key or column of the text.")
        checked_encoding(self.encoding)
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"data.max_tokens={self.max_tokens} must be at least 1, or null for no limit.")
