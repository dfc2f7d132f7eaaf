"""``train.py -m``: every point is run, by one process, to one end; one table, and failures with their reasons."""

import functools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf

from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run
from dma_lab.train.runs import RunDirectory
from dma_lab.train.sweep_points import Point, SweepPoints, read_sweep
from tests.moments import signal_at
from tests.scripts import KILLED

ROOT = Path(__file__).resolve().parents[2]
POINTS = ["attention=mha,swa,dma", "tokens=15360", "trainer.log_every=1", "trainer.checkpoint_every=7"]
OF_THE_MOMENT = {"run", "tokens_per_second", "seconds", "peak_memory_bytes"}


def runs_of(sweep: Path) -> dict[str, Path]:
    return {path.parent.name.split("-")[2]: path.parent for path in sweep.glob("*/summary.json")}


def result_of(run: Path) -> tuple:
    """All that a run directory says, but for what was measured on the way and where it lies."""
    summary = Summary.read(run)
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    with np.load(run / "validation.npz") as scores:
        arrays = {name: scores[name].tobytes() for name in scores}
    return (
        {name: value for name, value in summary.written().items() if name not in OF_THE_MOMENT},
        (run / "metrics.jsonl").read_bytes(),
        [json.loads(line)["step"] for line in (run / "speed.jsonl").read_text().splitlines()],
        {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        arrays,
        re.sub("output_dir: .*", "", (run / "config.yaml").read_text()),
    )


@pytest.mark.parametrize(
    "launcher",
    [
        ["basic"],
        pytest.param(["joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.slow),
        pytest.param(["submitit_local"], marks=pytest.mark.slow),
    ],
    ids=lambda launcher: launcher[0],
)
def test_a_sweep_ends_with_one_table_and_names_what_failed(run_script, overrides, tmp_path, launcher):
    chosen, *options = launcher
    points = ["attention=mha,dma", "tokens=10240,100", f"hydra/launcher={chosen}", *options]
    if chosen == "basic":
        result = run_script("train.py", ["-m", *overrides, *points])
    else:  # which start Python anew, and a fork would hand them what it has imported
        command = [sys.executable, "train.py", "-m", *overrides, *points]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
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
    # Four decimals are printed; these few documents bear no interval.
    (line,) = [line for line in table.splitlines() if f"{dma['params_non_embedding']:,}" in line]
    difference, documents, effective = re.search(r"([+-]\d\.\d{4}) +│ +(\d+) \(([\d.]+)\)", line).groups()
    assert float(difference) == pytest.approx(dma["val_loss"] - mha["val_loss"], abs=1e-4)
    with np.load(Path(dma["run"]) / "validation.npz") as scores:
        tokens = scores["document_tokens"]
    assert int(documents) == (tokens > 0).sum()
    assert float(effective) == pytest.approx(tokens.sum() ** 2 / (tokens**2).sum(), abs=0.06)


def test_a_killed_sweep_started_again_ends_where_an_uninterrupted_one_ends(run_script, overrides, tmp_path):
    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    third_of_swa = "dma_lab.train.runs:RunDirectory.advance", 5 + 3  # checkpoints: of steps 7, 14, 21, 28 and 30
    killed = functools.partial(signal_at, *third_of_swa, signal.SIGKILL, "first")
    assert run_script("train.py", ["-m", *overrides, *POINTS, f"output_dir={cut}"], before=killed).returncode == KILLED
    status = {name: json.loads((run / "summary.json").read_text())["status"] for name, run in runs_of(cut).items()}
    assert status == {"mha": "finished", "swa": "running"}, "one was finished, one was cut, one is missing"
    assert list(cut.glob(".sweep-*")), "a killed process tidies nothing up"

    speed = runs_of(cut)["swa"] / "speed.jsonl"
    before = speed.read_text().splitlines()
    with RunDirectory(runs_of(cut)["swa"]).claimed():
        shared = run_script("train.py", ["-m", *overrides, *POINTS, f"output_dir={cut}"])
    assert shared.returncode == 0, shared.stderr
    lines = shared.stderr.splitlines()
    assert [line.split(":")[0] for line in lines if "another process" in line] == ["skipped", "left to another process"]
    assert shared.stdout.count("at rung") == 1, "the one that was missing"
    assert shared.stderr.count("finished before: ") == 1
    assert not shared.stderr.count("failed: ")

    again = run_script("train.py", ["-m", *overrides, *POINTS, f"output_dir={cut}"])
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before") == 2
    assert again.stderr.count(" steps of ") == 1, "a plan of the one that goes on, and a line of each other"
    assert speed.read_text().splitlines()[:14] == before[:14], "its first two checkpoints' steps were not taken again"
    assert run_script("train.py", ["-m", *overrides, *POINTS, f"output_dir={uncut}"]).returncode == 0
    files = [{str(path.relative_to(sweep)) for path in sweep.rglob("*")} for sweep in (cut, uncut)]
    assert files[0] == files[1]
    assert runs_of(uncut).keys() == {"mha", "swa", "dma"}
    for name, run in runs_of(uncut).items():
        assert result_of(runs_of(cut)[name]) == result_of(run)


def workers(parent: int) -> list[int]:
    """Processes that joblib's launcher started to run points."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if b"popen_loky" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["basic"], id="the sweep is interrupted"),
        pytest.param(
            ["joblib", "hydra.launcher.n_jobs=2"], id="a process of its launcher is killed", marks=pytest.mark.slow
        ),
    ],
)
def test_a_sweep_that_breaks_off_says_how_far_it_came(scripts, overrides, tmp_path, launcher):
    chosen, *options = launcher
    points = ["tokens=2048,3072000", "data.allow_repeat=true", "trainer.log_every=1"]
    process = scripts.start("train.py", ["-m", *overrides, *points, f"hydra/launcher={chosen}", *options])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.running:
        summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
        running = [summary for summary in summaries if summary["status"] == "running"]
        ended = [json.loads(path.read_text())["ended"] for path in tmp_path.glob(".sweep-*/000000.json")]
        if running and ended == [True]:
            break
        time.sleep(0.01)
    if chosen == "joblib":
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGINT)
    ended = process.ended(60)
    assert ended.returncode == (1 if chosen == "joblib" else 130), ended.stderr
    table = ended.stdout[ended.stdout.index("comparison") :]
    assert table.count("nano") == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("stopped at: ")]
    assert "tokens=3072000" in line
    (record,) = map(read_sweep, tmp_path.glob(".*"))
    assert (record.alive, record.over, len(record.all)) == (False, False, 2), "what is left is known afterwards"
    assert [point.overrides for point in record.begun] == record.all, "as Hydra itself makes points of the command line"


def test_a_sweep_with_a_point_that_cannot_be_leaves_none_to_be_done(run_script, overrides, tmp_path):
    refused = run_script("train.py", ["-m", *overrides, "attention=dma,mha", "attention.window=16"])
    assert refused.returncode == 2
    assert "attention.window is no setting here: of attention=" in refused.stderr
    assert not list(tmp_path.glob(".sweep-*")), "status would tell of points that the same command goes on with"


def test_a_sweep_is_refused_where_it_could_not_say_what_became_of_it(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    callback = {"_target_": "dma_lab.train.sweep.SweepCallback"}
    config = OmegaConf.create({"hydra": {"callbacks": {"sweep": callback}, "sweep": {"dir": str(taken)}}})
    with pytest.raises(SystemExit) as refusal:
        Callbacks(config).on_multirun_start(config=config)  # which makes warnings of exceptions
    assert refusal.value.code == 2
    assert f"output_dir={taken} cannot be written" in capsys.readouterr().err


def test_two_multiruns_at_once_share_the_points(scripts, overrides, tmp_path):
    points = ["-m", *overrides, *POINTS, "seed=0,1", "tokens=10240"]
    processes = [scripts.start("train.py", points) for _ in range(2)]
    ended = [process.ended(240) for process in processes]
    assert [process.returncode for process in ended] == [0, 0], ended
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert [summary["status"] for summary in summaries] == ["finished"] * 6
    # Twelve visits to six points: six trained, six did not.
    visits = [line for process in ended for line in process.stderr.splitlines()]
    assert sum(line.startswith(("skipped: ", "finished before: ")) for line in visits) == 6
    assert any(line.startswith("skipped: ") for line in visits), "they met"
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_another_finished_before_it_could_be_claimed_is_not_trained_again(
    read, overrides, tmp_path, monkeypatch, capsys
):
    settings = read([*overrides, "attention=mha", "tokens=2048"])
    finished = fit_run(settings)
    run = RunDirectory(Path(finished.run))
    run.write_summary(replace(finished, status="running"))
    claimed, written = RunDirectory.claimed, run.metrics.stat().st_mtime_ns

    @contextmanager
    def claimed_late(self):
        run.write_summary(finished)  # what the other process did last
        with claimed(self):
            yield

    monkeypatch.setattr(RunDirectory, "claimed", claimed_late)
    assert fit_run(settings) == finished
    assert "finished before" in capsys.readouterr().err
    assert run.metrics.stat().st_mtime_ns == written


def test_points_of_a_killed_multirun_that_others_did_are_not_left(tmp_path):
    names = ["seed=0", "seed=1", "seed=2"]
    killed, ours, theirs = (SweepPoints(tmp_path, names) for _ in range(3))
    killed.write(0, Point("seed=0", ended=False))
    killed._lock.close()
    ours.write(0, Point("seed=0", held="there"))
    ours.write(1, Point("seed=1"))
    ours.write(2, Point("seed=2", held="there"))
    ours.remove()
    assert killed.folder.exists(), "theirs is not over"
    theirs.write(2, Point("seed=2"))
    theirs.remove()
    assert killed.folder.exists(), "who held the first point did not end it"
    again = SweepPoints(tmp_path, ["seed=0", "seed=9"])
    again.write(0, Point("seed=0"))
    again.write(1, Point("seed=9", failure="why"))
    killed, ours = SweepPoints(tmp_path, names), SweepPoints(tmp_path, names)
    killed._lock.close()
    for number, name in enumerate(names[1:]):
        ours.write(number, Point(name))
    again._lock.close()
    ours.remove()
    assert [*tmp_path.iterdir()] == [again.folder], "between them all were done"


def test_points_are_kept_while_their_multirun_lives_or_has_something_left(tmp_path):
    code = (
        "import sys, time, pathlib; from dma_lab.train.sweep_points import Point, SweepPoints\n"
        "points = SweepPoints(pathlib.Path(sys.argv[1]), ['seed=3']); points.write(3, Point('seed=3'))\n"
        "print(points.folder, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    ours = SweepPoints(tmp_path, ["seed=2", "seed=11"])
    ours.write(11, Point("seed=11", ended=False))
    ours.write(2, Point("seed=2", failure="why"))
    ours.write(11, Point("seed=11", held="there"))
    assert ours.read() == [Point("seed=2", failure="why"), Point("seed=11", held="there")]
    SweepPoints(tmp_path, []).remove()
    assert theirs.exists(), "a multirun that lives"
    other.kill()
    other.wait()
    assert not read_sweep(theirs).alive
    orphan = pickle.loads(pickle.dumps(ours))  # what a launcher's process has, which outlived its multirun
    ours.remove()
    assert not theirs.exists(), "killed when all was done"
    assert read_sweep(ours.folder).begun == ours.read(), "a point that failed is left to be told"
    another = SweepPoints(tmp_path, ["seed=7"])
    assert ours.folder.exists()
    again = SweepPoints(tmp_path, ["seed=2", "seed=11"])
    assert not ours.folder.exists(), "the same multirun begins again"
    orphan.write(12, Point("seed=12"))
    for number, name in enumerate(("seed=2", "seed=11")):
        again.write(number, Point(name))
    again.remove()
    assert again.folder.exists(), "the other one, which lives, may read there what it need not wait for"
    another.write(0, Point("seed=7"))
    another.remove()
    assert not list(tmp_path.iterdir())
