"""A backend with an option of its own is held against plain MHA and against MHA with that option."""

import numpy as np
import pytest

from dma_lab.evaluation.pairing import PairedDifference
from dma_lab.report.comparison import compare
from dma_lab.report.pairs import baseline_of
from dma_lab.report.tables import over_trainings
from tests.report.conftest import mean_difference, vouch


def test_an_mha_variant_is_not_taken_for_the_baseline_of_runs_with_other_options(add_run, runs):
    add_run("mha", settings={"attention": {"qk_norm": False}})
    plain = add_run("mha")
    dma = add_run("dma")
    ((_, difference),) = [pair for pair in compare(runs()).pairs if pair[0].attention == "dma"]
    assert isinstance(difference, PairedDifference)
    assert difference.difference == pytest.approx(mean_difference(dma, plain), rel=1e-12)


def test_runs_from_before_an_option_have_its_default(add_run, runs):
    earlier = add_run("mha"), add_run("dma")
    for run in earlier:
        config = run / "config.yaml"
        config.write_text("".join(line for line in config.open() if "recency" not in line))
        vouch(run)
    sloped = [add_run(name, settings={"attention": {"recency": "slope"}}) for name in ("mha", "dma")]
    found = {run.path: run for run in runs()}
    assert [found[path].backend for path in (*earlier, *sloped)] == [
        "mha",
        "dma",
        "mha recency=slope",
        "dma recency=slope",
    ]
    for ours, baseline in ((earlier[1], earlier[0]), (sloped[1], sloped[0])):
        assert baseline_of(found[ours], list(found.values())).path == baseline
    assert "attention.recency" in baseline_of(found[sloped[1]], [found[earlier[0]], found[sloped[1]]])


def test_variants_are_held_against_plain_mha_and_against_mha_with_their_options(add_run, runs):
    slope = {"attention": {"recency": "slope"}}
    paths = {
        (name, sloped, seed): add_run(name, seed=seed, settings=slope if sloped else {})
        for name in ("mha", "dma")
        for sloped in (False, True)
        for seed in (0, 1)
    }
    # A run that differs in more, and seems to be nearer: with the slope, at another rate.
    add_run("mha", settings=slope | {"optimizer": {"learning_rate": 0.02}})
    found = compare(runs())
    right = {
        ("mha recency=slope", "mha"): (("mha", True), ("mha", False)),
        ("dma", "mha"): (("dma", False), ("mha", False)),
        ("dma recency=slope", "mha"): (("dma", True), ("mha", False)),
        ("dma recency=slope", "mha recency=slope"): (("dma", True), ("mha", True)),
    }
    assert {(cell.run.backend, cell.beside) for cell in found.cells} == right.keys()
    for cell in found.cells:
        ours, theirs = right[cell.run.backend, cell.beside]
        by_seed = [mean_difference(paths[*ours, seed], paths[*theirs, seed]) for seed in (0, 1)]
        assert cell.difference.difference == pytest.approx(np.mean(by_seed), rel=1e-9)
        assert cell.difference.seeds == 2
    assert [cell.beside for cell in found.first_cells("dma recency=slope")] == ["mha"]
    primary = {run.path: difference for run, difference in found.pairs}
    sloped = primary[paths["dma", True, 0]]
    expected = mean_difference(paths["dma", True, 0], paths["mha", False, 0])
    assert sloped.difference == pytest.approx(expected, rel=1e-9)
    table = over_trainings(found.cells)
    assert {(row[0], row[1]) for row in table.rows} == right.keys()
    assert table.columns[1] == "beside"


def test_an_option_that_no_mha_has_is_in_the_name_of_what_is_compared(add_run, runs):
    add_run("mha")
    add_run("dma", settings={"attention": {"qk_norm": False}})
    (cell,) = compare(runs()).cells
    assert (cell.run.backend, cell.beside) == ("dma qk_norm=False", "mha")


def test_a_variant_alone_of_its_backend_is_named_beside_mha_with_and_without_it(add_run, runs):
    for recency in (None, "slope"):
        add_run("mha", settings={"attention": {"recency": recency}})
    add_run("dma", settings={"attention": {"recency": "slope"}})
    cells = compare(runs()).cells
    assert [(cell.run.backend, cell.beside) for cell in cells] == [
        ("mha recency=slope", "mha"),
        ("dma recency=slope", "mha"),
        ("dma recency=slope", "mha recency=slope"),
    ]


def test_a_backend_without_an_option_is_not_held_against_mha_with_it(add_run, runs):
    """Be it of the same commit, which plain MHA is not."""
    plain = add_run("mha", git_commit="a" * 40)
    sloped = add_run("mha", git_commit="b" * 40, settings={"attention": {"recency": "slope"}})
    moba = add_run("moba", git_commit="b" * 40)
    found = {run.path: run for run in runs()}
    assert baseline_of(found[moba], list(found.values())).path == plain
    assert [cell.beside for cell in compare(runs()).cells if cell.run.path == moba] == ["mha"]
    assert "attention.recency" in baseline_of(found[moba], [found[sloped], found[moba]])


def test_models_of_other_sizes_are_no_seeds_of_one(add_run, runs):
    """What matching makes of a backend's width is the code's, and a later version may make another of it."""
    for seed, params in ((0, 150_100), (1, 150_100), (2, 149_900)):
        add_run("mha", seed=seed)
        add_run("dma", seed=seed, params_non_embedding=params)
    add_run("mha", "1m")
    add_run("dma", "1m")
    assert [(cell.run.rung, cell.run.backend, cell.difference.seeds) for cell in compare(runs()).cells] == [
        ("nano", "dma params_non_embedding=150100", 2),
        ("nano", "dma params_non_embedding=149900", 1),
        ("1m", "dma", 1),
    ]
