"""What the mean hides, size by size: every rung's largest budget has its own differences."""

import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.document import Table
from dma_lab.report.splits import hidden_by_the_mean
from tests.report.conftest import CONTEXT
from tests.report.test_splits import split

KINDS = {
    "all targets": lambda sums: sums.sum(),
    "that repeat a bigram": lambda sums: sums[..., 1].sum(),
    "all other": lambda sums: sums[..., 0].sum(),
    f"from fewer than {CONTEXT // 4} tokens": lambda sums: sums[:, :4].sum(),
    f"from {CONTEXT // 2} tokens or more": lambda sums: sums[:, 5:].sum(),
}


@pytest.fixture
def study(add_run, tmp_path):
    """Two rungs, the larger with one seed; the smaller with a budget of less, where differences are others."""
    sums = {}
    for rung, tokens, seeds in (("1m", 500_000, (0, 1)), ("1m", 1_000_000, (0, 1)), ("3m", 1_000_000, (0,))):
        for name, gap, of_repeats in (("mha", 0.0, 0.0), ("swa", tokens / 1e8, 0.1), ("dma", 0.02, 0.05 * len(seeds))):
            for seed in seeds:
                path = add_run(name, model=rung, tokens=tokens, seed=seed)
                sums[name, rung, tokens, seed] = split(path, seed, gap, of_repeats)
    ((members,),) = [list(cohorts(read_runs(tmp_path / "runs")[0]).values())]
    return members, sums


def test_every_rungs_largest_budget_has_a_row_of_its_own_differences(study):
    members, sums = study
    (table,) = [
        block
        for block in hidden_by_the_mean(members).blocks
        if isinstance(block, Table) and "size by size" in block.title
    ]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    places = [(row["attention"], row["rung"], row["tokens"], row["seeds"]) for row in rows]
    larger = [(name, "3m", "1,000,000", "1") for name in ("swa", "dma")]
    assert sorted(places) == sorted([(name, "1m", "1,000,000", "2") for name in ("swa", "dma")] + larger)
    assert [row["rung"] for row in rows] == sorted(row["rung"] for row in rows)
    for row in rows:
        seeds = range(int(row["seeds"]))
        for kind, total in KINDS.items():
            own, mha = ([sums[name, row["rung"], 1_000_000, s] for s in seeds] for name in (row["attention"], "mha"))
            expected = sum(total(ours[0]) - total(theirs[0]) for ours, theirs in zip(own, mha, strict=True))
            mean = float(row[kind].split(" ")[0])
            assert mean == pytest.approx(expected / len(own) / total(own[0][1]), abs=6e-5), (row, kind)
            assert "[" in row[kind], "two seeds of the smaller rung tell the spread of both"


def test_runs_of_one_rung_have_no_such_table(study):
    members, _ = study
    section = hidden_by_the_mean([run for run in members if run.rung == "3m"])
    assert not any("size by size" in block.title for block in section.blocks if isinstance(block, Table))
