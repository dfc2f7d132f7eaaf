"""A forecast is of runs that are not there, holds the law's own prediction, and is scored by what came."""

import json

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.forecast import Entry, Forecast, forecast_section, read_forecast, register
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


def groups(root):
    return cohorts(read_runs(root)[0])


def test_what_is_forecast_holds_what_comes_and_is_not_written_again(small, write, tmp_path):
    path = tmp_path / "forecast.json"
    register([path], LARGER, groups(small))
    before, found = path.read_bytes(), read_forecast(path)
    assert {entry.backend for entry in found.backends} == {"mha", "dma"}
    assert found.commit
    for entry in found.backends:
        right = loss(entry.backend, LARGER.params, LARGER.tokens)
        assert entry.low < right < entry.high
        assert entry.low < entry.loss < entry.high
        assert entry.loss == pytest.approx(right, abs=0.05)
        assert entry.trainings == 4
    (table,) = forecast_section(found, groups(small)).blocks
    assert [row[3] for row in table.rows] == ["not trained yet"] * 2
    # Within by mha, far off by dma; sizes as matching makes them.
    middle = {entry.backend: entry.loss for entry in found.backends}
    for attention, off in (("mha", 0.0), ("dma", 0.5)):
        shape = {"params_non_embedding": 8_030_000, "val_loss": middle[attention] + off}
        write(small, attention, "8m", 160_100_000, **shape)
    write(small, "mha", "8m", 80_000_000, params_non_embedding=8_030_000, val_loss=9.0)  # of another length
    (table,) = forecast_section(found, groups(small)).blocks
    scored = {row[0]: row[3:] for row in table.rows}
    assert scored["mha"] == (f"{middle['mha']:.4f}", "+0.0000 (+0.00%)", "1 of 1")
    assert scored["dma"] == (f"{middle['dma'] + 0.5:.4f}", f"+0.5000 ({0.5 / middle['dma']:+.2%})", "0 of 1")
    assert "1 of 2 trainings came out within" in table.caption
    register([path], UNNAMED, groups(small))
    register([path], LARGER, groups(small))
    assert path.read_bytes() == before


def test_what_cannot_be_forecast_is_refused_and_nothing_is_written(small, write, tmp_path):
    path = tmp_path / "forecast.json"
    with pytest.raises(UserError, match="no run to forecast is given"):
        register([path], UNNAMED, groups(small))
    few = {name: [run for run in own if run.params == SIZES[0]] for name, own in groups(small).items()}
    with pytest.raises(UserError, match=r"no backend has a law to forecast by \(mha: [^:]*tokens, and so 1 more\)\.$"):
        register([path], LARGER, few)
    write(small, "mha", "8m", 160_000_000, params_non_embedding=8_000_000, status="running", val_loss=None)
    with pytest.raises(UserError, match="what has begun can no longer be forecast"):
        register([path], LARGER, groups(small))
    assert not path.exists()


def test_a_file_of_another_run_or_of_none_is_refused(small, tmp_path):
    path = tmp_path / "forecast.json"
    register([path], LARGER, groups(small))
    with pytest.raises(UserError, match="holds the forecast of 8m"):
        register([path], Larger("9m", 9e6, 1.6e8), groups(small))
    path.write_text(json.dumps({"name": "8m"}))
    with pytest.raises(UserError, match="holds no forecast"):
        register([path], UNNAMED, groups(small))


def test_a_rung_brings_its_parameters_and_20_tokens_for_each(small, tmp_path):
    path = tmp_path / "forecast.json"
    with pytest.raises(UserError, match=r"are not those of larger\.name=30m, which has 28,322,432"):
        register([path], Larger("30m", 3e7, None), groups(small))
    register([path], Larger("30m", None, None), groups(small))
    found = read_forecast(path)
    assert (found.params, found.tokens) == (28_322_432, 20 * 28_322_432)
    register([path, tmp_path / "second.json"], Larger("80m", None, 4.8e8), groups(small))
    assert read_forecast(tmp_path / "second.json").tokens == 4.8e8
    assert read_forecast(path) == found
    with pytest.raises(UserError, match="make one forecast at a time"):
        register([tmp_path / "3.json", tmp_path / "4.json"], Larger("80m", None, None), groups(small))


def test_runs_at_tuned_rates_are_not_scored_by_the_forecast_for_shared_ones(small, write, tmp_path):
    """The same backend, in another group."""
    noise = np.random.default_rng(2)
    tuned = {"tuned": "tuned.yaml@12345678"}
    for params in SIZES:
        for multiple in (10, 20, 40):
            value = float(loss("mha", params, multiple * params) - 0.2 + 0.001 * noise.normal())
            shape = {"params_non_embedding": params, "val_loss": value}
            write(small, "mha", f"{params}", multiple * params, settings=tuned, **shape)
    register([tmp_path / "forecast.json"], LARGER, groups(small))
    found = read_forecast(tmp_path / "forecast.json")
    by_tuning = {entry.conditions["tuned"]: entry.loss for entry in found.backends if entry.backend == "mha"}
    assert by_tuning["None"] - by_tuning[tuned["tuned"]] == pytest.approx(0.2, abs=0.03)
    shape = {"params_non_embedding": 8_000_000, "val_loss": by_tuning[tuned["tuned"]]}
    write(small, "mha", "8m", 160_000_000, settings=tuned, **shape)
    (table,) = forecast_section(found, groups(small)).blocks
    measured = {row[:2]: row[4] for row in table.rows}
    assert table.columns[1] == "tuned"
    assert measured["mha", tuned["tuned"]] == f"{by_tuning[tuned['tuned']]:.4f}"
    assert measured["mha", "None"] == measured["dma", "None"] == "not trained yet"


def test_a_forecast_of_runs_at_the_shared_rate_is_not_scored_by_tuned_ones(small, write, tmp_path):
    path = tmp_path / "forecast.json"
    register([path], LARGER, groups(small))
    shape = {"params_non_embedding": 8_030_000, "val_loss": 2.0}
    write(small, "mha", "8m", 160_100_000, settings={"tuned": "tuned.yaml@12345678"}, **shape)
    for found in (read_forecast(path), without_conditions(path)):
        (table,) = forecast_section(found, groups(small)).blocks
        assert [row[3] for row in table.rows] == ["not trained yet"] * 2
        assert "tuned" not in table.columns


def test_of_several_rates_the_recipes_is_scored_and_the_others_are_named(write, tmp_path):
    root = tmp_path / "runs"

    def trained(attention, rate, loss, recipe):
        settings = {"optimizer": {"learning_rate": rate}}
        shape = {"params_non_embedding": 8_000_000, "val_loss": loss, "recipe_learning_rate": recipe}
        write(root, attention, "8m", 160_000_000, settings=settings, **shape)

    for rate, measured in ((0.02, 2.7), (0.01, 2.0), (0.005, 1.4)):
        trained("mha", rate, measured, recipe=0.01)
    trained("dma", 0.02, 2.5, recipe=0.01)  # two rates, and neither is the recipe's: the better
    trained("dma", 0.04, 2.9, recipe=0.01)
    trained("swa", 0.03, 2.1, recipe=None)  # of before runs kept it
    of = read_runs(root)[0][0].summary
    group = of.study, of.data_fingerprint, of.match, of.precision
    entries = [Entry(name, *group, 2.0, 1.9, 2.2, 4, {}) for name in ("mha", "dma", "swa")]
    forecast = Forecast("8m", 8e6, 1.6e8, "unknown", "2026-01-01", entries, [])
    table, notice = forecast_section(forecast, groups(root)).blocks
    scored = {row[0]: (row[3], row[5]) for row in table.rows}
    assert scored == {
        "mha": ("2.0000", "1 of 1"),
        "dma": ("2.5000", "0 of 1"),
        "swa": ("2.1000", "1 of 1"),
    }
    assert "2 of 3 trainings came out within" in table.caption
    assert notice.items == [
        "mha: runs at 0.005, 0.02 are not scored",
        "dma: runs at 0.04 are not scored",
        "dma: scored at 0.02, for there is no run at the recipe's 0.01",
    ]


def without_conditions(path):
    """As files were written before they said that runs were not tuned."""
    content = json.loads(path.read_text())
    for entry in content["backends"]:
        assert entry["conditions"] == {"tuned": "None"}
        entry["conditions"] = {}
    path.write_text(json.dumps(content))
    return read_forecast(path)
