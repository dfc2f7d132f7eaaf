"""A run that lies in several folders, or in an archive too, is one run: in every count, and it is said."""

import shutil

import pytest

from dma_lab.report.archive import unpacked, write_archive
from dma_lab.report.collect import read_runs
from dma_lab.report.status import read_status
from dma_lab.report.status_table import _title
from dma_lab.report.write import write_report


def test_the_report_counts_a_run_once_and_says_how_many_copies_it_left_out(add_run, tmp_path):
    for seed in (0, 1):
        add_run("mha", seed=seed)
    shutil.copytree(tmp_path / "runs", tmp_path / "copies" / "of a disk")
    write_archive([tmp_path / "runs"], tmp_path / "runs.tar.xz")
    with unpacked([tmp_path / "runs", tmp_path / "copies", tmp_path / "runs.tar.xz"]) as roots:
        write_report(roots, tmp_path / "report")
    said = (tmp_path / "report" / "report.md").read_text()
    assert "2 of 2 runs finished" in said
    assert "4 copies of runs left out: a run counts once, wherever it lies." in said
    assert len((tmp_path / "report" / "points.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.parametrize("worth", ["evaluation/needle.json", "checkpoints/last.ckpt"])
def test_of_copies_the_one_is_read_that_has_more(add_run, tmp_path, worth):
    add_run("mha")
    copy = shutil.copytree(tmp_path / "runs", tmp_path / "z")
    file = next(copy.iterdir()) / worth
    file.parent.mkdir()
    file.write_text("{}")
    (run,), _ = read_runs(tmp_path / "runs", tmp_path / "z")
    assert run.path == file.parent.parent
    assert run.copies == (f"runs/{file.parent.parent.name}",)


def test_a_training_given_once_more_is_no_copy(add_run, tmp_path):
    add_run("mha")
    add_run("mha")
    assert len(read_runs(tmp_path / "runs")[0]) == 2
    assert read_status(tmp_path / "runs").copies == 0


def test_status_counts_a_run_once(add_run, tmp_path):
    add_run("mha")
    unfinished = add_run("dma", status="interrupted", step=2)
    shutil.copytree(tmp_path / "runs", tmp_path / "runs" / "backup")
    assert _title(read_status(tmp_path / "runs")) == (
        "0 running, 1 finished, 1 failed or stopped, 0 points left, 2 copies of these left out"
    )
    with (unfinished / "metrics.jsonl").open("a") as metrics:  # it went on since
        metrics.write('{"step": 5, "tokens": 50, "loss": 3.0}\n')
    assert _title(read_status(tmp_path / "runs")) == (
        "0 running, 1 finished, 2 failed or stopped, 0 points left, 1 copy of these left out"
    )
