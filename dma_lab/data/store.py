"""A prepared corpus on disk: two token streams, where their documents start, and the tokenizer that made them."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dma_lab.data.digests import file_state, mapped_digest
from dma_lab.seals import unsealed

META_FILE = "meta.json"
TOKENIZER_FILE = "tokenizer.json"
FILES = ("train.tokens", "train.starts", "validation.tokens", "validation.starts", "token_bytes", TOKENIZER_FILE)
"""What meta.json vouches for: its ``files`` hold each one's digest."""

_verified: set[tuple[object, ...]] = set()
"""Files, and their states, whose content this process has compared with its digest."""


class TornCacheError(Exception):
    """A folder of token files is not what its meta.json says; the message says in what."""


class TokenData:
    """The token files under ``folder``, memory-mapped: two streams ``<|endoftext|> document <|endoftext|> document …``

    So the target of a document's last token is the EOT that opens the next document, and every pair of
    neighbours in a stream is a legitimate (input, target) pair.

    A process that opens it reads every file once, to compare its digest with meta.json's.

    Raises:
        TornCacheError: meta.json is missing or not as it was written, or a file is not what it says.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        if verify:
            for name in FILES:
                _verify(self.folder / name, self.meta["files"][name])
        self.fingerprint: str = self.meta["fingerprint"]
        """Digest of the token streams and the tokenizer: equal fingerprints, equal batches."""
        self.vocab_size: int = self.meta["vocab_size"]
        if "eot_id" not in self.meta:
            raise TornCacheError(f"{META_FILE} has no eot_id: another version of dma_lab wrote it")
        self.eot_id: int = self.meta["eot_id"]
        self.unigram_entropy: float = self.meta["unigram_entropy"]
        """Nats per token of the training stream's token distribution: the loss of a model that only counts tokens."""
        self.tokenizer_loses: str | None = self.meta.get("tokenizer_loses")
        """What the tokenizer loses of text, in words: then no token has bytes. None where tokens stand for the text."""
        self.tokenizer_file = self.folder / TOKENIZER_FILE

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the files itself, for pickling a memmap would copy it; who sent it has verified them.
        return partial(TokenData, verify=False), (self.folder,)

    @cached_property
    def train_tokens(self) -> NDArray[Any]:
        """(training tokens,), uint16 or uint32."""
        return self._map("train.tokens", self.meta["dtype"])

    @cached_property
    def validation_tokens(self) -> NDArray[Any]:
        return self._map("validation.tokens", self.meta["dtype"])

    @cached_property
    def train_document_starts(self) -> NDArray[np.int64]:
        """(training documents,): where each document's EOT lies in ``train_tokens``."""
        return self._map("train.starts", "<i8")

    @cached_property
    def validation_document_starts(self) -> NDArray[np.int64]:
        return self._map("validation.starts", "<i8")

    @cached_property
    def token_bytes(self) -> NDArray[np.int32]:
        """(vocab_size,): how many bytes of UTF-8 text each token stands for; 0 for the EOT, and for all of a tokenizer
        that loses text."""
        return np.array(self._map("token_bytes", "<i4"))

    def load_tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.encode_special_tokens = True  # text that spells <|endoftext|> is text; the setting is not in the file
        return tokenizer

    def _map(self, name: str, dtype: str) -> NDArray[Any]:
        return np.memmap(self.folder / name, dtype=dtype, mode="r")


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta.json of the token files in ``folder``. Raises TornCacheError if it is not as it was written."""
    try:
        return unsealed((folder / META_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TornCacheError(f"{META_FILE}: {error}") from error


def _verify(file: Path, digest: str) -> None:
    try:
        key = (str(file.resolve()), *file_state(file))
        if key in _verified:
            return
        if mapped_digest(file) != digest:
            raise TornCacheError(f"{file.name} is not what was written")
    except (OSError, ValueError) as error:
        raise TornCacheError(f"{file.name}: {error}") from error
    _verified.add(key)
