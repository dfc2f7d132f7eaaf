"""Runs that were cut and damaged, and what they must end as."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from dma_lab.checkpoints import read_checkpoint, write_checkpoint
from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run
from dma_lab.train.runs import RunDirectory

OF_THE_MOMENT = {"tokens_per_second", "seconds", "peak_memory_bytes"}


def continued(run: RunDirectory, settings, uncut) -> None:
    """Continues ``run``, which ends as the uncut one: lines, weights, summary."""
    summary = fit_run(settings)
    theirs = RunDirectory(Path(uncut.run))
    assert run.metrics.read_bytes() == theirs.metrics.read_bytes()
    steps = [json.loads(line)["step"] for line in run.speed.read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]
    ours, other = (read_checkpoint(one.checkpoint)["state_dict"] for one in (run, theirs))
    assert all(torch.equal(ours[name], weight) for name, weight in other.items())
    assert summary == Summary.read(run.path)
    of_the_moment = {name: getattr(uncut, name) for name in OF_THE_MOMENT | {"run"}}
    assert replace(summary, **of_the_moment) == uncut
    assert OmegaConf.load(run.path / "config.yaml").seed == 0


def not_finite(file: Path) -> None:
    content = read_checkpoint(file)
    next(iter(content["state_dict"].values())).view(-1)[3] = float("nan")
    write_checkpoint(content, file)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "a bit flipped": flipped,
    "not finite": not_finite,
    "garbage": lambda file: file.write_bytes(b"\xff\xfe" * 700),
    "lost": Path.unlink,
}
