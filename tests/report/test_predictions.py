"""What the page predicts, against the law that made the runs; and what it refuses to predict."""

import re
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.document import Notice, Table
from dma_lab.report.evidence import evidence
from dma_lab.report.growth import parabolas_of
from dma_lab.report.predictions import predictions
from dma_lab.report.scaling_figures import envelope
from dma_lab.report.statistics import compute_statistics
from dma_lab.report.verdict import verdicts

SIZES = (20_000, 60_000, 180_000, 540_000)
BUDGETS = (1e11, 4e11, 1.6e12)
SCALE = {"mha": 60.0, "dma": 54.0}


def loss(attention, params, tokens):
    return 1.0 + 20 * params**-0.3 + SCALE[attention] * tokens**-0.3


@pytest.fixture(scope="module")
def runs(write, tmp_path_factory):
    root = tmp_path_factory.mktemp("predictions")
    noise = np.random.default_rng(0)
    for attention in SCALE:
        for params in SIZES:
            for flops in BUDGETS:
                tokens = round(flops / 6 / params)
                for seed in (0, 1):
                    value = float(loss(attention, params, tokens) * (1 + 0.0005 * noise.normal()))
                    shape = {"params_non_embedding": params, "val_loss": value}
                    write(root, attention, f"{params}", tokens, seed=seed, **shape)
    (members,) = cohorts(read_runs(root)[0]).values()
    return members


@pytest.fixture(scope="module")
def found(runs):
    return compute_statistics(runs, lambda step: None)


@pytest.fixture(scope="module")
def blocks(found):
    return predictions(found)


def table(blocks, beginning) -> Table:
    (found,) = [block for block in blocks if isinstance(block, Table) and block.caption.startswith(beginning)]
    return found


def best_loss(attention: str, dense_flops: float) -> float:
    """By brute force over sizes."""
    sizes = np.geomspace(1e3, 1e9, 20_001)
    return loss(attention, sizes, dense_flops / 6 / sizes).min()


def dma_needs(budget: float) -> float:
    """Times MHA's compute, by brute force; of DMA's, 0.9 is executed (write_run)."""
    ratios = np.geomspace(0.3, 1.2, 501)
    return 0.9 * ratios[np.argmax([best_loss("dma", ratio * budget) <= best_loss("mha", budget) for ratio in ratios])]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", cell)]


def test_approaches_agree_with_the_exponents_that_made_the_runs(blocks):
    rows = {row[:2]: row[2:] for row in table(blocks, "How the best size").rows}
    assert {(name, approach[0]) for name, approach in rows} >= {(name, kind) for name in SCALE for kind in "23"}
    assert ("mha", "3, law, N all") in rows
    for (_, approach), cells in rows.items():
        if approach == "3, law, N all":  # whose embeddings follow no such law
            continue
        for cell in cells:  # alpha = beta: a = b = 1/2
            value, *interval = numbers(cell.removesuffix(" -"))
            assert value == pytest.approx(0.5, abs=0.05 if approach[0] == "3" else 0.12), approach
            assert len(interval) == (2 if approach[0] == "3" else 0)
            if interval:
                assert interval[0] <= value <= interval[1]


def test_the_compute_to_match_is_that_of_the_laws_that_made_the_runs(blocks):
    ((backend, trainings, shared, *cells),) = table(blocks, "How much executed compute").rows
    assert (backend, trainings) == ("dma", "8 / 8")
    low, high = numbers(shared)
    assert low <= 1.0 <= high
    for ahead, cell in zip(((BUDGETS[0] / BUDGETS[-1]) ** 0.5, 1, 10, 100), cells, strict=True):
        value, low, high = numbers(cell)
        assert value == pytest.approx(dma_needs(ahead * max(BUDGETS)), rel=0.03), ahead
        assert low <= value <= high


def test_the_first_figure_has_every_run_and_the_curves_of_the_laws_that_made_them(found, runs):
    figure = evidence(found)
    drawn = {(series.group, series.kind): series for series in figure.series}
    assert list(dict.fromkeys(series.group for series in figure.series)) == ["mha", "dma"]
    for attention, executed in (("mha", 1.0), ("dma", 0.9)):
        own = [run for run in runs if run.backend == attention]
        points, line, shade = (drawn[attention, kind] for kind in ("points", "line", "band"))
        assert sorted(zip(points.x, points.y, strict=True)) == sorted(
            (run.summary.flops_executed, run.summary.val_loss) for run in own
        )
        assert (line.x[0], line.x[-1]) == pytest.approx((min(points.x), max(points.x)))
        for flops, value, low, high in zip(line.x, line.y, shade.y, shade.high, strict=True):
            assert value == pytest.approx(best_loss(attention, flops / executed), abs=0.01)
            assert low <= value <= high
    assert figure.below is not None
    assert figure.below.ratio
    shade, line = figure.below.series
    assert (shade.kind, line.kind, line.group) == ("band", "line", "dma")
    assert (line.x[0], line.x[-1]) == pytest.approx((min(drawn["mha", "points"].x), max(drawn["mha", "points"].x)))
    for flops, value in zip(line.x, line.y, strict=True):
        assert value == pytest.approx(dma_needs(flops), rel=0.05)
    now = found.to_match["dma"].multipliers[0]
    assert (line.y[-1], shade.y[-1], shade.high[-1]) == (now.multiplier, *now.interval), "the verdict's own numbers"
    low, high = figure.below.y_range
    assert low < min(*line.y, shade.y[-1])
    assert max(1.0, *line.y, shade.high[-1]) < high
    assert 3 <= len(figure.below.ticks) <= 7
    assert all(low <= tick <= high for tick in figure.below.ticks)


def test_without_laws_the_first_figure_has_the_differences_in_loss(runs):
    few = [run for run in runs if run.params < 100_000 and run.summary.tokens < 1e6]
    found = compute_statistics(few, lambda step: None)
    figure = evidence(found)
    assert {series.kind for series in figure.series} == {"points"}
    assert figure.below is not None
    assert not figure.below.ratio
    bars, points = figure.below.series
    cells = found.comparison.cells
    assert (bars.kind, points.kind, len(cells)) == ("intervals", "points", 2)
    assert list(points.y) == [cell.difference.difference for cell in cells]
    assert list(zip(bars.y, bars.high, strict=True)) == [cell.difference.interval for cell in cells]
    assert "no two laws can be held against each other" in figure.caption


def test_a_variant_is_held_against_the_variant_of_mha_with_its_options(runs):
    """Of the same losses: so it needs as much of that variant's compute as plain DMA of plain MHA's."""
    sloped = []
    for run in runs:
        config = OmegaConf.merge(run.config, {"attention": {"recency": "slope"}})
        named = {"backend": f"{run.backend} recency=slope", "options": frozenset({"recency"})}
        sloped.append(replace(run, config=config, path=run.path / "sloped", **named))
    both = compute_statistics([*runs, *sloped], lambda step: None)
    assert both.beside_variants.keys() == {("dma recency=slope", "mha recency=slope")}
    ours = both.beside_variants["dma recency=slope", "mha recency=slope"]
    for theirs in (both.to_match["dma"].multipliers, both.to_match["dma recency=slope"].multipliers):
        # Each law is told what the others' seeds say of noise, summed in another order.
        assert [own.multiplier for own in ours.multipliers] == pytest.approx(
            [own.multiplier for own in theirs], rel=0.02
        )
    (rows,) = [block.rows for block in predictions(both) if getattr(block, "title", "") == "Compute to match MHA"]
    besides = [("dma", "mha"), *(("dma recency=slope", beside) for beside in ("mha", "mha recency=slope"))]
    assert [row[:2] for row in rows] == [*besides, ("mha recency=slope", "mha")]
    (said,) = [own for own in verdicts(both) if own.backend == "dma recency=slope"]
    now = ours.multipliers[0].text
    assert said.further.endswith(f" Of the compute of mha recency=slope it needs {now} for the same loss.")


def test_the_best_size_and_tokens_of_a_budget_are_those_of_the_law_that_made_the_runs(blocks):
    sizes = np.geomspace(1e3, 1e9, 20_001)
    rows = table(blocks, "Compute-optimal size").rows
    assert [row[0] for row in rows] == ["mha"] * 3 + ["dma"] * 3
    for attention, flops, *cells in rows:
        # Of DMA, 0.9 of the compute is executed (write_run): 5.4 FLOP per parameter and token.
        a_token = 6 * sizes * (0.9 if attention == "dma" else 1.0)
        losses = loss(attention, sizes, float(flops) / a_token)
        expected = sizes[losses.argmin()], float(flops) / a_token[losses.argmin()], losses.min()
        params, tokens = (float(cell.split(" ")[0]) for cell in cells[:2])
        assert params * tokens * a_token[0] / sizes[0] == pytest.approx(float(flops), rel=0.02), "the budget is spent"
        for cell, right, within in zip(cells, expected, (0.25, 0.25, 0.01), strict=True):
            value, low, high = map(float, re.findall(r"[\d.]+(?:e[+-]\d+)?", cell))
            assert value == pytest.approx(right, rel=within)
            assert low <= value <= high


def test_a_best_size_that_was_not_trained_is_said(found):
    begins = "Even at the largest budget run"
    best = found.optima["mha"][0]
    assert not any(isinstance(block, Notice) and block.text.startswith(begins) for block in predictions(found))
    beyond = {
        "mha": [replace(best, params=540_000 * 1.05), best],
        "dma": [replace(best, params=2e6, tokens=2e4)],
    }
    (notice,) = (
        block
        for block in predictions(replace(found, optima=beyond))
        if isinstance(block, Notice) and block.text.startswith(begins)
    )
    run = "dma: 2.00e+06 parameters, where 2.00e+04 to 5.40e+05 were run; 2.00e+04 tokens, where 3.09e+04 to 1.33e+07"
    assert list(notice.items) == [f"{run} were run"]


def test_the_envelope_drawn_is_the_lowest_curve_and_hands_over_from_small_to_large(write, tmp_path):
    for attention in SCALE:
        for params in SIZES:
            for tokens in np.geomspace(3e5, 1e8, 9):
                value = loss(attention, params, tokens)
                write(tmp_path, attention, f"{params}", int(tokens), params_non_embedding=params, val_loss=value)
    (runs,) = cohorts(read_runs(tmp_path)[0]).values()
    figure = envelope(runs)
    assert figure is not None
    for attention in SCALE:
        own = [series for series in figure.series if series.group == attention]
        curves = [series for series in own if series.faint]
        (lowest,) = [series for series in own if series.kind == "line" and not series.faint]
        (handovers,) = [series for series in own if series.kind == "points"]
        assert len(curves) == len(SIZES)
        for flops, value in zip(lowest.x[::100], lowest.y[::100], strict=True):
            reaching = [c for c in curves if c.x[0] <= flops * 1.001 and flops <= c.x[-1] * 1.001]
            at = [np.interp(np.log(flops), np.log(curve.x), curve.y) for curve in reaching]
            assert value == pytest.approx(min(at), rel=1e-4)
        passed = [float(text.split("passes ")[1].split(" ")[0].replace(",", "")) for text in handovers.hover]
        assert len(passed) >= 2
        assert passed == sorted(passed)


def test_the_largest_size_is_predicted_by_the_smaller_ones(blocks, runs):
    rows = {row[0]: row for row in table(blocks, "Held-out check").rows}
    assert rows.keys() == SCALE.keys()
    for _, size, count, error, _, interval in rows.values():
        assert (size, count) == ("540,000", "6")
        assert float(error) < 0.05
        mean, low, high = numbers(interval.replace("+", ""))
        assert low <= mean <= high


def test_the_drawn_parabolas_have_their_minima_where_the_law_has_them(runs):
    found, refused = parabolas_of([run for run in runs if run.backend == "mha"])
    assert [round(parabola.flops, -9) for parabola in found] == pytest.approx(BUDGETS, rel=0.01)
    assert refused == []
    for parabola in found:
        # alpha A / N^alpha = beta B / D^beta with alpha = beta: (N / D)^0.3 = 20 / 60.
        expected = np.sqrt((20 / 60) ** (1 / 0.3) * parabola.flops / 6)
        assert parabola.params == pytest.approx(expected, rel=0.25)


def test_one_backend_alone_few_runs_and_a_minimum_outside_are_refused_in_words(runs):
    alone = [run for run in runs if run.backend == "dma"]
    said = [block for block in predictions(compute_statistics(alone, lambda step: None)) if isinstance(block, Notice)]
    assert any("need runs of mha and of another backend" in notice.text for notice in said)
    few = [run for run in runs if run.params < 100_000 and run.summary.tokens < 1e6]
    blocks = predictions(compute_statistics(few, lambda step: None))
    said = [block for block in blocks if isinstance(block, Notice)]
    assert not [block for block in blocks if isinstance(block, Table)]
    (refusal,) = [line for block in said for line in block.items if line.startswith("dma: ")]
    assert "cannot fix the law's 5 parameters" in refusal
    small = [run for run in runs if run.params > 50_000]
    lines = parabolas_of([run for run in small if run.backend == "mha" and run.summary.flops < 2e11])[1]
    assert lines
    assert all("lies outside the sizes run" in line for line in lines)
