"""A branch of one training is the plain run of its budget: lines, weights and scores, bit for bit, wherever cut."""

import dataclasses
import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.messages import UserError
from dma_lab.train import fit_run as fit_run_module
from dma_lab.train.branches import fit_branches, plan_branches
from dma_lab.train.fit_run import fit_run
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.runs import RunDirectory

# 31 steps at 1, which neither 0.5 nor the steps between two lines divide: 16, 31 and 62 steps, 2 of warm-up for all.
SHORT = ["tokens=15872", "trainer.log_every=4", "trainer.validate_every=11", "trainer.checkpoint_every=7"]


def same(ours: Path, theirs: Path) -> None:
    """What training computed is equal to the bit."""
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (ours, theirs)]
    for state in states:
        del state["callbacks"]  # how long it took
    _equal(states[0]["state_dict"], states[1]["state_dict"])
    _equal(states[0]["optimizer_states"], states[1]["optimizer_states"])
    scores = [np.load(run / "validation.npz") for run in (ours, theirs)]
    assert set(scores[0]) == set(scores[1])
    assert all(np.array_equal(scores[0][name], scores[1][name]) for name in scores[0])


def _equal(ours, theirs) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            _equal(ours[name], theirs[name])
    elif isinstance(ours, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            _equal(one, other)
    else:
        assert ours == theirs


@pytest.fixture
def short(overrides, tmp_path):
    """The tiny run's overrides with its outputs in a folder of that name."""
    return lambda folder, *more: [*overrides, *SHORT, f"output_dir={tmp_path / folder}", *more]


@pytest.fixture(scope="module")
def branched(read, tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("branched")
    return fit_branches(read([*tiny_run, *SHORT, f"output_dir={folder}", "schedule.branches=[2,0.5,1]"]))


def test_every_branch_is_the_plain_run_of_its_budget(read, short, branched):
    assert [summary.steps for summary in branched] == [16, 31, 62]
    assert [summary.steps_shared for summary in branched] == [0, 12, 24], "each begins where a shorter one decays"
    plain = [
        fit_run(read(short("plain", "tokens=7936", "schedule.warmup_steps=2"))),
        fit_run(read(short("plain"))),
        fit_run(read(short("plain", "tokens=31744", "schedule.warmup_steps=2"))),
    ]
    for branch, run in zip(branched, plain, strict=True):
        assert Path(branch.run).name == Path(run.run).name, "one identity"
        assert run.status == branch.status == "finished"
        same(Path(branch.run), Path(run.run))
        assert open_run(Path(branch.run)).step == branch.steps
        stable = open_run(Path(branch.run) / "checkpoints" / "stable.ckpt")
        assert stable.step == {16: 12, 31: 24, 62: 49}[branch.steps], "of its own settings, before they decay"
        takes_time = {"run", "tokens_per_second", "seconds", "peak_memory_bytes", "steps_shared", "git_commit"}
        assert replace(branch, **{name: getattr(run, name) for name in takes_time}) == run
        configs = [OmegaConf.load(Path(summary.run) / "config.yaml") for summary in (branch, run)]
        for config in configs:
            del config["output_dir"]
        assert configs[0] == configs[1], "the branch's config.yaml reproduces it"


def test_a_plain_run_and_a_branched_one_find_each_other_finished(read, short, branched, capsys):
    capsys.readouterr()
    there = f"output_dir={Path(branched[0].run).parent}"
    fit_run(read(short("", there)))
    assert f"finished before: {branched[1].run}" in capsys.readouterr().err
    more = fit_branches(read(short("", there, "schedule.branches=[0.5,1,2,3]")))
    assert capsys.readouterr().err.count("finished before") == 3
    assert (more[3].steps, more[3].steps_shared) == (93, 49), "a longer branch goes on from the longest"
    own = [json.loads(line)["step"] for line in (Path(more[3].run) / "metrics.jsonl").read_text().splitlines()]
    assert own == sorted({*range(4, 94, 4), *range(11, 94, 11), 93}), "and has no line of the other's end"


class CutError(Exception):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("where", ["stable phase", "keeping", "decay", "begun", "between"])
def test_cut_anywhere_and_continued_is_uncut(read, short, branched, monkeypatch, where):
    settings = read(short("cut", "schedule.branches=[0.5,1,2]"))
    append, keep, start = RunDirectory.append, RunDirectory.keep, fit_run_module.prepare_start

    def appended(run, file, line):
        if file == run.metrics and line["step"] == {"stable phase": 20, "decay": 28}.get(where):
            raise CutError
        append(run, file, line)

    def kept(run, checkpoint):
        if where == "keeping" and json.loads(run.metrics.read_text().splitlines()[-1])["step"] > 16:
            raise CutError  # the run's own checkpoint must be of an earlier step, or the state is never kept
        keep(run, checkpoint)

    def begun(run, identity_at, shorter):
        if where == "between" and len(shorter) == 2:
            raise CutError
        begun_from = start(run, identity_at, shorter)
        if where == "begun" and len(shorter) == 2:
            run.metrics.unlink()  # as if cut just before it came
            raise CutError
        return begun_from

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", appended)
        patch.setattr(RunDirectory, "keep", kept)
        patch.setattr(fit_run_module, "prepare_start", begun)
        with pytest.raises(CutError):
            fit_branches(settings)
    gc.collect()  # the error's frames hold the run's lock, which a killed process would have let go
    for branch, run in zip(fit_branches(settings), branched, strict=True):
        assert Path(branch.run).name == Path(run.run).name
        assert branch.steps_shared == run.steps_shared
        same(Path(branch.run), Path(run.run))


def test_the_plan_says_what_all_branches_cost(run_script, read, short):
    overrides = short("plan", "schedule.branches=[1,2]", "attention=mha")
    settings = read(overrides)
    one, two = plan_branches(settings, 320, resolve_hardware(settings.trainer))
    result = run_script("plan.py", [*overrides, "flops_per_second=1e9"])
    assert result.returncode == 0, result.stderr
    by_hand = one.plan.flops.executed * (1 + (62 - 24) / 31)
    assert (one.decay_start, two.plan.tokens) == (24, 31744)
    assert f"{by_hand:.3g} FLOP executed for all" in result.stdout
    assert f"as separate runs {3 * one.plan.flops.executed:.3g}" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["schedule=cosine", "schedule.branches=[1,2]"], "need schedule=wsd"),
        (["schedule.branches=[1,0]"], "input should be greater than 0"),
        (["schedule.branches=[]"], "schedule.branches=[]"),
        (["schedule.branches=[1,2,1]"], "names a budget twice"),
        (["schedule.branches=[1,2]", "schedule.decay_fraction=0"], "decay_fraction above 0"),
        (["schedule.branches=[0.1,1]", "schedule.warmup_fraction=0.1"], "within the 4 steps of warm-up"),
        (["schedule.branches=[1,1.001]"], "both come to 31 steps"),
        (["schedule.branches=[1,100]"], "data.allow_repeat=true"),
        (["schedule.warmup_steps=26"], "schedule.warmup_steps=26 reaches into the decay"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_branches_that_cannot_be_are_refused_before_anything_is_trained(read, short, tmp_path, wrong, said):
    def train():
        settings = read(short("refused", *wrong))
        (fit_branches if settings.schedule.branches else fit_run)(settings)

    with pytest.raises(UserError) as refusal:
        train()
    assert said in str(refusal.value)
    assert not (tmp_path / "refused").exists()


def test_a_corpus_read_as_far_as_the_budget_is_refused(read, short):
    settings = read(short("refused", "schedule.branches=[1,2]"))
    hardware = resolve_hardware(settings.trainer)
    hub = dataclasses.replace(settings.data, source="hub", hub_name="owner/name", path=None)
    with pytest.raises(UserError, match=r"set data\.max_tokens=31745"):
        plan_branches(dataclasses.replace(settings, data=hub), 320, hardware)
    held = dataclasses.replace(hub, max_tokens=31745)
    assert len(plan_branches(dataclasses.replace(settings, data=held), 320, hardware)) == 2
