"""Steps that are not finite are not taken; a run that diverged says so, keeps its last good state, has status 1."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dma_lab.commands.train import main
from dma_lab.data.batches import sequences_from
from dma_lab.data.build import prepare_data
from dma_lab.entry_point import run_entry_point
from dma_lab.evaluation.perplexity import ValidationScore
from dma_lab.report.sweep import show_runs
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.divergence import DivergedError
from dma_lab.train.fit_run import fit_run
from dma_lab.train.module import LanguageModel

CALM = ["attention=mha", "tokens=10240", "trainer.log_every=1", "trainer.checkpoint_every=7"]  # 20 steps


BLOWN = ["attention=mha", "tokens=10240", "optimizer.learning_rate=1e30"]
"""After the first step every logit is not a number."""


def lines_of(run: str) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def state_of(module: LanguageModel) -> list[torch.Tensor]:
    states = [state for optimizer in module._optimizers() for state in optimizer.state.values()]
    numbers = [value for state in states for value in state.values()]
    return [tensor.detach().clone() for tensor in (*module.model.parameters(), *numbers)]


@pytest.fixture
def poison(monkeypatch):
    """``poison(3, 5)``: logits of steps 3 and 5 are not finite. Gives each step's state before and after it."""
    original, states = LanguageModel.training_step, {}

    def poisoned(steps):
        def training_step(self, batch, batch_idx):
            step = self.global_step + 1
            before = state_of(self)
            hook = self.model.norm.register_forward_hook(lambda _, __, x: x * (math.nan if step in steps else 1.0))
            original(self, batch, batch_idx)
            hook.remove()
            states[step] = before, state_of(self)

        monkeypatch.setattr(LanguageModel, "training_step", training_step)
        return states

    return lambda *steps: poisoned(steps)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(read, overrides, poison, optimizer):
    states = poison(1, 8, 9)
    summary = fit_run(read([*overrides, *CALM, f"optimizer={optimizer}"]))
    assert (summary.status, summary.steps_skipped, summary.steps) == ("finished", 3, 20)
    for step, (before, after) in states.items():
        if step == 1:  # the optimizer's state begins with it: zeros, and no step counted
            weights = len(before)
            assert all(not moment.any() for moment in after[weights:])
            after = after[:weights]
        kept = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert kept == (step in (1, 8, 9)), step
    lines = lines_of(summary.run)
    assert [line["step"] for line in lines] == list(range(1, 21)), "a skipped step is a step"
    assert [line["step"] for line in lines if line["loss"] is None] == [1, 8, 9]
    assert [line["steps_skipped"] for line in lines] == [1] * 7 + [2] + [3] * 12
    assert all(math.isfinite(line["grad_norm"]) for line in lines if line["loss"] is not None)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_cut_between_two_skipped_steps_counts_on(read, overrides, tmp_path, poison, monkeypatch, optimizer):
    """Steps 7, 8 and 9 are three in a row although the process ends after the seventh."""
    poison(2, 7, 8, 9)
    overrides = [*overrides, *CALM, f"optimizer={optimizer}"]
    cut, uncut = ([*overrides, f"output_dir={tmp_path / name}"] for name in ("cut", "uncut"))
    with pytest.raises(DivergedError):
        fit_run(read(uncut))
    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_train_batch_start", stop_after(7), raising=False)
        with pytest.raises(SystemExit):
            fit_run(read(cut))
    with pytest.raises(DivergedError):
        fit_run(read(cut))
    runs = [next((tmp_path / name).iterdir()) for name in ("cut", "uncut")]
    assert lines_of(runs[0]) == lines_of(runs[1])
    assert lines_of(runs[0])[-1]["steps_skipped"] == 4
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert summaries[0]["step"] == summaries[1]["step"] == 9
    assert summaries[0]["reason"] == summaries[1]["reason"]


def stop_after(step: int):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == step - 1:
            self.stop.number = 15

    return on_train_batch_start


@pytest.mark.parametrize("log_every", [1, 7])
def test_three_in_a_row_end_the_run_and_leave_its_last_good_state(read, overrides, poison, log_every):
    states = poison(8, 10, 11, 12)
    settings = read([*overrides, *CALM, f"trainer.log_every={log_every}"])
    with pytest.raises(DivergedError):
        fit_run(settings)
    (run,) = Path(settings.output_dir).iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["steps_skipped"]) == ("diverged", 12, 4)
    assert summary["reason"] == "the loss or the gradient of steps 10 to 12 was not finite"
    assert "val_loss" not in summary
    assert len(states) == {1: 12, 7: 14}[log_every], "noticed where figures are read"
    assert lines_of(run)[-1]["step"] == {1: 12, 7: 14}[log_every]
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 7
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values())

    # The tenth step's batch, found by its own tokens.
    assert summary["batch"]["step"] == 10
    assert summary["batch"]["sequences"] == [9 * 8, 9 * 8 + 7]
    data = prepare_data(settings.data, 10240)
    numbers = np.cumsum(np.asarray(data.train_tokens) == data.eot_id) - 1
    batch = sequences_from(data, seed=0, first=9 * 8, count=8, context=64, mask_documents=False)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(data.train_tokens), 65)[::64]
    documents = set()
    for tokens, targets in zip(batch["tokens"].numpy(), batch["targets"].numpy(), strict=True):
        (window,) = np.flatnonzero((windows == [*tokens, targets[-1]]).all(1))
        documents |= set(numbers[window * 64 : window * 64 + 65].tolist())
    assert summary["batch"]["documents"] == sorted(documents)


def test_the_entry_point_says_what_diverged_and_what_to_change(overrides, tmp_path, monkeypatch, capsys):
    for said in ("diverged, at step 4", "diverged before, at step 4"):
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides, *BLOWN])
        with pytest.raises(SystemExit) as end:
            run_entry_point(main, "train", show_runs)
        assert end.value.code == 1
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert "give a smaller optimizer.learning_rate than 1e+30" in line
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "summary.json").read_text())["status"] == "diverged"


def test_a_multirun_goes_on_past_a_point_that_diverged(overrides, tmp_path, monkeypatch, capsys):
    points = [*BLOWN[:2], "optimizer.learning_rate=1e30,1e-3"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *overrides, *points])
    with pytest.raises(SystemExit) as end:
        run_entry_point(main, "train", show_runs)
    assert end.value.code == 1
    (failed,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert "learning_rate=1e+30" in failed
    assert "diverged" in failed
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert sorted(summary["status"] for summary in summaries) == ["diverged", "finished"]


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["alone", "a point"])
def test_branches_finished_before_one_that_diverged_are_shown(overrides, poison, monkeypatch, capsys, multirun):
    poison(13, 14, 15)  # the branch of 10 steps ends before
    branches = ["attention=mha", "tokens=10240", "schedule.branches=[0.5,1,2]", "schedule.warmup_fraction=0"]
    monkeypatch.setattr(sys, "argv", ["train.py", *multirun, *overrides, *branches])
    with pytest.raises(SystemExit) as end:
        run_entry_point(main, "train", show_runs)
    assert end.value.code == 1
    said = capsys.readouterr()
    shown = said.out[said.out.index("comparison") :] if multirun else said.out
    assert shown.count("5,120") == 1, "the tokens of the branch that is finished, and of no other"
    assert "10,240" not in shown
    *_, line = said.err.splitlines()
    assert line.startswith("failed: " if multirun else "error: ")
    assert "diverged, at step 15 of 20" in line


def test_a_state_that_is_not_finite_is_never_saved(read, overrides, monkeypatch):
    """A weight beyond float32 after a step whose gradient was finite."""
    take_step = LanguageModel.take_step

    def overflowing(self, micro_batches):
        result = take_step(self, micro_batches)
        if self.global_step == 8:  # the ninth is being taken
            with torch.no_grad():
                next(self.model.parameters())[0, 0] = math.inf
        return result

    monkeypatch.setattr(LanguageModel, "take_step", overflowing)
    settings = read([*overrides, *CALM, "trainer.checkpoint_every=3"])
    with pytest.raises(DivergedError, match="a weight or a moment of the optimizer is not finite"):
        fit_run(settings)
    (run,) = Path(settings.output_dir).iterdir()
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("nats", [math.nan, 800.0])
def test_a_finished_run_has_figures_that_are_numbers(read, overrides, monkeypatch, nats):
    """800 nats per token are a perplexity beyond a double's range."""
    from dma_lab.train.task import score_validation

    def scored(*args, **options):
        score = score_validation(*args, **options)
        score.document_nats[:] = nats * score.document_tokens
        return score

    monkeypatch.setattr("dma_lab.train.task.score_validation", scored)
    settings = read([*overrides, *CALM])
    with pytest.raises(DivergedError, match=r"its last validation loss is (nan|800) nats per token"):
        fit_run(settings)
    (run,) = Path(settings.output_dir).iterdir()
    last = lines_of(run)[-1]
    assert last["val_perplexity"] is None
    assert last["val_loss"] == (None if math.isnan(nats) else pytest.approx(800))


@pytest.mark.parametrize(("nats", "perplexity"), [(2.0, math.e**2), (709.0, math.exp(709)), (710.0, math.inf)])
def test_perplexity_beyond_a_double_is_infinite(nats, perplexity):
    one = np.ones(1, dtype=np.int64)
    assert ValidationScore(np.array([nats]), one, one, np.array([nats]), one, np.zeros(1)).perplexity == pytest.approx(
        perplexity
    )
