"""What a preparation took, what it left and why, and what validates: said once, when the token files are made."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dma_lab.data.corpora import Taken
from dma_lab.settings import shown

LEAST_EFFECTIVE = 20
"""Documents, below which a report gives no interval over them (``scaling.documents.LEAST_DOCUMENTS``)."""


def print_inventory(name: str, taken: Mapping[str, Taken], left: Counter[str], counts: Mapping[str, int]) -> None:
    """One table on stderr: kinds of files taken with their documents and bytes, then files and documents left."""
    table = Table(title=f"data={name}: what was taken and what was left", title_justify="left")
    table.add_column("")
    for column in ("files", "documents", "bytes of text"):
        table.add_column(column, justify="right")
    for kind, part in taken.items():
        table.add_row(
            _cell(f"taken: {kind}"), f"{part.files:,}" if part.files else "", f"{part.documents:,}", f"{part.bytes:,}"
        )
    if left or counts:
        table.add_section()
    for why, count in left.most_common():
        table.add_row(_cell(f"left: {why}"), f"{count:,}")
    for what, count in counts.items():
        table.add_row(what, "", f"{count:,}")
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 120  # a log has no width
    console.print(table)


def _cell(text: str) -> str:
    """What files' names are part of, as it stands: no markup, nothing that a terminal obeys."""
    return escape(shown(text, most=120))


def validation_sentence(split: Mapping[str, Any], documents: int, effective: float) -> str:
    """What validates and how it was chosen, from meta.json's ``split`` and what then lies in the token files."""
    found = f"{documents:,} documents validate, {effective:.1f} effective ones"
    if split["by"] == "stretches":
        there = "1 document is" if split["documents"] == 1 else f"{split['documents']:,} documents are"
        how = (
            f"{there} too few to hold some out: {documents:,} stretches validate "
            f"({effective:.1f} effective documents), of about {split['stretch_characters']:,} characters, cut at the "
            "ends of paragraphs or lines and chosen by a hash of their text; data.validation_path sets documents apart"
        )
    elif "share" in split:
        how = f"{found}: {split['share']:.2%} of the {split['by']}, chosen by a hash"
    else:
        how = f"{found}, those of {split['by']}"
    if effective < LEAST_EFFECTIVE:
        how += f" (with fewer than {LEAST_EFFECTIVE} effective ones a report gives no interval over documents)"
    return f"validation: {how}"
