"""Long runs, and many processes: flat in memory and handles over 20,000 steps; four processes compute what one does."""

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dma_lab.run_summary import Summary
from tests.faults.results import runs_in
from tests.moments import at_call, signal_at

STEP = "dma_lab.train.module:LanguageModel.training_step"
pytestmark = pytest.mark.faults


def measure_at(steps: tuple[int, ...], file: Path) -> None:
    """Have this process write what it has open and takes up as these steps begin."""

    def write(step: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = {"bytes": pages * os.sysconf("SC_PAGE_SIZE"), "handles": len(os.listdir("/proc/self/fd"))}
        with file.open("a") as lines:
            lines.write(json.dumps({"step": step} | found) + "\n")

    for step in steps:
        at_call(STEP, step, functools.partial(write, step))


def test_twenty_thousand_steps_are_flat_in_memory_and_handles(scripts, tiny, workplace, tmp_path):
    folder, file = workplace(), tmp_path / "measured.jsonl"
    command = tiny.with_(
        tokens=20_000 * 128,
        data__allow_repeat=True,
        trainer__log_every=100,
        trainer__validate_every=1_000,
        trainer__checkpoint_every=500,
    )
    process = scripts.start(command, folder, before=functools.partial(measure_at, (2_000, 20_000), file)).ended(3_000)
    assert process.returncode == 0, process.stderr
    early, late = map(json.loads, file.read_text().splitlines())
    assert late["handles"] == early["handles"]
    assert late["bytes"] - early["bytes"] < 4 * 2**20, "18,000 steps may take up 4 MiB, not a page each"


@pytest.fixture(scope="module")
def calm(tiny) -> Any:
    """A hundred small steps of a smooth backend: what differs then is the order of float32's sums."""
    return tiny.with_(
        tokens=100 * 128,
        data__allow_repeat=True,
        optimizer__learning_rate=1e-3,
        trainer__log_every=1,
        trainer__validate_every=50,
        trainer__checkpoint_every=30,
    )


def losses_of(folder: Path) -> list[float]:
    (run,) = runs_in(folder)
    assert Summary.read(run).status == "finished"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 101))
    return [line["loss"] for line in lines] + [line["val_loss"] for line in lines if "val_loss" in line]


@pytest.fixture
def losses(scripts, calm, workplace) -> Callable[..., list[float]]:
    """Those of a run on so many processes, stopped at the middle before each next number."""

    def of(*devices: int) -> list[float]:
        folder = workplace()
        for turn, count in enumerate(devices, 1):
            stop = functools.partial(signal_at, STEP, 40, signal.SIGTERM, "first") if turn < len(devices) else None
            process = scripts.start(calm.with_(trainer__devices=count), folder, before=stop).ended(300)
            assert process.returncode == (143 if stop else 0), process.stderr
        found = losses_of(folder)
        shutil.rmtree(folder)
        return found

    return of


@pytest.mark.parametrize("devices", [(2,), (4,), (4, 1), (1, 4), (2, 4)], ids=str)
def test_any_number_of_processes_computes_what_one_does(losses, devices):
    assert losses(*devices) == pytest.approx(losses(1), abs=1e-5)
