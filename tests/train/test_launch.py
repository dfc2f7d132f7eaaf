"""Runs of several processes, and processes that a launcher started: right numbers or one sentence, and no orphans."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from dma_lab.messages import MishapError, UserError
from dma_lab.train.divergence import DivergedError
from dma_lab.train.fit_run import fit_run
from dma_lab.train.launch import _follow
from dma_lab.train.peers import LostRankError
from dma_lab.train.ranks import Ranks
from dma_lab.train.runs import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
# Small steps and a smooth backend: what differs then is the order of float32's sums.
CALM = ["attention=mha", "optimizer.learning_rate=1e-3", "trainer.log_every=1", "tokens=51200"]  # 100 steps
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost"}


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def wait_for(what, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come")


@contextmanager
def the_other_process_gets(number: int, folder: Path, at_step: int):
    """The process that ``fit_run`` starts here gets the signal after ``at_step`` steps."""

    def send() -> None:
        wait_for(lambda: any(len(lines_of(file.parent)) >= at_step for file in folder.glob("*/metrics.jsonl")))
        (other,) = multiprocessing.active_children()
        os.kill(other.pid, number)

    sender = threading.Thread(target=send)
    sender.start()
    yield
    sender.join()


@pytest.fixture
def alone(read, tiny_run, tmp_path_factory):
    """What one process comes to."""
    return fit_run(read([*tiny_run, *CALM, f"output_dir={tmp_path_factory.mktemp('alone')}"]))


def test_one_and_two_processes_are_one_run_and_a_signal_to_either_stops_it(
    warm_peers, read, overrides, alone, tmp_path
):
    settings = read([*overrides, *CALM, "trainer.devices=2"])
    with the_other_process_gets(signal.SIGTERM, tmp_path, at_step=5), pytest.raises(SystemExit) as end:
        fit_run(settings)
    assert end.value.code == 128 + signal.SIGTERM
    (run,) = tmp_path.iterdir()
    summary, stopped_at = summary_of(run), len(lines_of(run))
    assert 5 <= stopped_at < 100
    assert (summary["status"], summary["signal"], summary["step"]) == ("interrupted", signal.SIGTERM, stopped_at)
    assert "val_loss" not in summary

    # On one device to the end, and as though it were begun on one.
    finished = fit_run(read([*overrides, *CALM]))
    assert (finished.status, finished.step, finished.run) == ("finished", 100, str(run))
    assert finished.val_loss == pytest.approx(alone.val_loss, abs=1e-5)
    losses, expected = lines_of(run), lines_of(Path(alone.run))
    assert [line["step"] for line in losses] == list(range(1, 101))
    assert [line["loss"] for line in losses] == pytest.approx([line["loss"] for line in expected], abs=1e-5)


def test_a_killed_process_ends_the_run_with_one_sentence(warm_peers, read, overrides, tmp_path):
    settings = read([*overrides, *CALM, "trainer.devices=2", "tokens=51200000", "data.allow_repeat=true"])
    started = time.monotonic()
    with the_other_process_gets(signal.SIGKILL, tmp_path, at_step=5), pytest.raises(LostRankError) as end:
        fit_run(settings)
    (run,) = tmp_path.iterdir()
    assert re.fullmatch(
        rf"Process \d+, one of the 2 that train {run}, was killed by signal 9; the same command continues .*\.",
        str(end.value),
    )
    assert summary_of(run)["reason"] == f"LostRankError: {end.value}"
    assert not torch.distributed.is_initialized()
    with RunDirectory(run).claimed():
        assert time.monotonic() - started < 60


def _raise(error, ranks):
    raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [(UserError("a mistake."), 2), (MishapError("a full disk."), 1), (DivergedError("it diverged."), 1)],
    ids=lambda value: type(value).__name__,
)
def test_a_started_process_ends_with_its_errors_status(warm_peers, error, status):
    process = multiprocessing.get_context("spawn").Process(target=_follow, args=(partial(_raise, error), Ranks(1, 2)))
    process.start()
    process.join(60)
    assert process.exitcode == status


def descendants(parent: int) -> set[int]:
    children = {
        int(child) for file in Path(f"/proc/{parent}/task").glob("*/children") for child in file.read_text().split()
    }
    return children.union(*(descendants(child) for child in children))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_outlives_the_first_process_nor_holds_its_run(overrides, tmp_path):
    """Not the other process and not their loaders' workers, which were forked while the run was held."""
    long = ["tokens=51200000", "data.allow_repeat=true", "trainer.devices=2", "trainer.loader_workers=1"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *overrides, *CALM, *long], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    metrics = wait_for(lambda: next(tmp_path.glob("*/metrics.jsonl"), None))
    wait_for(lambda: len(metrics.read_text().splitlines()) >= 3)
    others = descendants(process.pid)
    assert len(others) >= 3, "a process, and a worker of each"
    process.kill()
    _, said = process.communicate(timeout=60)
    with RunDirectory(metrics.parent).claimed():
        pass
    wait_for(lambda: not any(alive(other) for other in others), seconds=20)
    # But a worker that was just handing over a batch: multiprocessing's own thread says that nobody takes it.
    assert "Traceback" not in said or "resource_sharer.py" in said


def test_a_forked_process_does_not_hold_the_run(tmp_path):
    begun, begins = os.pipe()
    with RunDirectory(tmp_path / "run").claimed():
        if (child := os.fork()) == 0:
            os.write(begins, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(begun, 1)
    try:
        with RunDirectory(tmp_path / "run").claimed():
            assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
        SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "2"},
        {"JSM_NAMESPACE_RANK": "1"},
    ],
    ids=["torchrun", "srun", "srun, tasks a node", "jsrun"],
)
def test_a_launchers_second_process_of_one_device_trains_a_run_of_its_own(
    read, overrides, tmp_path, monkeypatch, variables
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # what Lightning makes of each of them while it is imported
    settings = read([*overrides, *CALM, "tokens=2560"])
    summary = fit_run(settings)
    run = RunDirectory(Path(summary.run))
    assert run.summary() == summary
    assert [line["step"] for line in lines_of(run.path)] == [1, 2, 3, 4, 5]
    assert run.validation.exists()


def test_no_checkpoint_but_its_own_is_loaded(read, overrides, tmp_path, monkeypatch):
    """Under SLURM Lightning begins from any checkpoint of this name that it finds in the working directory."""
    short = [*overrides, *CALM, "tokens=2560"]
    expected = fit_run(read([*short, "seed=1"]))
    other = fit_run(read([*short, "seed=0"]))
    monkeypatch.chdir(tmp_path)
    for name, value in (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).items():
        monkeypatch.setenv(name, value)
    shutil.copy(Path(other.run) / "checkpoints" / "last.ckpt", tmp_path / "hpc_ckpt_1.ckpt")
    again = fit_run(read([*short, "seed=1", f"output_dir={tmp_path / 'again'}"]))
    assert again.val_loss == expected.val_loss
    assert len(lines_of(Path(again.run))) == 5


def test_finished_is_what_took_all_its_steps(read, overrides, capsys):
    settings = read([*overrides, *CALM, "tokens=2560"])
    finished = fit_run(settings)
    run = RunDirectory(Path(finished.run))
    assert finished.step == finished.steps == 5
    run.write_summary(replace(finished, step=3, val_loss=9.0))
    capsys.readouterr()
    assert fit_run(settings).val_loss == finished.val_loss
    assert "finished before" not in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as listens:
        listens.bind(("127.0.0.1", 0))
        return listens.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun", "torchrun of two machines"])
def test_a_launchers_processes_train_one_run_together(overrides, alone, tmp_path, launcher):
    command = ["train.py", *overrides, *CALM, "trainer.devices=2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if launcher == "torchrun":
        torchrun += ["--nproc_per_node=2", "--standalone"]
        processes = [subprocess.Popen([*torchrun, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)]
    elif launcher == "torchrun of two machines":
        command[-1:] = ["trainer.devices=2", "trainer.num_nodes=2"]
        torchrun += ["--nnodes=2", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
        processes = [
            subprocess.Popen(
                [*torchrun, f"--node_rank={machine}", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
            )
            for machine in (0, 1)
        ]
    else:
        processes = [
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                env=os.environ | SRUN | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            )
            for rank in (0, 1)
        ]  # fmt: skip
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    assert "Warning" not in "".join(said)
    assert "".join(said).count("FLOP executed") == 1, "the first process speaks"
    (run,) = tmp_path.iterdir()
    assert summary_of(run)["val_loss"] == pytest.approx(alone.val_loss, abs=1e-5)
    assert [line["step"] for line in lines_of(run)] == list(range(1, 101))
