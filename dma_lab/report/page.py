"""The report as one HTML file that needs nothing else: styles, and compressed the figures and plotly.js, are inside."""

import base64
import gzip
import json
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from dma_lab.figures.palette import colours_of
from dma_lab.report.document import Block, Document, Notice, Table, Verdict, Verdicts
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
        '<p class="caption">In a figure, a click on a name hides it and a double click shows it alone.</p>',
        *(f"{section}\n</section>" for section in sections),
        "</main>",
        f'<script type="application/octet-stream" id="figures">{_packed(figures)}</script>',
        f'<script type="application/octet-stream" id="plotly">{_plotly_js()}</script>',
        f"<script>\n{own.joinpath('page.js').read_text()}</script>\n</body>\n</html>\n",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


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
        items = "".join(f"<li>{escape(item)}</li>" for item in block.items)
        return f'<div class="notice"><p>{escape(block.text)}</p>{f"<ul>{items}</ul>" if items else ""}</div>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Verdicts):
        return f'<ul class="verdicts">{"".join(_verdict(own, colours) for own in block.items)}</ul>'
    return (
        f'<figure>\n<h3>{escape(block.title)}</h3>\n<p class="caption">{escape(block.caption)}</p>\n'
        f'<div class="frame"><div id="plot-{escape(block.slug)}" class="plot"></div></div>\n</figure>'
    )


def _verdict(own: Verdict, colours: dict[str, str]) -> str:
    chip = f'<i style="background: {colours.get(own.backend, "#888")}"></i>'
    further = f" <small>{escape(own.further)}</small>" if own.further else ""
    return (
        f'<li class="{own.state.replace(" ", "-")}"><b>{chip}{escape(own.backend)}</b>'
        f"<em>{own.state}</em><p>{escape(own.sentence)}{further}</p></li>"
    )


def _table(table: Table) -> str:
    def row(cells: Any, tag: str) -> str:
        named = zip(table.columns, cells, strict=True)
        marked = (
            f"<{tag}{' class=left' if column in table.left else ''}>{escape(cell)}</{tag}>" for column, cell in named
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(
        row(cells, "td").replace("<tr>", "<tr class=opens>" if number in table.opens else "<tr>", 1)
        for number, cells in enumerate(table.rows)
    )
    wide = " wide-name" if table.columns[0] == "run" else ""
    return (
        f'<p class="caption">{escape(table.caption)}</p>\n<div class="scroll{wide}"><table>\n'
        f"<thead>{row(table.columns, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
