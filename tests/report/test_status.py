"""``report.py status``: what runs where, what became of the others, what is left, and when it will end."""

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from dma_lab.locks import is_held
from dma_lab.messages import UserError
from dma_lab.report.status import read_status
from dma_lab.report.status_table import status_page
from dma_lab.report.watch import watch
from dma_lab.run_summary import Summary
from dma_lab.train.runs import RunDirectory
from dma_lab.train.sweep_points import Point, SweepPoints
from tests.made_up import CONF

ROOT = Path(__file__).resolve().parents[2]
HERE = {"host": "box", "device": "cuda:3", "pid": 4711, "since": 0.0}
SECONDS = {"importing": 4.0, "steps": 90.0, "validation": 6.0}


@pytest.fixture
def composing():
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


@pytest.fixture
def begin(add_run):
    """``begin(*arguments, lines=[(step, seconds)], **keywords)``: a run under way, its last line just written."""

    def write(*arguments, lines=(), status="running", **keywords) -> Path:
        run = add_run(*arguments, status=status, **keywords)
        for name in ("metrics", "speed"):
            rows = [{"step": step, "tokens": step, "loss": 5 - step / 100, "seconds": spent} for step, spent in lines]
            (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    return write


def printed(root: Path, now: float = 0.0) -> str:
    """Rows without the table's lines, one text per line."""
    stream = io.StringIO()
    Console(file=stream, width=250).print(status_page(read_status(root), now))
    return "\n".join(re.sub(r"\s*│\s*", "|", line).strip("|") for line in stream.getvalue().splitlines())


def test_every_run_is_told_by_what_became_of_it(begin, add_run, tmp_path):
    running = begin("dma", lines=[(20, 100.0), (40, 160.0)], process=HERE)
    begin("swa", lines=[(50, 10.0)], process=HERE)
    begin("nsa", lines=[(10, 1.0)], status="failed", reason="ValueError: no such thing")
    begin("mla", lines=[(30, 3.0)], status="diverged", step=30, reason="a loss that is not finite")
    add_run("mha", seed=0, seconds=SECONDS)
    add_run("mha", seed=1, seconds=SECONDS)
    (tmp_path / "runs" / "fresh").mkdir()
    (tmp_path / "runs" / "fresh" / "run.lock").touch()
    with RunDirectory(running).claimed():
        lines = printed(tmp_path / "runs").splitlines()
    assert lines[0].strip() == "2 running, 2 finished, 3 failed or stopped, 0 points left"
    rows = {line.split("|")[1]: line.split("|") for line in lines if line.count("|")}
    # 3 s per step from line to line, the start-up left out: 60 steps are 180 s.
    assert rows[running.name][:6] == [
        "running",
        running.name,
        "box, cuda:3, process 4711",
        "40/100  40%",
        "3,333",
        "4.6000",
    ]
    assert re.fullmatch(r"0:0(3:00|2:5\d) left", rows[running.name][6])
    assert rows["fresh"][0] == "starting"
    by_backend = {row[1].split("-")[2]: row for row in rows.values() if row[1].startswith("study")}
    assert by_backend["swa"][0] == "stopped"
    assert "killed before its end; the same command continues it" in by_backend["swa"][-1]
    assert by_backend["swa"][6] == "0:00:10 left", "50 steps took 10 s, and as many are left"
    assert (by_backend["nsa"][0], by_backend["nsa"][-1]) == ("failed", "ValueError: no such thing")
    assert (by_backend["mla"][0], by_backend["mla"][-1]) == ("diverged at step 30", "a loss that is not finite")
    assert rows["nano mha, 1,000,000 tokens (2 runs)"][6] == "0:01:40", "the mean of all their seconds"


def test_losses_of_runs_that_may_differ_in_more_than_seeds_are_not_averaged(add_run, tmp_path):
    for rate, loss in ((0.01, 4.83), (0.002, 5.72), (0.005, 5.0)):
        add_run("mha", settings={"optimizer": {"learning_rate": rate}}, val_loss=loss)
    add_run("dma", val_loss=4.8)
    rows = {line.split("|")[1]: line.split("|") for line in printed(tmp_path / "runs").splitlines() if "nano" in line}
    assert rows["nano mha, 1,000,000 tokens (3 runs)"][5] == "4.8300 to 5.7200"
    assert rows["nano dma, 1,000,000 tokens"][5] == "4.8000"


def test_imports_and_data_do_not_slow_a_run_that_has_logged_once(begin, tmp_path):
    running = begin("dma", lines=[(10, 40.0)], process=HERE)
    (running / "speed.jsonl").write_text('{"step": 10, "training_seconds": 5.0, "seconds": 40.0}\n')
    with RunDirectory(running).claimed():
        (run,) = read_status(tmp_path / "runs").runs
    assert run.seconds_per_step == 0.5


def test_a_run_that_writes_no_more_lines_is_said_to_be_silent(begin, tmp_path):
    running = begin("dma", lines=[(20, 100.0), (40, 160.0)], process=HERE)
    an_hour_ago = time.time() - 3600
    os.utime(running / "metrics.jsonl", (an_hour_ago, an_hour_ago))
    with RunDirectory(running).claimed():
        assert "silent for 1:00:0" in printed(tmp_path / "runs")


def test_points_are_counted_over_all_processes_and_their_time_follows_from_the_measured_ones(
    begin, add_run, composing, tmp_path
):
    """Two processes share a sweep: one reads the other's record for what it has not come to itself."""
    root = tmp_path / "runs"
    common = "experiment=chinchilla model=nano tokens=1000000"
    points = [f"{common} attention={name} seed={seed}" for seed in (0, 1) for name in ("mha", "dma", "swa")]
    finished = add_run("mha", seconds=SECONDS)  # 1 M tokens in 100 s
    running = begin("dma", lines=[(50, 100.0)], process=HERE)  # 2 s per step: 100 s left
    ours, theirs = SweepPoints(root, points), SweepPoints(root, points)
    ours.write(0, Point(points[0], summaries=[Summary.read(finished)]))
    ours.write(1, Point(points[1], ended=False, process=HERE))
    theirs.write(0, Point(points[0], held=str(finished)))
    theirs.write(1, Point(points[1], held=str(running)))
    theirs.write(2, Point(points[2], failure="attention.window=0: it must be more"))
    theirs.write(3, Point(points[3], ended=False, process={"host": "other", "pid": 4711}))
    with RunDirectory(running).claimed():
        status = read_status(root)
        text = printed(root)
    assert status.points == (2, 6), "one finished, one failed"
    assert [group.overrides for group in status.left] == [points[4:]]
    assert "failed|" in text
    assert "attention.window=0: it must be more" in text
    assert "starting|experiment=chinchilla model=nano tokens=1000000 attention=mha seed=1|other, process 4711" in text
    assert "left|attention=dma" in text
    # Two processes: 100 s of the run and 100 s of MHA's point; then DMA's, as long as its run takes in all (200 s), and
    # SWA's, which was not measured and goes by the nearest run in cost, of equals by the first, DMA's.
    assert status.seconds_left == pytest.approx((100 + 100 + 200 + 200) / 2, abs=1)
    theirs.remove()
    with RunDirectory(running).claimed():
        status = read_status(root)
    assert status.points == (2, 6), "what the other process had done is known after its end"
    assert [group.overrides for group in status.left] == [points[3:]], "and what it had begun is to be done again"
    ours.remove()
    status = read_status(root)
    assert status.points is None, "no sweep lives"
    assert [(group.alive, group.overrides) for group in status.left] == [(False, [points[1], *points[3:]])]
    assert status.seconds_left is None
    assert "delete" in printed(root)


@pytest.mark.parametrize(
    ("point", "seconds"),
    [
        ("model=nano tokens=2000000", 200.0),
        # 0.5 in full; of 1 what its decay of 0.2 and the difference take: 1 - 0.8 · 0.5.
        ("model=nano tokens=2000000 schedule.branches=[0.5,1]", 100.0 + 0.6 * 200.0),
        ("model=nano tokens=1000000 model.n_layers=6 model.vocab_size=1", None),
    ],
)
def test_the_time_of_a_point_is_that_of_the_measured_run_times_its_cost(add_run, composing, tmp_path, point, seconds):
    add_run("mha", seconds=SECONDS)  # nano, 1 M tokens, 100 s
    sweep = SweepPoints(tmp_path / "runs", [f"attention=mha {point}"])
    sweep.write(3, Point("another", ended=False, process=HERE))
    status = read_status(tmp_path / "runs")
    if seconds is None:
        rung = OmegaConf.load(CONF / "model" / "nano.yaml")
        M, D = rung.d_model, rung.head_dim
        layer = 2 * M * rung.n_heads * D + 2 * M * rung.n_kv_heads * D + 3 * M * rung.d_ff
        seconds = 100.0 * (6 * layer + M) / (rung.n_layers * layer + rung.vocab_size * M)
    assert status.seconds_left == pytest.approx(seconds)
    assert status.unmeasured == 1, "the other point, which is no config"
    sweep.remove()


def test_status_of_nothing_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no such directory"):
        read_status(tmp_path / "missing")
    assert "Nothing is running." in printed(tmp_path)


def test_looking_whether_a_run_is_held_keeps_nobody_from_claiming_it(add_run):
    """The look takes the lock for a moment; who claims the run just then tries again."""
    run = RunDirectory(add_run("mha"))
    (run.path / "run.lock").touch()
    with (run.path / "run.lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.02, lambda: fcntl.flock(look, fcntl.LOCK_UN)).start()
        with run.claimed():
            assert is_held(run.path / "run.lock")


def test_status_answers_without_pytorch(add_run, tmp_path):
    add_run("mha", seconds=SECONDS)
    code = (
        "import sys; sys.argv = ['report.py', 'status', f'runs={sys.argv[1]}']\n"
        "from dma_lab.commands.report import run; run()\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "0 running, 1 finished" in said.stdout


def test_the_page_is_written_anew_when_a_run_ends_until_ctrl_c(add_run, tmp_path, capsys):
    written = []

    def write() -> None:
        written.append(len(list((tmp_path / "runs").glob("*"))) if (tmp_path / "runs").exists() else 0)
        if not written[-1]:
            add_run("mha")
            raise UserError("there is no run yet")
        if len(written) == 2:
            add_run("dma")
        else:  # a third look finds nothing new
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
    watch([tmp_path / "runs"], write, 0.01)
    signal.signal(signal.SIGINT, before)
    assert written == [0, 1, 2]
    said = capsys.readouterr().out
    assert said.startswith("waiting: there is no run yet")
    assert said.endswith("stopped watching; the page stays as it was written last.\n")
