"""``train.py -m``: every point is run, one table at the end, failures listed with their reasons."""

import json
import re

import pytest


def test_a_sweep_ends_with_one_table_and_names_what_failed(door, overrides, tmp_path):
    result = door("train.py", ["-m", *overrides, "attention=mha,dma", "tokens=10240,100"])
    assert result.returncode == 1, result.stderr
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert (tmp_path / "multirun.yaml").exists()  # and nothing of the kind where the command was given
    assert all("tokens=100 is less than one step" in line for line in failed)
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert sorted(summary["attention"] for summary in summaries) == ["dma", "mha"]
    table = result.stdout[result.stdout.index("comparison") :]
    for summary in summaries:
        assert f"{summary['params_non_embedding']:,}" in table
    dma, mha = sorted(summaries, key=lambda summary: summary["attention"])
    difference, low, high = (float(number) for number in re.search(r"(\S+) \[(\S+), (\S+)\]", table).groups())
    assert difference == pytest.approx(dma["val_loss"] - mha["val_loss"], abs=1e-4)  # four decimals are printed
    assert low <= difference <= high

    again = door("train.py", ["-m", *overrides, "attention=mha,dma", "tokens=10240"])
    assert again.returncode == 0
    assert again.stderr.count("finished before") == 2
