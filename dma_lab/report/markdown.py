"""The report as Markdown, its figures linked beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from dma_lab.files import write_whole
from dma_lab.report.document import LINES, ROWS, Block, Document, Figure, Heatmap, Notice, Table, Verdicts


def write_markdown(document: Document, path: Path) -> None:
    """Write ``path``; the figures are those that ``draw`` writes to its folder's ``figures/``."""
    lines = [f"# {document.title}", document.lead]
    for section in document.sections:
        lines.append(f"## {section.title}")
        lines += map(_block, section.blocks)
    write_whole(path, "\n\n".join(lines) + "\n")


def figures_linked(path: Path) -> list[str]:
    """Slugs of the figures that the Markdown at ``path`` links; none when there is no such file."""
    return re.findall(r"\(figures/([\w.-]+)\.svg\)", path.read_text(encoding="utf-8")) if path.exists() else []


def _block(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Notice):
        items = _folded([f"- {item}" for item in block.items], len(block.items), "lines", LINES)
        return "\n".join(f"> {line}".rstrip() for line in (f"**Note.** {block.text}", *items))
    if isinstance(block, Verdicts):
        said = (" ".join((f"- **{own.state}**:", own.sentence, own.further)).strip() for own in block.items)
        return "\n".join(said)
    if isinstance(block, Table):
        rule = [":---" if column in block.left else "---:" for column in block.columns]
        rows = [_row(cells) for cells in (block.columns, rule, *block.rows)]
        return "\n".join((f"### {block.title}\n\n{_said(block)}", "", *_folded(rows, len(block.rows), "rows", ROWS)))
    return f"### {block.title}\n\n![{block.title}](figures/{block.slug}.svg)\n\n{_said(block)}"


def _said(block: Table | Figure | Heatmap) -> str:
    return f"{block.caption} Unit of replication: {block.unit}."


def _folded(lines: list[str], count: int, of: str, most: int) -> list[str]:
    """Under a summary line where there are more than ``most``."""
    if count <= most:
        return lines
    return ["", f"<details><summary>All {count} {of}</summary>", "", *lines, "", "</details>"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
