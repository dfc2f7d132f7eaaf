"""Two runs are compared when they are equal in everything but the attention, by value, whatever they are called."""

import csv

import numpy as np
import pytest
from rich.console import Console

from dma_lab.evaluation.pairing import PairedDifference
from dma_lab.report.cohorts import cohorts
from dma_lab.report.comparison import compare, comparison_table
from dma_lab.report.context_figures import at_one_point
from dma_lab.report.growth import curves_of
from dma_lab.report.laws import best_runs
from dma_lab.report.missing import missing_points
from dma_lab.report.pairs import baseline_of
from dma_lab.report.tables import comparison, over_trainings, write_points
from tests.report.conftest import mean_difference, vouch


def test_models_that_share_a_rungs_name_are_told_apart_and_paired_by_what_they_are(add_run, runs, tmp_path):
    layers = {1: 7_008, 3: 20_976}
    paths = {
        (attention, n): add_run(
            attention, "14k", 33_280, params_non_embedding=params, settings={"model": {"n_layers": n}}
        )
        for attention in ("mha", "dma")
        for n, params in layers.items()
    }
    pairs = compare(runs()).pairs
    found = {run.rung: difference for run, difference in pairs if run.attention == "dma"}
    assert found.keys() == {"14k n_layers=1", "14k n_layers=3"}
    for n in layers:
        right = mean_difference(paths["dma", n], paths["mha", n])
        assert found[f"14k n_layers={n}"].difference == pytest.approx(right, rel=1e-12)
    assert not compare(runs()).has_spread, "sizes are no seeds"
    # And everywhere it is shown.
    console = Console(width=240)
    with console.capture() as captured:
        console.print(comparison_table(runs()))
    sweep = captured.get()
    write_points(tmp_path / "points.csv", pairs)
    rungs = {row["rung"] for row in csv.DictReader((tmp_path / "points.csv").open())}
    assert rungs == found.keys() == {row[1] for row in comparison(pairs).rows}
    for n in layers:
        assert sweep.count(f"14k n_layers={n} ") == 2
        assert f"{found[f'14k n_layers={n}'].difference:+.4f} [" in sweep
    assert [run.place.partition(",")[0] for run in at_one_point(runs())] == ["14k n_layers=3"] * 2
    assert curves_of(runs()) == [], "two sizes are not two budgets of one"


def test_a_wider_and_deeper_model_is_not_held_against_the_plain_rung(add_run, runs):
    add_run("mha", "14k", params_non_embedding=13_992)
    add_run("dma", "14k", params_non_embedding=67_671, settings={"model": {"n_layers": 3, "d_ff": 288}})
    (_, _), (dma, difference) = compare(runs()).pairs
    assert dma.rung == "14k n_layers=3 d_ff=288"
    assert difference.endswith("in all but the attention: the nearest differs in model.d_ff, model.n_layers")
    (members,) = cohorts(runs()).values()
    assert missing_points("these", members).items == [
        "dma at rung 14k, 1,000,000 tokens, seed 0: not run",
        "mha at rung 14k n_layers=3 d_ff=288, 1,000,000 tokens, seed 0: not run",
    ]


def test_missing_seeds_of_a_point_are_one_line(add_run, runs):
    for seed in (2, 0, 1):
        add_run("mha", seed=seed)
    add_run("dma", seed=1)
    add_run("dma", seed=0, status="failed", reason="no memory")
    (members,) = cohorts(runs()).values()
    assert missing_points("these", members).items == [
        "dma at rung nano, 1,000,000 tokens, seed 0: failed: no memory",
        "dma at rung nano, 1,000,000 tokens, seed 2: not run",
    ]
    add_run("swa", seed=1)
    add_run("mha", seed=0, tokens=500_000)
    add_run("mha", seed=2, tokens=500_000)
    (members,) = cohorts(runs()).values()
    found = missing_points("these", members)
    assert "swa at rung nano, 500,000 and 1,000,000 tokens, seeds 0, 2: not run" in found.items
    assert found.text == "8 points are missing where another backend has a run (dma 4, swa 4), in these."
    assert missing_points("these", [run for run in members if run.attention == "mha"]) is None


@pytest.mark.parametrize(
    ("differing", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"tokens": 2_000_000}, "tokens"),
        ({"model": "1m"}, "model.n_layers"),
        ({"context": 128}, "trainer.context"),
        ({"study": "another"}, "study"),
        ({"match": "none"}, "match"),
        ({"data_fingerprint": "b" * 32}, "data_fingerprint"),
        ({"hardware": "1 x CPU (x86_64, 2 threads)"}, "hardware"),
        ({"cpu_capability": "AVX512"}, "cpu_capability"),
        ({"precision": "bf16"}, "precision"),
        ({"compiled": True}, "compiled"),
        ({"torch": "2.14.0"}, "torch"),
        ({"settings": {"optimizer": {"learning_rate": 0.02}}}, "optimizer.learning_rate"),
        ({"settings": {"optimizer": {"betas": [0.9, 0.99]}}}, "optimizer.betas"),
        ({"settings": {"schedule": {"decay_fraction": 0.5}}}, "schedule.decay_fraction"),
        ({"settings": {"schedule": {"warmup_steps": 9}}}, "schedule.warmup"),
        ({"settings": {"trainer": {"tokens_per_step": 1280}}}, "trainer.tokens_per_step"),
        ({"settings": {"data": {"mask_documents": False}}}, "data.mask_documents"),
        ({"settings": {"trainer": {"strategy": "fsdp", "devices": 2}}}, "trainer.devices"),
        ({"settings": {"trainer": {"a_setting_of_tomorrow": 1}}}, "trainer.a_setting_of_tomorrow"),
    ],
    ids=str,
)
def test_what_differs_in_more_than_the_attention_is_not_paired_and_the_difference_is_named(
    add_run, runs, differing, named
):
    add_run("mha")
    add_run("dma", **differing)
    (difference,) = [difference for run, difference in compare(runs()).pairs if run.attention == "dma"]
    assert isinstance(difference, str)
    assert named in difference.partition("the nearest differs in ")[2].split(", ")
    assert len(at_one_point(runs())) == 1


@pytest.mark.parametrize(
    "differing",
    [
        {"git_commit": "d" * 40},  # which the report says
        {"kernels": "dma_lab::interval_attention (Triton)"},
        {"steps_shared": 40},
        {"settings": {"output_dir": "elsewhere", "logger": {"name": "wandb"}, "tokens": 1_000_000}},
        {"settings": {"trainer": {"log_every": 1, "loader_workers": 2, "device": "cpu", "num_nodes": 1}}},
        {"settings": {"trainer": {"strategy": "fsdp"}}},  # of one device
        {"settings": {"data": {"path": "elsewhere", "cache_dir": "elsewhere"}}},
        {"settings": {"schedule": {"warmup_steps": 5}}},  # the default's 5 % of 100 steps
        {"settings": {"model": {"name": "my_nano"}}},
        {"settings": {"attention": {"window": 16}}},
    ],
    ids=str,
)
def test_what_cannot_change_the_result_does_not_keep_runs_apart(add_run, runs, differing):
    mha = add_run("mha")
    dma = add_run("dma", **differing)
    (difference,) = [difference for run, difference in compare(runs()).pairs if run.attention == "dma"]
    assert isinstance(difference, PairedDifference)
    assert difference.difference == pytest.approx(mean_difference(dma, mha), rel=1e-12)


def test_a_run_of_several_machines_is_paired_with_none(add_run, runs):
    for attention in ("mha", "dma"):
        add_run(attention, earlier_machines=["1 x CPU, AVX512, fp32, PyTorch 2.13.0"])
    assert compare(runs()).pairs[1][1] == "several machines took its steps"


def test_of_several_equal_mha_runs_that_of_the_same_commit_is_the_baseline(add_run, runs):
    add_run("mha", git_commit="a" * 40)
    right = add_run("mha", git_commit="b" * 40)
    add_run("dma", git_commit="b" * 40)
    found = runs()
    baseline = baseline_of(found[-1], found)
    assert not isinstance(baseline, str)
    assert baseline.path == right


def test_learning_rates_are_no_seeds(add_run, runs):
    paths = {}
    for rate, seeds in ((0.01, (0, 1)), (0.02, (0,))):
        for seed in seeds:
            for attention in ("mha", "dma"):
                settings = {"optimizer": {"learning_rate": rate}}
                paths[attention, rate, seed] = path = add_run(attention, seed=seed, settings=settings)
                if rate == 0.02:  # a difference of its own, which a mean over all three would show
                    scores = dict(np.load(path / "validation.npz"))
                    scores["document_nats"] *= 0.9 if attention == "dma" else 1.0
                    np.savez(path / "validation.npz", **scores)
                    vouch(path)
    pairs = compare(runs()).pairs
    assert len([pair for pair in pairs if isinstance(pair[1], PairedDifference)]) == 3
    cells = compare(runs()).cells
    table = over_trainings(cells)
    values = [mean_difference(paths["dma", 0.01, seed], paths["mha", 0.01, seed]) for seed in (0, 1)]
    mean, spread = np.mean(values), np.std(values, ddof=1)
    shown = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    one, other = shown
    assert [(row["setting"], row["seeds"]) for row in shown] == [
        ("learning_rate=0.01", "2"),
        ("learning_rate=0.02", "1"),
    ]
    assert one["mean loss − MHA [95 %]"].startswith(f"{mean:+.4f} [")
    assert (one["std. over seeds"], other["std. over seeds"]) == (f"{spread:.4f}", f"~{spread:.4f}")
    assert len(best_runs(runs())) == 4, "of seed 0 one rate for either backend"


def test_one_seed_twice_is_one_seed(add_run, runs):
    for _ in range(2):
        add_run("mha")
        add_run("dma")
    assert not compare(runs()).has_spread


def test_batches_that_differ_within_a_rung_make_variants_with_laws_of_their_own(add_run, runs):
    for batch in (640, 1280):
        add_run("mha", settings={"trainer": {"tokens_per_step": batch}})
    assert [run.backend for run in runs()] == ["mha tokens_per_step=640", "mha tokens_per_step=1280"]
    assert len(best_runs(runs())) == 2


def test_a_curve_over_budgets_is_of_one_way_to_train(add_run, runs):
    add_run("mha", tokens=1_000_000)
    add_run("mha", tokens=2_000_000, cpu_capability="AVX512")
    assert curves_of(runs()) == []
    add_run("mha", tokens=2_000_000)
    (curve,) = curves_of(runs())
    assert list(curve.tokens) == [1_000_000, 2_000_000]


def test_documents_too_few_for_an_interval_give_none_and_nothing_is_starred(add_run, runs):
    for attention in ("mha", "dma"):
        path = add_run(attention)
        scores = dict(np.load(path / "validation.npz"))
        # One document holds 99 % of the tokens, and its loss differs by 0.1.
        scores["document_tokens"] = np.array([99 * 39, *[1] * 39])
        scores["document_nats"] = scores["document_tokens"] * (3.0 if attention == "mha" else 2.9)
        np.savez(path / "validation.npz", **scores)
        vouch(path)
    pairs = compare(runs()).pairs
    table = comparison(pairs)
    row = dict(zip(table.columns, table.rows[1], strict=True))
    weights = scores["document_tokens"].astype(float)
    assert row["loss − MHA [document interval]"] == "-0.1000"
    assert row["documents"] == f"40 ({weights.sum() ** 2 / (weights**2).sum():.1f})" == "40 (1.0)"
    assert "another seed would have given is not in it" in table.caption
    assert "star" not in table.caption
