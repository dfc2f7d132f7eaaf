"""``trainer.compile=true``, what a GPU does by itself: every point of a process is compiled as if it were alone."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from dma_lab.model.loss import LinearCrossEntropy
from dma_lab.model.transformer import Block
from dma_lab.train.branches import fit_branches
from dma_lab.train.fit_run import fit_run

# 11 windows of validation, 8 at a time: the last batch is a partial one.
COMPILED = ["trainer.compile=true", "tokens=1024", "trainer.validation_tokens=700", "trainer.validate_every=1"]
GRAPHS = 4
"""Of one model: a block's training, validation, and validation of a partial batch; the loss to train with."""


def test_every_run_of_a_process_is_compiled_anew_and_few_times(read, overrides, monkeypatch):
    """Guards and limits are Dynamo's and hold with any compiler behind it; the quickest is none."""
    for part in (Block, LinearCrossEntropy):
        with_options = functools.partialmethod(part.compile, backend="eager")
        monkeypatch.setattr(part, "compile", with_options)
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=GRAPHS - 1):
        for attention in ("mha", "dma"):
            counters.clear()
            fit_run(read([*overrides, *COMPILED, f"attention={attention}"]))
            graphs.append(counters["stats"]["unique_graphs"])
        branched = read([*overrides, *COMPILED, "tokens=2048", "schedule.branches=[1,2]", "attention=mha"])
        assert len(fit_branches(branched)) == 2
    assert all(2 < count <= GRAPHS for count in graphs), graphs


@pytest.mark.slow
def test_a_point_of_a_compiled_multirun_equals_the_run_alone(run_script, overrides, tmp_path):
    points = [*overrides, *COMPILED, "model.n_layers=1", "trainer.device=cpu"]
    several = run_script("train.py", ["-m", *points, "attention=mha,swa,dma", f"output_dir={tmp_path / 'several'}"])
    assert several.returncode == 0, several.stderr
    for attention in ("swa", "dma"):
        alone = run_script("train.py", [*points, f"attention={attention}", f"output_dir={tmp_path / 'alone'}"])
        assert alone.returncode == 0, alone.stderr
    runs = sorted((tmp_path / "alone").iterdir())
    assert len(runs) == 2
    for run in runs:
        other = tmp_path / "several" / run.name
        assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
        ours, theirs = (torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (run, other))
        assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in ours["state_dict"])
