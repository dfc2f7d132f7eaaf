"""A training that runs out of memory goes on with smaller micro-batches, as if it had been given them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from dma_lab.checkpoints import read_checkpoint
from dma_lab.messages import UserError
from dma_lab.model import Transformer
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.fit_run import fit_run

# 6 steps of 8 sequences, a checkpoint after each second one.
RUN = ["attention=mha", "tokens=3072", "trainer.log_every=1", "trainer.validate_every=6", "trainer.checkpoint_every=2"]


@pytest.fixture
def room(monkeypatch):
    """A device for whose memory more than ``room.sequences`` are too many to train on, once ``room.calls`` were not."""

    room, losses = SimpleNamespace(sequences=2, calls=0, tried=[]), Transformer.losses

    def within(model, tokens, *arguments):
        room.tried.append(len(tokens))
        if len(tokens) > room.sequences and len(room.tried) > room.calls:
            raise torch.OutOfMemoryError("no memory")
        return losses(model, tokens, *arguments)

    monkeypatch.setattr(Transformer, "losses", within)
    return room


def test_what_memory_has_no_room_for_is_halved_and_equals_what_was_halved_by_hand(
    read, overrides, tmp_path, room, capsys
):
    by_hand = fit_run(read([*overrides, *RUN, f"output_dir={tmp_path / 'by_hand'}", "trainer.micro_batch_sequences=2"]))
    capsys.readouterr()
    room.tried.clear()
    room.calls = 2  # so that two steps with their lines are in vain
    ours = fit_run(read([*overrides, *RUN, "trainer.checkpoint_every=3"]))
    assert room.tried == [8, 8, 8, 4, *[2] * 24]
    said = capsys.readouterr().err
    assert said.count("has no memory left") == 2
    assert "8 sequences: trained with trainer.micro_batch_sequences=4." in said
    assert "4 sequences: trained with trainer.micro_batch_sequences=2." in said
    assert "Traceback" not in said
    one, other = Path(ours.run), Path(by_hand.run)
    assert one.name == other.name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in (one / "speed.jsonl").read_text().splitlines()] == [*range(1, 7)]
    weights = [read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (one, other)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert OmegaConf.load(one / "config.yaml").trainer.micro_batch_sequences == 2, "the report tells it by that"


def test_a_run_goes_on_with_the_micro_batches_that_it_was_begun_with(read, overrides, room, monkeypatch):
    def cut(recorder, trainer, *_):
        if trainer.global_step == 3:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_train_batch_start", cut, raising=False)
        with pytest.raises(ZeroDivisionError):
            fit_run(read([*overrides, *RUN]))
    room.tried.clear()
    room.sequences = 8
    summary = fit_run(read([*overrides, *RUN]))
    assert summary.status == "finished"
    assert room.tried == [2] * 16


@pytest.mark.parametrize(
    ("sequences", "calls", "more"), [(0, 0, []), (2, 0, ["trainer.micro_batch_sequences=4"]), (2, 3, [])]
)
def test_what_cannot_be_halved_is_a_sentence(read, overrides, room, sequences, calls, more):
    room.sequences, room.calls = sequences, calls  # the last: a checkpoint was saved with larger ones
    with pytest.raises(UserError, match=r"has no memory left for micro-batches of .* give the same command again"):
        fit_run(read([*overrides, *RUN, *more]))
