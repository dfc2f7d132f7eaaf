"""Figures as plotly takes them: the ticks of a logarithmic axis say their values."""

import pytest

from dma_lab.report.document import Figure, Series
from dma_lab.report.interactive import plotly_figure


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ((0.0018, 0.02), "0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5"),
        ((1.0, 40.0), "1 2 5 10 20 50 100 200 500"),
        ((3e3, 2e5), "1,000 2,000 5,000 10,000 20,000 50,000 1e5 2e5 5e5 1e6 2e6 5e6"),
        ((4e-6, 2e-3), "1e-6 1e-5 0.0001 0.001 0.01"),
        ((4e9, 3e12), "1e9 1e10 1e11 1e12 1e13"),
    ],
)
def test_ticks_are_named_by_their_values(ends, shown):
    figure = Figure("a", "", "", "", "", [Series("mha", "points", ends, (1.0, 2.0))], x_log=True, unit="one")
    axis = plotly_figure(figure, {"mha": "#000000"})["layout"]["xaxis"]
    assert axis["ticktext"] == shown.split(" ")
    assert axis["tickvals"] == pytest.approx([float(text.replace(",", "")) for text in axis["ticktext"]])


def test_a_span_without_two_such_values_is_left_to_plotly():
    figure = Figure(
        "a", "", "", "", "", [Series("mha", "points", (2.1e12, 2.4e12), (1.0, 2.0))], x_log=True, unit="one"
    )
    axis = plotly_figure(figure, {"mha": "#000000"})["layout"]["xaxis"]
    assert (axis["type"], axis["exponentformat"]) == ("log", "e")
    assert "tickvals" not in axis
