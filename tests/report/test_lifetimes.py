"""The section on lifetimes: what chance would have kept, for the run's own attention."""

import numpy as np

from dma_lab.evaluation.lifetimes import Lifetimes
from dma_lab.report.collect import read_runs
from dma_lab.report.lifetimes import lifetimes_section


def test_chance_keeps_the_sinks_and_recent_keys_that_the_run_keeps(add_run, tmp_path):
    kept = {0: {}, 1: {"sinks": 20}, 2: {"recent": 15}}
    start, end = np.zeros((1, 40), int), np.full((1, 40), 40)
    everything = np.full((1, 1, 1, 40), 40, np.int32)
    for seed, options in kept.items():
        run = add_run("dma", seed=seed, settings={"attention": options})
        Lifetimes(everything, start, end, 10).save(run / "lifetimes.npz")
    section = lifetimes_section(read_runs(tmp_path / "runs")[0], str)
    chance = {seed: row[-1] for row in section.blocks[1].rows for seed in kept if row[3] == str(seed)}
    # 26 of the keys are observed: p of a document sees p + 15 when it is 15 old, and 10 of them stay.
    alone = np.mean([10 / (p + 15) for p in range(26)])
    beside_sinks = np.mean([1 if p < 20 else 10 / (p + 15 - 20) for p in range(26)])
    assert chance == {0: f"{alone:.0%}", 1: f"{beside_sinks:.0%}", 2: "100%"}
    for figure, seed in zip(section.blocks[2:], kept, strict=True):
        assert f"random order, {chance[seed]} of them" in figure.caption
