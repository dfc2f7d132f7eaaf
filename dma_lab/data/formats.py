"""Which formats there are, told by a file's name; and which encodings of text."""

import codecs
from pathlib import Path

from dma_lab.messages import UserError
from dma_lab.settings import shown

KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".xz", ".zst")
"""Of the kinds that are text; parquet and arrow compress by themselves."""
FORMATS = "txt, jsonl, json, csv and tsv (also with .gz, .xz or .zst), parquet and arrow"


def format_of(path: Path, *, else_text: bool = False) -> str | None:
    """Kind and compression of a file by its name, as ``.jsonl.xz``; None if it has no known kind.

    Args:
        else_text: what has no known kind is plain text, ``.txt``, compressed or not.
    """
    kind, compression = _kind_and_compression(path)
    if kind not in KINDS or (compression and kind in (".parquet", ".arrow")):
        return f".txt{compression}" if else_text else None
    return kind + compression


def kind_of(path: Path) -> str:
    """What a file is by its own name, in a known format or not: ``.rst.gz``, or ``without suffix``."""
    kind, compression = _kind_and_compression(path)
    return kind + compression if kind else " ".join(filter(None, ("without suffix", compression)))


def checked_encoding(name: str) -> str:
    """Python's name of the encoding. Raises UserError if it has none of that name."""
    try:
        codec = codecs.lookup(name)
        if codec._is_text_encoding and codec.incrementaldecoder is not None:
            return codec.name
    except (LookupError, ValueError):
        pass
    raise UserError(
        f"data.encoding={shown(name)} is no encoding of text; give one such as utf-8, latin-1, cp1252 or utf-16."
    )


def is_utf8(encoding: str) -> bool:
    return checked_encoding(encoding) == "utf-8"


def _kind_and_compression(path: Path) -> tuple[str, str]:
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression
