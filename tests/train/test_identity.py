"""A run continues, and a branch begins, from states that all that led to them makes its own."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from dma_lab.attention import AttentionConfig
from dma_lab.checkpoints import read_checkpoint, recorded, write_checkpoint
from dma_lab.messages import UserError
from dma_lab.train.continuing import prepare_start
from dma_lab.train.fit_run import fit_run
from dma_lab.train.identity import state_identity
from dma_lab.train.runs import RunDirectory
from tests.train.damage import flipped, not_finite


def test_a_checkpoint_of_another_run_of_the_same_shapes_is_refused(cut, settings_in, tmp_path):
    other = fit_run(settings_in(tmp_path / "other", "optimizer.learning_rate=0.001"))
    own = cut.checkpoint.read_bytes()
    shutil.copyfile(RunDirectory(Path(other.run)).checkpoint, cut.checkpoint)
    with pytest.raises(UserError, match=r"another run: .*optimizer.learning_rate=0.001 .*; move it away"):
        fit_run(settings_in(tmp_path))
    cut.checkpoint.write_bytes(own)
    content = read_checkpoint(cut.checkpoint)
    recorded(content)["identity"]["data_fingerprint"] = "0" * 32
    write_checkpoint(content, cut.checkpoint)
    with pytest.raises(UserError, match=r"another run: .*data_fingerprint=0{32}"):
        fit_run(settings_in(tmp_path))


def test_states_are_told_apart_by_all_that_led_to_them(settings_in):
    settings = settings_in("nowhere")

    def state(group=None, step=5, steps=12, fingerprint="f", precision="fp32", **changes):
        changed = dataclasses.replace(getattr(settings, group), **changes) if group else None
        own = dataclasses.replace(settings, **({group: changed} if group else changes))
        return state_identity(own, steps, fingerprint, precision, None, step)

    same = state()
    assert state(seed=1) != same
    assert state(match="none") != same
    assert state(attention=AttentionConfig.of("mha", {"rope_base": 5000.0})) != same
    assert state("model", d_ff=128) != same
    assert state("init", qk_gain=2.0) != same
    assert state("data", mask_documents=False) != same
    assert state("optimizer", weight_decay=0.2) != same
    assert state("trainer", tokens_per_step=1024) != same
    assert state("trainer", validation_tokens=1024) != same
    assert state("schedule", warmup_steps=3) != same
    assert state(fingerprint="g") != same
    assert state(precision="bf16") != same
    assert state(output_dir="elsewhere") == same
    assert state("trainer", log_every=7) == same
    # The decay takes the last 3 of 12 steps. Before it, a state is that of any budget; from it on, of one.
    assert state("schedule", warmup_steps=1, steps=24) == state("schedule", warmup_steps=1, step=9)
    assert state("schedule", warmup_steps=1, steps=24, step=10) != state("schedule", warmup_steps=1, step=10)
    assert state("schedule", final_fraction=0.5) == same
    assert state("schedule", final_fraction=0.5, step=10) != state(step=10)


def test_a_branch_begins_from_what_is_whole_and_of_its_training(cut, own_identity, uncut, tmp_path, capsys):
    shorter, run = RunDirectory(tmp_path / "shorter"), RunDirectory(tmp_path / "longer")
    for one in (shorter, run):
        one.stable.parent.mkdir(parents=True)

    def begun(spoil=lambda file: None, step=8, identity=own_identity):
        shutil.copyfile(cut.checkpoint, shorter.stable)
        spoil(shorter.stable)
        capsys.readouterr()
        return prepare_start(run, identity, [(tmp_path / "none", 9), (shorter.path, step)]), capsys.readouterr().err

    for arguments, said in (
        ({"spoil": flipped}, "stable.ckpt is damaged"),
        ({"spoil": not_finite}, "stable.ckpt is damaged (its weights or"),
        ({"step": 4}, "it is of step 8 and not of 4"),
        ({"identity": lambda step: own_identity(step) | {"seed": 1}}, "trained with seed=0 and this run has 1"),
    ):
        start, told = begun(**arguments)
        assert start.steps_shared == 0
        assert said in told
        assert not run.checkpoint.exists()
        assert not run.metrics.exists()
    start, told = begun()
    assert (start.steps_shared, told) == (8, "")
    assert read_checkpoint(run.checkpoint)["global_step"] == 8
    assert run.metrics.read_bytes() == b"".join(Path(uncut.run, "metrics.jsonl").read_bytes().splitlines(True)[:4])
