"""Checkpoints that are written while training goes on: of what, in which order, and what ends them."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from dma_lab.checkpoints import read_checkpoint, recorded
from dma_lab.messages import MishapError
from dma_lab.train import checkpoint_writer
from dma_lab.train.checkpoint_writer import CheckpointWriter
from dma_lab.train.fit_run import fit_run
from dma_lab.train.module import LanguageModel
from dma_lab.train.runs import RunDirectory

# 12 steps, a line at each, checkpoints at 4, 8 and 12.
SHORT = ["attention=mha", "tokens=6144", "trainer.log_every=1", "trainer.validate_every=12"]
SECONDS = 30  # until a test that waits for a thread gives up


@pytest.fixture
def content():
    weight = torch.arange(6.0)
    return {
        "state_dict": {"embedding": weight, "head": weight.detach()},
        "optimizer_states": [{"state": {0: {"momentum": torch.ones(2, 3).T}}}],
        "global_step": 4,
        "callbacks": {"RunRecorder": {"run": "a", "identity": {}, "lines": {}}},
    }


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "a")
    run.checkpoint.parent.mkdir(parents=True)
    return run


class HeldBack:
    """``write_checkpoint`` begins when ``go`` is set."""

    def __init__(self, monkeypatch):
        self.go, self.began = threading.Event(), threading.Event()
        write = checkpoint_writer.write_checkpoint

        def written(*arguments, **options):
            self.began.set()
            assert self.go.wait(SECONDS)
            write(*arguments, **options)

        monkeypatch.setattr(checkpoint_writer, "write_checkpoint", written)


@pytest.fixture
def held_back(monkeypatch):
    return HeldBack(monkeypatch)


def save(writer, content, **options):
    writer.save_checkpoint(content, writer.run.checkpoint.with_suffix(".partial"), **options)


def test_what_is_written_is_the_state_as_it_was(run, content, held_back):
    expected = {name: tensor.clone() for name, tensor in content["state_dict"].items()}
    with CheckpointWriter(run) as writer:
        for step in (4, 8):  # the second time into the room of the first
            held_back.go.clear()
            content["global_step"] = step
            save(writer, content, storage_options={"keep": step == 4})
            content["state_dict"]["embedding"].add_(1)
            content["optimizer_states"][0]["state"][0]["momentum"].add_(1)
            content["callbacks"]["RunRecorder"]["lines"]["metrics.jsonl"] = "later"
            held_back.go.set()
            writer.wait()
    for file, step, more in ((run.stable, 4, 0), (run.previous, 4, 0), (run.checkpoint, 8, 1)):
        found = read_checkpoint(file)
        assert found["global_step"] == step
        assert {name: tensor.tolist() for name, tensor in found["state_dict"].items()} == {
            name: (tensor + more).tolist() for name, tensor in expected.items()
        }
        momentum = found["optimizer_states"][0]["state"][0]["momentum"]
        assert torch.equal(momentum, torch.full((3, 2), 1.0 + more))
        assert momentum.stride() == (1, 3)
        embedding, head = found["state_dict"].values()
        assert embedding.data_ptr() == head.data_ptr(), "what is one is written once"
    assert recorded(read_checkpoint(run.stable))["lines"] == {}


def test_steps_go_on_while_one_is_written_and_the_next_one_waits(read, overrides, monkeypatch, held_back, tmp_path):
    steps_when_begun = []
    begin, take_step, step = CheckpointWriter.save_checkpoint, LanguageModel.take_step, [0]

    def counted(module, micro_batches):
        step[0] += 1
        if step[0] == 8:  # of a thread that no step waits for
            assert held_back.began.is_set()
            assert not list(tmp_path.rglob("last.ckpt"))
            threading.Timer(0.3, held_back.go.set).start()
        return take_step(module, micro_batches)

    def begun(writer, *arguments, **options):
        begin(writer, *arguments, **options)
        steps_when_begun.append((step[0], sorted(file.name for file in tmp_path.rglob("*.ckpt"))))

    monkeypatch.setattr(LanguageModel, "take_step", counted)
    monkeypatch.setattr(CheckpointWriter, "save_checkpoint", begun)
    summary = fit_run(read([*overrides, *SHORT, "trainer.checkpoint_every=4"]), keep_step=4)
    run = RunDirectory(Path(summary.run))
    assert steps_when_begun[0] == (4, [])
    assert steps_when_begun[1][1] == ["last.ckpt", "stable.ckpt"], "the first is whole before the second begins"
    assert read_checkpoint(run.checkpoint)["global_step"] == 12
    lines = recorded(read_checkpoint(run.stable))["lines"]["metrics.jsonl"]
    assert lines == "".join(run.metrics.read_text().splitlines(keepends=True)[:4])


def test_an_error_of_the_disk_ends_training_at_the_next_step(read, overrides, monkeypatch):
    failed = threading.Event()

    def failing(*arguments, **options):
        try:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        finally:
            failed.set()

    take_step, steps = LanguageModel.take_step, []

    def counted(module, micro_batches):
        steps.append(len(steps) + 1)
        if len(steps) == 5:
            assert failed.wait(SECONDS)
            time.sleep(0.1)
        return take_step(module, micro_batches)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", failing)
    monkeypatch.setattr(LanguageModel, "take_step", counted)
    with pytest.raises(MishapError, match=os.strerror(errno.EIO)):
        fit_run(read([*overrides, *SHORT, "trainer.checkpoint_every=4"]))
    assert steps[-1] == 5


def ended_by(error, run, content, held_back):
    """A training that ``error`` ends while a checkpoint is being written."""
    with CheckpointWriter(run) as writer:
        save(writer, content)
        threading.Timer(0.2, held_back.go.set).start()
        raise error


def test_an_end_at_once_gives_up_what_is_not_written(run, content, held_back):
    held_back.go.set()
    with CheckpointWriter(run) as writer:
        save(writer, content)
    before = run.checkpoint.read_bytes()
    held_back.go.clear()
    with pytest.raises(KeyboardInterrupt):
        ended_by(KeyboardInterrupt, run, content, held_back)
    assert [file.name for file in run.checkpoint.parent.iterdir()] == ["last.ckpt"]
    assert run.checkpoint.read_bytes() == before


def test_an_error_elsewhere_leaves_what_was_begun_to_be_written(run, content, held_back):
    with pytest.raises(ZeroDivisionError):
        ended_by(ZeroDivisionError, run, content, held_back)
    assert read_checkpoint(run.checkpoint)["global_step"] == 4
