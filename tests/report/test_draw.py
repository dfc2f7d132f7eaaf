"""Figures as files: what is written at their axes, read from the SVG."""

import re

import pytest

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
