"""A forecast is of runs that are not there, holds the law's own prediction, and is scored by what came."""

import json

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.forecast import forecast_section, read_forecast, register
from dma_lab.report.settings import Larger

LARGER = Larger("8m", 8e6, 1.6e8)
SIZES = (60_000, 180_000, 540_000, 1_600_000)
UNNAMED = Larger(None, None, None)


def loss(attention, params, tokens):
    return 1.7 + (40 if attention == "mha" else 43) * params**-0.3 + 60 * tokens**-0.32


@pytest.fixture
def small(write, tmp_path):
    noise = np.random.default_rng(1)
    for attention in ("mha", "dma"):
        for params in SIZES:
            for multiple in (10, 20, 40):
                value = float(loss(attention, params, multiple * params) + 0.001 * noise.normal())
                shape = {"params_non_embedding": params, "val_loss": value}
                write(tmp_path / "runs", attention, f"{params}", multiple * params, **shape)
    return tmp_path / "runs"


def named(root):
    return [run for members in cohorts(read_runs(root)[0]).values() for run in members]


def test_what_is_forecast_holds_what_comes_and_is_not_written_again(small, write, tmp_path):
    path = tmp_path / "forecast.json"
    register(path, LARGER, named(small))
    before, found = path.read_bytes(), read_forecast(path)
    assert {entry.backend for entry in found.backends} == {"mha", "dma"}
    assert found.commit
    for entry in found.backends:
        right = loss(entry.backend, LARGER.params, LARGER.tokens)
        assert entry.low < right < entry.high
        assert entry.low < entry.loss < entry.high
        assert entry.loss == pytest.approx(right, abs=0.05)
        assert entry.trainings == 4
    (table,) = forecast_section(path, named(small)).blocks
    assert [row[3] for row in table.rows] == ["not trained yet"] * 2
    # Within by mha, far off by dma; sizes as matching makes them.
    middle = {entry.backend: entry.loss for entry in found.backends}
    for attention, off in (("mha", 0.0), ("dma", 0.5)):
        shape = {"params_non_embedding": 8_030_000, "val_loss": middle[attention] + off}
        write(small, attention, "8m", 160_100_000, **shape)
    write(small, "mha", "8m", 80_000_000, params_non_embedding=8_030_000, val_loss=9.0)  # of another length
    (table,) = forecast_section(path, named(small)).blocks
    scored = {row[0]: row[3:] for row in table.rows}
    assert scored["mha"] == (f"{middle['mha']:.4f}", "+0.0000", "1 of 1")
    assert scored["dma"] == (f"{middle['dma'] + 0.5:.4f}", "+0.5000", "0 of 1")
    assert "1 of 2 trainings came out within" in table.caption
    register(path, UNNAMED, named(small))
    register(path, LARGER, named(small))
    assert path.read_bytes() == before


def test_what_cannot_be_forecast_is_refused_and_nothing_is_written(small, write, tmp_path):
    path = tmp_path / "forecast.json"
    with pytest.raises(UserError, match="no run to forecast is given"):
        register(path, UNNAMED, named(small))
    with pytest.raises(UserError, match="no backend has a law"):
        register(path, LARGER, [run for run in named(small) if run.params == SIZES[0]])
    write(small, "mha", "8m", 160_000_000, params_non_embedding=8_000_000, status="running", val_loss=None)
    with pytest.raises(UserError, match="what has begun can no longer be forecast"):
        register(path, LARGER, named(small))
    assert not path.exists()


def test_a_file_of_another_run_or_of_none_is_refused(small, tmp_path):
    path = tmp_path / "forecast.json"
    register(path, LARGER, named(small))
    with pytest.raises(UserError, match="holds the forecast of 8m"):
        register(path, Larger("9m", 9e6, 1.6e8), named(small))
    path.write_text(json.dumps({"name": "8m"}))
    with pytest.raises(UserError, match="holds no forecast"):
        register(path, UNNAMED, named(small))
