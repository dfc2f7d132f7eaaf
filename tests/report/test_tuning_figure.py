"""Curves of loss over learning rate, in the report of a sweep and beside its file."""

import math
from functools import partial

import numpy as np
import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.tuned_file import write_tuned
from dma_lab.report.tuning_figure import learning_rates
from tests.report.swept import BEST, RATES, add_swept, write_sweep


def test_the_curves_stand_in_the_report_and_beside_the_file(add_run, tmp_path):
    sweep = partial(write_sweep, add_run)
    for attention in ("mha", "dma"):
        sweep(attention, rungs=["nano"])
    sweep("swa", rungs=["nano"], best={("swa", "nano"): 0.1})
    add_swept(add_run, "dma", "nano", 0.04, status="diverged")
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    assert {path.name for path in tmp_path.glob("tuned*")} == {"tuned.yaml", "tuned-nano.svg", "tuned-nano.png"}
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    figure, table = learning_rates(members).blocks
    by_kind = {}
    for series in figure.series:
        if series.kind == "band":
            continue
        kind = series.mark if series.kind == "points" else "curve" if series.faint else "interval"
        by_kind[series.group, kind] = series
    for attention in ("mha", "dma"):
        best = BEST[attention, "nano"]
        points, curve = by_kind[attention, "circle"], by_kind[attention, "curve"]
        assert sorted(points.x) == pytest.approx(sorted(2 * RATES)), "every seed is a point"
        exact = [3 + 0.1 * math.log(rate / best) ** 2 for rate in curve.x]
        assert list(curve.y) == pytest.approx(exact, abs=1e-6)
        lowest, interval = by_kind[attention, "diamond"], by_kind[attention, "interval"]
        assert (lowest.x, lowest.y) == (pytest.approx([best], rel=1e-3), pytest.approx([3.0], abs=1e-4))
        assert interval.x[0] < best < interval.x[1] < 1.01 * best
    assert by_kind["swa", "triangle"].x == pytest.approx([RATES[-1]])
    assert ("swa", "interval") not in by_kind
    assert by_kind["dma", "cross"].x == [0.04]
    rows = {row[0]: row[3:] for row in table.rows}
    assert rows["mha"][:2] == ("7", "2")
    assert [rows[name][2] for name in ("mha", "dma")] == ["14", "15"], "the run that diverged was spent, too"
    assert rows["mha"][4] == "0.5"
    assert rows["mha"][5].startswith("3.0000 [")
    assert rows["dma"][6] == "diverged at 0.04"
    assert "highest rate tried" in rows["swa"][6]
    (band,) = [series for series in figure.series if (series.group, series.kind) == ("mha", "band")]
    curve = by_kind["mha", "curve"]
    assert (np.array(band.y) < curve.y).all()
    assert (np.array(band.high) > curve.y).all()


def test_settings_that_tuning_may_choose_have_a_figure_of_their_own_beside_the_default(add_run, tmp_path):
    for attention, options in (("mha", None), ("dma", None), ("dma", {"score": "linear"}), ("dma", {"recent": 16})):
        write_sweep(add_run, attention, rungs=["nano"], options=options)
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    first, second, _ = learning_rates(members).blocks
    shown = [{series.group for series in figure.series} for figure in (first, second)]
    assert shown == [{"mha", "dma"}, {"dma", "dma score=linear", "dma recent=16"}]
    assert first.slug != second.slug
    assert second.title.endswith("settings of dma")


def test_without_a_sweep_there_are_no_curves(add_run, tmp_path):
    for rate in (0.01, 0.02):
        add_run("mha", settings={"optimizer": {"learning_rate": rate}})
    assert learning_rates(read_runs(tmp_path / "runs")[0]) is None
