"""What a plan says of the time, by a clock that the test winds, against hand arithmetic."""

import pytest
import torch

from dma_lab.commands.plan import main
from dma_lab.model.loss import LinearCrossEntropy
from dma_lab.model.transformer import Block
from dma_lab.train import probe
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.module import LanguageModel
from dma_lab.train.plan import plan_run
from dma_lab.train.plan_table import probed_time
from dma_lab.train.probe import Estimate, probe_run
from tests.made_up import as_given, configuration
from tests.train.clock import WoundClock


@pytest.fixture
def wound(monkeypatch):
    return WoundClock(monkeypatch, probe).wind


@pytest.mark.parametrize("compiled", [True, False])
def test_slow_stretches_are_the_spread_and_compiling_is_counted_once(read, overrides, wound, monkeypatch, compiled):
    for part in (Block, LinearCrossEntropy):
        monkeypatch.setattr(part, "compile", lambda self, **options: None)
    first = 4 if compiled else 1  # then intervals of 5 steps: of 12, these three take 3 s per step, the others 1 s
    slow = {5 * interval + first + step for interval in (2, 7, 8) for step in range(1, 6)}
    wound(LanguageModel, "take_step", lambda call: 10 if call <= first else 3 if call in slow else 1)
    wound(probe, "score_validation", lambda call: 7 if call == 1 else 2)
    settings = read([*overrides, "attention=mha", "trainer.device=cpu", f"trainer.compile={str(compiled).lower()}"])
    hardware = resolve_hardware(settings.trainer)
    plan = plan_run(settings, 320, hardware)
    estimate = probe_run(settings, plan, hardware, budget=1000)
    assert (plan.steps, estimate.steps) == (60, 60)
    # 3 validations of 4 batches; 4 first steps and the first batch scored take that much longer than others.
    assert estimate.validation == 3 * 4 * 2
    assert estimate.compiling == (4 * (10 - 1) + (7 - 2) if compiled else 0)
    rest = estimate.validation + estimate.compiling
    assert (estimate.low - rest, estimate.seconds - rest, estimate.high - rest) == pytest.approx((60, 60, 180))


def test_the_probe_ends_after_its_budget(read, overrides, wound):
    wound(LanguageModel, "take_step", lambda call: 2)
    settings = read([*overrides, "attention=mha", "trainer.device=cpu", "tokens=1024000"])
    hardware = resolve_hardware(settings.trainer)
    # A tenth of 20 s is over after each step, so each is an interval.
    assert probe_run(settings, plan_run(settings, 320, hardware), hardware, budget=20).steps == 10


def test_the_time_is_said_with_its_spread():
    said = probed_time(Estimate(540.0, 720.0, 960.0, compiling=20.0, validation=65.0, steps=143))
    assert said == (
        "about 12 min (9 to 16), of which validation 1 min 05 s, compiling 0 min 20 s (from 143 steps here; reading "
        "the data not included)"
    )
    assert probed_time(Estimate(7000.0, 7400.0, 9000.0, 0.0, 1.0, 9)).startswith("about 2.1 h (1.9 to 2.5), of which")


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (
            ["trainer.devices=2", "trainer.strategy=fsdp"],
            "steps are timed on one device, and it has no memory for what 2 are to share",
        ),
        (["trainer.micro_batch_sequences=4"], "has no memory left for micro-batches of 4 sequences of 64 tokens"),
    ],
)
def test_where_memory_does_not_suffice_for_steps_the_rest_of_the_plan_is_said(tiny_run, monkeypatch, capsys, of, said):
    def too_much(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(probe, "probe_run", too_much)
    given = [*tiny_run, "attention=mha", *of]
    as_given(monkeypatch, given, "plan")
    main(configuration(given, "plan"))
    table = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "time not known: " in table
    assert said in table
    assert "memory: optimizer" in table
