"""The end of a multirun: what is in its table, and what counts as failed."""

from types import SimpleNamespace

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from dma_lab.report.sweep import show_runs
from dma_lab.run_summary import Summary
from dma_lab.train.sweep import SweepCallback


@pytest.fixture
def end(tmp_path, capsys, monkeypatch):
    """Ends a multirun of one point for each list of summaries given; returns its status, stdout and stderr."""

    def run(*points: list[Summary]) -> tuple[int, str, str]:
        monkeypatch.setattr(SweepCallback, "show_runs", staticmethod(show_runs))
        report = SweepCallback()
        report.on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}}))
        for number, summaries in enumerate(points):
            config = OmegaConf.create({"hydra": {"job": {"num": number}, "overrides": {"task": [f"point={number}"]}}})
            report.on_job_start(config, task_function=lambda config: None)
            report.on_job_end(config, SimpleNamespace(return_value=summaries, status=JobStatus.COMPLETED))
        status = 0
        try:
            report.on_multirun_end(OmegaConf.create({}))
        except SystemExit as exit_:
            status = exit_.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_run_that_diverged_is_a_failed_point_and_in_no_table(add_run, end):
    mha = add_run("mha", params_non_embedding=150_001)
    diverged = add_run(
        "dma", params_non_embedding=150_002, status="diverged", step=7, reason="the loss is nan", val_loss=None
    )
    status, table, errors = end([Summary.read(mha), Summary.read(diverged)])
    assert status == 1
    assert "150,001" in table
    assert "150,002" not in table
    assert errors.splitlines() == ["failed: point=0: diverged at step 7: the loss is nan"]


def test_a_finished_run_whose_files_are_damaged_since_is_named_beside_the_table(add_run, end):
    mha, dma = add_run("mha"), add_run("dma")
    summaries = [Summary.read(mha)], [Summary.read(dma)]
    (dma / "config.yaml").unlink()
    status, table, errors = end(*summaries)
    assert status == 0
    assert "mha" in table
    assert errors == f"not in the table: {dma}: summary.json cannot be believed: config.yaml beside it is missing\n"


def test_variants_learning_rates_and_sizes_of_a_sweep_are_told_apart(add_run, end):
    for rate in (0.01, 0.02):
        add = {"settings": {"optimizer": {"learning_rate": rate}}}
        runs = [add_run("mha", **add), add_run("dma", **add)]
        if rate == 0.01:
            first = [[Summary.read(run)] for run in runs]
    windows = add_run("dma", settings={"attention": {"window": 16}})
    status, table, _ = end(*first, *([Summary.read(run)] for run in runs), [Summary.read(windows)])
    assert status == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if "│" in line]
    assert [row[:3] for row in rows] == [
        ["mha", "nano", "learning_rate=0.01"],
        ["dma", "nano", "learning_rate=0.01"],
        ["mha", "nano", "learning_rate=0.02"],
        ["dma", "nano", "learning_rate=0.02"],
        ["dma window=16", "nano", "learning_rate=0.01"],
    ]
    assert [bool(row[-1]) for row in rows] == [False, True, False, True, True], "each has its difference to MHA"


def test_a_sweep_over_rates_that_names_a_file_of_tuned_ones_pairs_none_of_them(add_run, capsys):
    for rate in (0.004, 0.02):
        add_run("dma", settings={"tuned": "tuned.yaml@12345678", "optimizer": {"learning_rate": rate}})
    mha = add_run("mha", settings={"tuned": "tuned.yaml@12345678"})
    show_runs(sorted(mha.parent.iterdir()))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " dma " in line]
    assert [next(word for word in row if "learning_rate" in word) for row in rows] == [
        "learning_rate=0.004",
        "learning_rate=0.02",
    ]
    assert all("[" not in " ".join(row) for row in rows), "a difference has an interval"
