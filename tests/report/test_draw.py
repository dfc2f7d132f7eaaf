"""Figures as files: what is written at their axes, read from the SVG."""

import re
from itertools import combinations
from math import dist

import numpy as np
import pytest
from PIL import Image

from dma_lab.figures.palette import colours_of, is_backends_own
from dma_lab.report.document import Figure, Panel, Series
from dma_lab.report.draw import draw


@pytest.mark.parametrize("below", [False, True], ids=["alone", "over a panel"])
@pytest.mark.parametrize(
    ("ends", "between"), [((8e10, 6e11), {(2, 11), (5, 11)}), ((1e9, 1e13), set())], ids=["a decade", "four"]
)
def test_a_short_logarithmic_axis_is_labelled_between_its_decades(tmp_path, ends, between, below):
    panel = Panel("", [Series("mha", "line", ends, (1.0, 2.0))], 1.0, ratio=True) if below else None
    points = Series("mha", "points", ends, (1.0, 2.0))
    figure = Figure("a", "", "", "", "", [points], x_log=True, below=panel, unit="one")
    draw(figure, tmp_path, {"mha": "#000000"})
    # Matplotlib leaves a label's source beside its outlines.
    labels = re.findall(r"<!-- \$\\mathdefault{(\d)\\times10\^{(\d+)}}\$ -->", (tmp_path / "a.svg").read_text())
    shown = {(int(step), int(decade)) for step, decade in labels}
    assert {(step, decade) for step, decade in shown if ends[0] <= step * 10.0**decade <= ends[1]} == between


def test_a_legend_of_many_rows_takes_no_room_from_the_axes(tmp_path):
    """The axes' own frame, in points: x labels and title aside, nothing else differs."""
    heights = []
    for count in (3, 18):
        names = [f"an attention with a name that fills a row of the legend, {number}" for number in range(count)]
        every = [Series(name, "points", (1.0, 2.0), (1.0, 2.0)) for name in names]
        draw(Figure("a", "", "", "", "", every, unit="one"), tmp_path, dict.fromkeys(names, "#000000"))
        (frame,) = re.findall(r'id="patch_2">\s*<path d="([^"]+)"', (tmp_path / "a.svg").read_text())
        ends = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", frame)]
        heights.append(max(ends) - min(ends))
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


def test_no_two_groups_of_a_figure_have_one_colour():
    """A study of five backends may have eleven controls and variants; they are told apart by colour alone."""
    further = [f"variant {number}" for number in range(40)]
    colours = colours_of(["mha", "swa", "mla", "nsa", "dma", *further])
    assert len(set(colours.values())) == len(colours)
    assert not any(is_backends_own(colours[name]) for name in further)
    few = [[int(colours[name][at : at + 2], 16) for at in (1, 3, 5)] for name in sorted(further)[:14]]
    apart = min(dist(one, other) for one, other in combinations(few, 2))
    assert apart > 70, "of 442 between black and white"


def test_every_group_has_its_colour_in_the_png_too(tmp_path):
    """A file of few colours: of pixels that most have the least are a thin line's."""
    names = ["mha", "swa", "mla", "nsa", "dma", *(f"variant {number}" for number in range(14))]
    colours, x = colours_of(names), (1.0, 2.0)
    every = []
    for level, name in enumerate(names):
        bounds = (level - 0.9, level - 0.9), (level + 0.9, level + 0.9)
        every += [Series(name, "band", x, *bounds), Series(name, "points", x, (level, level))]
    draw(Figure("a", "", "", "", "", every, unit="one"), tmp_path, colours)
    with Image.open(tmp_path / "a.png") as image:
        there = np.asarray(image.convert("RGB"), int).reshape(-1, 3)
    for name in names:
        own = [int(colours[name][at : at + 2], 16) for at in (1, 3, 5)]
        assert np.abs(there - own).max(axis=1).min() <= 16, name
