"""Seconds by part and the steady rate, by a clock that the test winds, against hand arithmetic."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dma_lab.model.loss import LinearCrossEntropy
from dma_lab.model.transformer import Block
from dma_lab.report.collect import Run, read_run
from dma_lab.train import prepared, task, timing
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.fit_run import fit_run
from dma_lab.train.hardware import Hardware, resolve_hardware
from dma_lab.train.module import LanguageModel
from dma_lab.train.plan import plan_run
from dma_lab.train.step_graph import STEPS_UNTIL_REPLAYED
from dma_lab.train.timing import PARTS, StepClock, Timing, steady_rate
from dma_lab.train.utilization import utilization
from tests.train.clock import WoundClock

PREPARING, PLANNING, COMPILING, STEADY, DISTURBED, VALIDATING, SAVING = 5.0, 64.0, 8.0, 0.5, 4.0, 3.0, 2.0
RUN = ["attention=mha", "trainer.compile=true", "trainer.validate_every=7", "trainer.checkpoint_every=7"]


@pytest.fixture
def clock(monkeypatch):
    """A run that says it is compiled, each part of which takes its seconds by a clock that nothing else moves."""
    wound = WoundClock(monkeypatch, timing)
    wind = wound.wind
    monkeypatch.setattr(timing, "_imported", [])
    for part in (Block, LinearCrossEntropy):
        monkeypatch.setattr(part, "compile", lambda self, **options: None)
    wind(prepared, "prepare_task", lambda call: PREPARING)
    wind(prepared, "prepare_beginning", lambda call: PLANNING)
    first = STEPS_UNTIL_REPLAYED
    wind(LanguageModel, "take_step", lambda call: COMPILING if call <= first else DISTURBED if call == 11 else STEADY)
    wind(task, "score_validation", lambda call: VALIDATING)
    wind(RunRecorder, "_save", lambda call: SAVING)
    return wound


@pytest.mark.parametrize("log_every", [1, 3])
def test_compiling_is_in_no_rate_and_every_part_in_its_own_place(read, overrides, clock, log_every):
    summary = fit_run(read([*overrides, *RUN, f"trainer.log_every={log_every}", "tokens=8192"]))  # 16 steps
    assert summary.seconds == {
        "importing": 0,
        "data": PREPARING,
        "compiling": STEPS_UNTIL_REPLAYED * COMPILING,
        "steps": (15 - STEPS_UNTIL_REPLAYED) * STEADY + DISTURBED,
        "validation": 3 * VALIDATING,
        "checkpoints": 3 * SAVING,
    }
    assert clock.now - sum(summary.seconds.values()) == PLANNING, "of no part"
    assert summary.tokens_per_second == 512 / STEADY, "which one disturbed step does not move"
    last = json.loads((Path(summary.run) / "speed.jsonl").read_text().splitlines()[-1])
    assert last["training_seconds"] == summary.seconds["compiling"] + summary.seconds["steps"]


def test_seconds_go_on_in_the_process_that_continues(read, overrides, clock, monkeypatch):
    settings = read([*overrides, *RUN, "trainer.log_every=1", "tokens=8192"])
    ended = RunRecorder.on_train_batch_end

    def stop_after_seven(self, trainer, *args):
        if trainer.global_step == 7:
            self.stop.number = 15
        ended(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_train_batch_end", stop_after_seven)
        with pytest.raises(SystemExit):
            fit_run(settings)
    (run,) = Path(settings.output_dir).iterdir()
    before = json.loads((run / "summary.json").read_text())["seconds"]
    first = STEPS_UNTIL_REPLAYED
    assert (before["compiling"], before["steps"]) == (first * COMPILING, (7 - first) * STEADY)
    assert (before["data"], before["validation"], before["checkpoints"]) == (PREPARING, VALIDATING, SAVING)
    summary = fit_run(settings)
    after = summary.seconds
    assert after["compiling"] - before["compiling"] == 3 * STEADY + DISTURBED, "this process's first steps, to step 11"
    assert after["steps"] - before["steps"] == 5 * STEADY
    assert (after["data"], after["validation"]) == (2 * PREPARING, 3 * VALIDATING)
    lines = [json.loads(line) for line in (run / "speed.jsonl").read_text().splitlines()]
    without = [line["step"] for line in lines if "tokens_per_second" not in line]
    assert without == [1, 2, 3, 4, 8, 9, 10, 11], "what a process compiles first has no rate"
    assert summary.tokens_per_second == 512 / STEADY


def test_a_run_of_few_steps_has_no_rate_and_is_reported(read, overrides, clock):
    summary = fit_run(read([*overrides, *RUN, "tokens=1024"]))
    assert summary.tokens_per_second is None
    run = read_run(Path(summary.run), "run")
    assert isinstance(run, Run)
    assert run.finished


def test_a_clock_counts_each_step_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timing = Timing(dict.fromkeys(PARTS, 0.0))
    clock = StepClock(timing, tokens_per_step=100, compiling_steps=2)
    clock.resume()
    for seconds, last_of_compiling in ((8.0, False), (4.0, True)):
        now[0] += seconds
        assert clock.step() == last_of_compiling
    clock.stop()
    assert clock.rate() is None
    for _ in range(3):
        now[0] += 0.5
        clock.step()
    clock.stop()
    now[0] += 100.0  # a validation
    clock.resume()
    now[0] += 1.0
    clock.step()
    clock.stop()
    assert clock.rate() == 4 * 100 / 2.5
    assert clock.rate() is None
    assert (timing.seconds["compiling"], timing.seconds["steps"]) == (12.0, 2.5)


def test_the_rate_of_a_run_is_the_median_of_its_lines():
    rates = ['{"step": 1}', *(f'{{"step": {i}, "tokens_per_second": {rate}}}' for i, rate in enumerate((5, 90, 100)))]
    assert steady_rate(rates) == 90
    assert steady_rate(rates[:1]) is None


def test_importing_is_counted_from_the_process_start_and_once():
    code = (
        "import time; time.sleep(0.7); from dma_lab.train.timing import Timing, note_imports; note_imports();"
        "print(Timing().seconds['importing'], Timing().seconds['importing'])"
    )
    began = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, second = map(float, said.split())
    assert 0.7 < first < time.perf_counter() - began + 0.1
    assert second == 0


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("1 x NVIDIA H200 NVL", "bf16", 835e12),
        ("CPU (x86_64, 2 threads)", "bf16", None),
    ],
)
def test_mfu_is_the_part_of_the_peak_where_that_is_known(read, overrides, name, precision, peak):
    settings = read([*overrides, "attention=swa"])
    plan = plan_run(settings, 320, resolve_hardware(settings.trainer))
    found = utilization(1e6, plan, 2, Hardware(torch.device("cpu"), name, precision, compile=False))
    if peak is None:
        assert found == {}
        return
    for mfu, flops in (("mfu_executed", plan.flops.executed), ("mfu_dense_equivalent", plan.flops.dense_equivalent)):
        assert found[mfu] == pytest.approx(1e6 * flops / plan.tokens / (2 * peak))
    assert found["mfu_executed"] < found["mfu_dense_equivalent"]
    assert utilization(None, plan, 1, Hardware(torch.device("cpu"), name, precision, compile=False)) == {}
