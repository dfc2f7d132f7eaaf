"""Recall by width: the best of the rates tried, and what seeds leave open, by hand."""

import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.recall_widths import recall_by_width
from dma_lab.report.write import write_report

ACCURACIES = {
    # backend, width, rate: by seed
    ("mha", 64, 0.001): [0.5, 0.6, 0.7],
    ("mha", 64, 0.002): [0.9, 0.3, 0.3],
    ("mha", 64, 0.004): [0.95],
    ("mha", 128, 0.001): [0.98, 1.0, 0.96],
    ("dma", 64, 0.001): [0.1, 0.2, 0.3],
    ("dma", 128, 0.002): [0.4],
    ("dma slope", 64, 0.001): [0.45, 0.45, 0.48],
}


@pytest.fixture
def recalled(add_run, tmp_path):
    for (backend, width, rate), by_seed in ACCURACIES.items():
        name, *slope = backend.split()
        for seed, accuracy in enumerate(by_seed):
            settings = {
                "model": {"d_model": width},
                "optimizer": {"learning_rate": rate},
                "attention": {"recency": "slope" if slope else None},
                "data": {"source": "mqar", "size": {"length": 2048, "pairs": 512}, "filler": "blank"},
            }
            known = {"val_accuracy": accuracy, "val_accuracy_by_gap": {"1-2": accuracy}, "val_loss": 9 - accuracy}
            add_run(name, f"2048x512-d{width}", seed=seed, settings=settings, params_non_embedding=900 * width, **known)
    return tmp_path / "runs"


def test_each_backend_stands_at_the_best_of_its_rates(recalled):
    (members,) = cohorts(read_runs(recalled)[0]).values()
    table, figure = recall_by_width(members)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    shown = {(row["attention"], int(row["width"])): row for row in rows}
    assert [int(row["width"]) for row in rows] == [64, 64, 64, 128, 128]
    assert table.opens == {3}
    # t(0.975, 2) = 4.302653; a standard deviation of 0.1, of three.
    half = 4.302653 * 0.1 / 3**0.5
    best = shown["mha", 64]
    assert best["accuracy [95 %]"] == f"0.6000 [{0.6 - half:.4f}, {0.6 + half:.4f}]"
    assert (best["seeds"], best["rate"], best["rates tried"]) == ("3", "0.001", "3"), "one seed is no better rate"
    assert shown["mha", 128]["accuracy [95 %]"] == "0.9800 [0.9303, 1.0000]", "no share is above 1"
    assert shown["dma", 128]["accuracy [95 %]"] == "0.4000"
    assert shown["dma recency=slope", 64]["accuracy [95 %]"].startswith("0.4600 [")
    points = {series.group: series for series in figure.series if series.kind == "points"}
    assert (points["mha"].x, points["mha"].y) == ([64.0, 128.0], pytest.approx([0.6, 0.98]))
    (bars,) = (series for series in figure.series if series.kind == "intervals" and series.group == "dma")
    assert (bars.x, bars.y, bars.high) == ([64.0], [0.0], [pytest.approx(0.2 + half)])


def test_the_report_has_the_table_and_the_figure(recalled, tmp_path):
    write_report([recalled], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| mha | 2048x512-d64 | 64 | 57,600 | 0.6000 [0.3516, 0.8484] | 3 | 0.001 | 3 |" in text
    assert (tmp_path / "report" / "figures" / "recall-width.svg").exists()
