"""Interrupted and continued equals uninterrupted: every metric line and the final weights, bit for bit."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

# Long enough between log lines that a signal arrives in the middle; accumulation, so that there is state to lose.
SLOW = ["tokens=15360", "trainer.micro_batch_sequences=2", "trainer.log_every=1", "trainer.checkpoint_every=7"]


def the_run(folder: Path) -> Path:
    (run,) = [path for path in folder.iterdir() if path.is_dir()]
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def interrupt(scripts, overrides: list[str], folder: Path, number: int, after_lines: int) -> int:
    """Start the run, send the signal once it has logged ``after_lines`` lines, and return its exit status."""
    process = scripts.start("train.py", overrides)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.running:
        metrics = next(folder.glob("*/metrics.jsonl"), None)
        if metrics is not None and len(metrics.read_text().splitlines()) >= after_lines:
            break
        time.sleep(0.01)
    process.send_signal(number)
    return process.ended().returncode


@pytest.fixture
def slow_overrides(overrides):
    return [*overrides, *SLOW]


@pytest.fixture(scope="module")
def uncut(scripts, tiny_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uncut")
    assert scripts.run("train.py", [*tiny_run, *SLOW, f"output_dir={folder}"]).returncode == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cut_run_ends_where_the_uncut_one_ends(slow_overrides, uncut, scripts, run_script, tmp_path, number):
    cut = tmp_path / "cut"
    cut.mkdir()
    status = interrupt(scripts, [*slow_overrides, f"output_dir={cut}"], cut, number, after_lines=9)
    stopped_at = len((the_run(cut) / "metrics.jsonl").read_text().splitlines())
    assert 9 <= stopped_at < 30, "the signal came in the middle"
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        summary = json.loads((the_run(cut) / "summary.json").read_text())
        assert (summary["status"], summary["step"]) == ("interrupted", stopped_at)
    assert run_script("train.py", [*slow_overrides, f"output_dir={cut}"]).returncode == 0

    assert (the_run(cut) / "metrics.jsonl").read_bytes() == (the_run(uncut) / "metrics.jsonl").read_bytes()
    ours, theirs = weights(the_run(cut)), weights(the_run(uncut))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [json.loads(line)["step"] for line in (the_run(cut) / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))

    again = run_script("train.py", [*slow_overrides, f"output_dir={cut}"])
    assert again.returncode == 0
    assert "finished before" in again.stderr
