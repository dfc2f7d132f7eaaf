"""Interrupted and continued equals uninterrupted: every metric line and the final weights, bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def the_run(folder: Path) -> Path:
    (run,) = [path for path in folder.iterdir() if path.is_dir()]
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def interrupt(overrides: list[str], folder: Path, number: int, after_lines: int) -> int:
    """Start the run, send the signal once it has logged ``after_lines`` lines, and return its exit status."""
    command = [sys.executable, "train.py", *overrides]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = next(folder.glob("*/metrics.jsonl"), None)
        if metrics is not None and len(metrics.read_text().splitlines()) >= after_lines:
            break
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=120)


@pytest.fixture
def slow_overrides(overrides):
    # Long enough between log lines that a signal arrives in the middle; accumulation, so that there is state to lose.
    return [*overrides, "trainer.micro_batch_sequences=2", "trainer.log_every=1", "trainer.checkpoint_every=7"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cut_run_ends_where_the_uncut_one_ends(slow_overrides, door, tmp_path, number):
    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    cut.mkdir()
    status = interrupt([*slow_overrides, f"output_dir={cut}"], cut, number, after_lines=17)
    stopped_at = len((the_run(cut) / "metrics.jsonl").read_text().splitlines())
    assert 17 <= stopped_at < 60, "the signal came in the middle"
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        summary = json.loads((the_run(cut) / "summary.json").read_text())
        assert (summary["status"], summary["step"]) == ("interrupted", stopped_at)
    assert door("train.py", [*slow_overrides, f"output_dir={cut}"]).returncode == 0
    assert door("train.py", [*slow_overrides, f"output_dir={uncut}"]).returncode == 0

    assert (the_run(cut) / "metrics.jsonl").read_bytes() == (the_run(uncut) / "metrics.jsonl").read_bytes()
    ours, theirs = weights(the_run(cut)), weights(the_run(uncut))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [json.loads(line)["step"] for line in (the_run(cut) / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))

    again = door("train.py", [*slow_overrides, f"output_dir={cut}"])
    assert again.returncode == 0
    assert "finished before" in again.stderr
