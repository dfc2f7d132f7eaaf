"""Runs as one file: what the report makes of it is what it makes of the runs, and it vouches for itself."""

import json

import numpy as np
import pytest

from dma_lab.evaluation.lifetimes import Lifetimes
from dma_lab.messages import UserError
from dma_lab.report.archive import unpacked, write_archive
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.comparison import compare
from dma_lab.report.context_figures import loss_by_position
from dma_lab.report.lifetimes import lifetimes_section
from dma_lab.report.training_figure import training_curves
from dma_lab.report.write import write_report
from tests.report.conftest import vouch


@pytest.fixture
def study(add_run, tmp_path):
    for attention in ("mha", "dma"):
        for seed in (0, 1, 2):
            run = add_run(attention, seed=seed)
            lines = [{"step": step, "tokens": 100 * step, "loss": 9 / step**0.5 + seed} for step in range(1, 101)]
            for line in lines[9::10]:
                line["val_loss"] = line["loss"] - 0.01
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            vouch(run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"w" * 1000)
    bounds = np.arange(0, 200, 100).repeat(100)[None]
    expiry = np.minimum(
        np.arange(200)[None, None, None] + np.arange(1, 3)[None, None, :, None] * 7, bounds[:, None] + 100
    )
    Lifetimes(expiry.astype(np.int32), bounds, bounds + 100, 10).save(run / "lifetimes.npz")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "needle.json").write_text("{}")
    (run / "evaluation" / "context-01234567.npz").touch()
    add_run("swa", status="running")
    return tmp_path / "runs"


def test_an_archive_gives_the_page_of_its_runs(study, tmp_path):
    file = tmp_path / "runs.tar.xz"
    assert write_archive([study], file) == 6
    with unpacked([file]) as (folder,):
        packed, problems = read_runs(folder)
        assert not problems
        named = {path.relative_to(folder).name for path in folder.rglob("*") if path.is_file()}
        assert named == {
            "config.yaml",
            "metrics.jsonl",
            "summary.json",
            "validation.npz",
            "needle.json",
            "lifetimes.npz",
        }
    assert not folder.exists()
    original = {run.name: run for run in read_runs(study)[0] if run.finished}
    assert {run.name for run in packed} == original.keys()
    for run in packed:
        for key, values in run.scores.items():
            assert values.dtype == original[run.name].scores[key].dtype
            assert values.sum() == pytest.approx(original[run.name].scores[key].sum(), rel=1e-7)
    (with_lifetimes,) = (run for run in packed if (study / run.name / "lifetimes.npz").exists())
    pages, figures, heads = [], [], []
    for name, roots in (("whole", [study]), ("packed", [file])):
        with unpacked(roots) as folders:
            (members,) = [[run for run in own if run.finished] for own in cohorts(read_runs(*folders)[0]).values()]
            pages.append(compare(members).cells)
            write_report(folders, tmp_path / name)
            figures.append([training_curves(members), loss_by_position(members)])
            heads.append(lifetimes_section(members, str).blocks[2:])
    assert heads[0] == heads[1]
    assert (
        f"| dma | {with_lifetimes.rung} |" in (tmp_path / "packed" / "report.md").read_text().split("Kinds of heads")[1]
    )
    for whole, thinned in zip(*figures, strict=True):
        for ours, theirs in zip(whole.series, thinned.series, strict=True):
            assert (ours.kind, ours.x, list(ours.hover)) == (theirs.kind, theirs.x, list(theirs.hover))
            assert ours.y == pytest.approx(theirs.y, rel=1e-6)
    for ours, theirs in zip(*pages, strict=True):
        assert ours.difference.difference == pytest.approx(theirs.difference.difference, abs=1e-7)
    with unpacked([file]) as folders:
        write_report(folders, tmp_path / "again")
    for name in ("index.html", "report.md", "points.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


def test_the_same_runs_give_the_same_bytes(study, tmp_path):
    files = [tmp_path / f"{number}.tar.xz" for number in range(2)]
    for file in files:
        write_archive([study], file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_no_archive_is_refused(study, tmp_path):
    with pytest.raises(UserError, match=r"runs are packed as \.tar\.xz"):
        write_archive([study], tmp_path / "runs.zip")
    file = tmp_path / "broken.tar.xz"
    file.write_bytes(b"no archive")
    for path in (file, tmp_path / "absent.tar.xz"):
        with pytest.raises(UserError, match=r"tar\.xz cannot be unpacked"), unpacked([path]):
            pass
