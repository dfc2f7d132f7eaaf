"""The report as one HTML file that needs nothing else: styles, and compressed the figures and plotly.js, are inside."""

import base64
import gzip
import json
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs

from dma_lab.figures.palette import colours_of
from dma_lab.files import write_whole
from dma_lab.report.document import LINES, ROWS, Block, Document, Figure, Heatmap, Notice, Table, Verdict, Verdicts
from dma_lab.report.interactive import plotly_figure


def write_page(document: Document, path: Path) -> None:
    """Write the page to ``path``."""
    colours = colours_of(document.groups)
    sections = [
        f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>\n'
        + "\n".join(_block(block, colours) for block in section.blocks)
        for number, section in enumerate(document.sections)
    ]
    links = [f'<a href="#s{number}">{escape(section.title)}</a>' for number, section in enumerate(document.sections)]
    drawn = {figure.slug: plotly_figure(figure, colours) for figure in document.figures}
    figures = json.dumps(drawn, allow_nan=False, default=float)
    own = files("dma_lab.report")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',  # else browsers ask the server for one
        f"<title>{escape(document.title)}</title>",
        f"<style>\n{own.joinpath('page.css').read_text()}</style>\n</head>\n<body>\n<main>",
        f'<h1>{escape(document.title)}</h1>\n<p class="lead">{escape(document.lead)}</p>',
        f"<nav>{''.join(links)}</nav>",
        '<p class="caption">In figures, a click on a name hides it and a double click shows it alone; in tables, a '
        "click on a column's head sorts.</p>",
        *(f"{section}\n</section>" for section in sections),
        "</main>",
        f'<script type="application/octet-stream" id="figures">{_packed(figures)}</script>',
        f'<script type="application/octet-stream" id="plotly">{_plotly_js()}</script>',
        f"<script>\n{own.joinpath('page.js').read_text()}</script>\n</body>\n</html>\n",
    ]
    write_whole(path, "\n".join(parts))


@cache
def _plotly_js() -> str:
    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    """Compressed, and as text that may stand in a page; page.js unpacks it."""
    # mtime=0: the same runs give the same page.
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _block(block: Block, colours: dict[str, str]) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Notice):
        items = f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>" if block.items else ""
        items = _folded(items, len(block.items), "lines", LINES)
        return f'<div class="notice"><p>{escape(block.text)}</p>{items}</div>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Verdicts):
        return f'<ul class="verdicts">{"".join(_verdict(own, colours) for own in block.items)}</ul>'
    return (
        f"<figure>\n{_heading(block)}\n"
        f'<div class="frame"><div id="plot-{escape(block.slug)}" class="plot"></div></div>\n</figure>'
    )


def _heading(block: Table | Figure | Heatmap) -> str:
    return (
        f'<h3>{escape(block.title)}</h3>\n<p class="caption">{escape(block.caption)} '
        f'<span class="unit">Unit of replication: {escape(block.unit)}.</span></p>'
    )


def _folded(inside: str, count: int, of: str, most: int) -> str:
    """Under a summary line where it is longer than ``most``."""
    return inside if count <= most else f"<details><summary>All {count} {of}</summary>\n{inside}</details>"


def _verdict(own: Verdict, colours: dict[str, str]) -> str:
    chip = f'<i style="background: {colours.get(own.backend, "#888")}"></i>'
    further = f" <small>{escape(own.further)}</small>" if own.further else ""
    return (
        f'<li class="{own.state.replace(" ", "-")}"><b>{chip}{escape(own.backend)}</b>'
        f"<em>{own.state}</em><p>{escape(own.sentence)}{further}</p></li>"
    )


def _table(table: Table) -> str:
    """Its heads are buttons: page.js sorts by them, rungs in the order they come in, which is that of their sizes."""
    heads = "".join(
        f'<th scope="col"{_side(column, table)}{" data-given" if column == "rung" else ""}>'
        f'<button type="button">{escape(column)}</button></th>'
        for column in table.columns
    )
    body = "\n".join(
        f"<tr{' class=opens' if number in table.opens else ''}>"
        + "".join(
            f"<td{_side(column, table)}>{escape(cell)}</td>" for column, cell in zip(table.columns, cells, strict=True)
        )
        + "</tr>"
        for number, cells in enumerate(table.rows)
    )
    wide = " wide-name" if table.columns[0] == "run" else ""
    inside = (
        f'<div class="scroll{wide}"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )
    return f"{_heading(table)}\n{_folded(inside, len(table.rows), 'rows', ROWS)}"


def _side(column: str, table: Table) -> str:
    return " class=left" if column in table.left else ""
