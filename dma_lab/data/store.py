"""A prepared corpus on disk: two token streams, where their documents start, and the tokenizer that made them."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

META_FILE = "meta.json"
TOKENIZER_FILE = "tokenizer.json"


class TornCacheError(Exception):
    """A folder of token files is not what its meta.json says; the message says in what."""


class TokenData:
    """The token files under ``folder``, memory-mapped: two streams ``<|endoftext|> document <|endoftext|> document …``

    So the target of a document's last token is the separator that opens the next document, and every pair of
    neighbours in a stream is a legitimate (input, target) pair.

    Raises:
        TornCacheError: meta.json is missing or unreadable, or a file's size disagrees with it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.meta = _read_meta(self.folder)
        self.fingerprint: str = self.meta["fingerprint"]
        """Digest of the token streams and the tokenizer: equal fingerprints, equal batches."""
        self.vocab_size: int = self.meta["vocab_size"]
        self.separator_id: int = self.meta["separator_id"]
        self.unigram_entropy: float = self.meta["unigram_entropy"]
        """Nats a token of the training stream's token distribution: the loss of a model that only counts tokens."""
        self.tokenizer_file = self.folder / TOKENIZER_FILE

    def __reduce__(self) -> tuple[type["TokenData"], tuple[Path]]:
        return TokenData, (self.folder,)  # a worker process maps the files itself; pickling a memmap would copy it

    @cached_property
    def train_tokens(self) -> NDArray[Any]:
        """(training tokens,), uint16 or uint32."""
        return self._map("train.tokens", self.meta["dtype"])

    @cached_property
    def validation_tokens(self) -> NDArray[Any]:
        return self._map("validation.tokens", self.meta["dtype"])

    @cached_property
    def train_document_starts(self) -> NDArray[np.int64]:
        """(training documents,): where each document's separator lies in ``train_tokens``."""
        return self._map("train.starts", "<i8")

    @cached_property
    def validation_document_starts(self) -> NDArray[np.int64]:
        return self._map("validation.starts", "<i8")

    @cached_property
    def token_bytes(self) -> NDArray[np.int32]:
        """(vocab_size,): how many bytes of UTF-8 text each token stands for; 0 for the separator."""
        return np.array(self._map("token_bytes", "<i4"))

    @property
    def disk_bytes(self) -> int:
        return sum(self.meta["sizes"].values())

    def load_tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.encode_special_tokens = True  # text that spells <|endoftext|> is text; the setting is not in the file
        return tokenizer

    def _map(self, name: str, dtype: str) -> NDArray[Any]:
        return np.memmap(self.folder / name, dtype=dtype, mode="r")


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        for name, size in meta["sizes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise TornCacheError(f"{name} has {found:,} bytes instead of {size:,}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TornCacheError(f"{type(error).__name__}: {error}") from error
    return meta
