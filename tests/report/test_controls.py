"""A control stands under its own name, is never taken for the backend it is made of, and measures what DMA adds."""

import numpy as np
import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.control_table import control_table
from dma_lab.report.controls import content_sentences
from dma_lab.report.pairs import baseline_of
from dma_lab.report.sparsity import keys_said, mean_keys_per_query
from tests.report.conftest import vouch


@pytest.fixture
def members(tmp_path):
    def read():
        (found,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
        return found

    return read


def mean(path):
    scores = np.load(path / "validation.npz")
    return scores["document_nats"].sum() / scores["document_tokens"].sum()


def test_controls_go_by_their_names_and_mha_with_a_gate_is_no_baseline(add_run, members):
    gated, mha, dma = (add_run(name) for name in ("gated_mha", "mha", "dma"))
    runs = {run.path: run for run in members()}
    assert [runs[path].backend for path in (gated, mha, dma)] == ["gated_mha", "mha", "dma"]
    for path in (gated, dma):
        assert baseline_of(runs[path], list(runs.values())).path == mha
    assert baseline_of(runs[dma], [runs[gated], runs[dma]]) == "no finished mha run stands beside it"


def test_two_settings_of_a_control_are_told_apart(add_run, members):
    paths = [add_run("dma_random", settings={"attention": {"window": window}}) for window in (8, 16)]
    runs = {run.path: run for run in members()}
    assert [runs[path].backend for path in paths] == ["dma_random window=8", "dma_random window=16"]


def test_what_chance_has_of_dmas_difference_is_said_with_its_interval(add_run, members):
    paths = {(name, seed): add_run(name, seed=seed) for name in ("mha", "dma", "dma_random") for seed in (0, 1, 2)}
    add_run("dma", tokens=500_000)  # a smaller budget of the rung
    for name in ("mha", "dma"):
        add_run(name, seed=3)  # of which there is no control
    runs = members()
    (said,) = content_sentences(runs)
    ours, theirs, content = (
        np.mean([mean(paths[a, seed]) - mean(paths[b, seed]) for seed in (0, 1, 2)])
        for a, b in (("dma", "mha"), ("dma_random", "mha"), ("dma", "dma_random"))
    )
    assert f"of its {ours:+.4f} to MHA, {theirs:+.4f} ({theirs / ours:.0%}) is there with scores by chance" in said
    assert f"choosing by content adds {content:+.4f} [" in said
    low, high = (float(part.strip("[], ")) for part in said.split(f"{content:+.4f} ")[1].split("]")[0].split(", "))
    assert low < content < high < 0
    assert "nano, 1,000,000 tokens" in said
    assert "3 seeds" in said


def test_each_dma_is_held_against_the_control_of_its_own_window(add_run, members):
    add_run("mha")
    for window in (8, 16):
        for name in ("dma", "dma_random"):
            add_run(name, tokens=1_000_000, settings={"attention": {"window": window}})
    paths = sorted(run.path for run in members())
    # The two controls are to differ, or nothing would show which was taken.
    scores = dict(np.load(paths[-1] / "validation.npz"))
    np.savez(paths[-1] / "validation.npz", **scores | {"document_nats": 1.1 * scores["document_nats"]})
    vouch(paths[-1])
    runs = members()
    losses = {run.backend: mean(run.path) for run in runs}
    said = content_sentences(runs)
    assert len(said) == 2
    for window, text in zip((8, 16), said, strict=True):
        assert f"for dma window={window}, " in text
        assert f"{losses[f'dma_random window={window}'] - losses['mha']:+.4f} is there with scores by chance" in text


def test_every_control_stands_beside_its_backend_at_every_rung_that_has_both(add_run, members):
    def add(name, rung, tokens=1_000_000, **more):
        return [add_run(name, rung, tokens, seed=seed, **more) for seed in (0, 1)]

    paths = {
        name: add(name, "nano", context=256) for name in ("mha", "gated_mha", "swa", "hybrid", "dma", "dma_frozen")
    }
    more = {name: add(name, "1m", context=256) for name in ("mha", "swa", "hybrid", "dma_random")}
    add("swa", "1m", 2_000_000, context=256)  # of which there is no control
    table = control_table(members())
    rows = {row[:2] + row[3:4]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows.keys() == {
        *(
            ("mha", "gated_mha", "nano"),
            ("swa", "hybrid", "nano"),
            ("swa", "hybrid", "1m"),
            ("dma", "dma_frozen", "nano"),
        ),
    }
    for rung, own in (("nano", paths), ("1m", more)):
        row = rows["swa", "hybrid", rung]
        for column, (one, other) in (
            ("loss − MHA", ("swa", "mha")),
            ("control − MHA", ("hybrid", "mha")),
            ("loss − control [95 %]", ("swa", "hybrid")),
        ):
            by_seed = [mean(a) - mean(b) for a, b in zip(own[one], own[other], strict=True)]
            assert float(row[column].split()[0]) == pytest.approx(np.mean(by_seed), abs=6e-5), column
        assert "[" in row["loss − control [95 %]"]
        assert row["tokens"] == "1,000,000"
        assert row["seeds"] == "2"
    # A window of 128 in a context of 256: 128 - 127 · 128 / 2 / 256; of three layers the last is full: 128.5.
    assert rows["swa", "hybrid", "nano"]["keys per query"] == f"{96.25:.1f} / {(2 * 96.25 + 128.5) / 3:.1f}"
    assert rows["mha", "gated_mha", "nano"]["keys per query"] == "128.5 / 128.5"
    assert rows["mha", "gated_mha", "nano"]["loss − MHA"] == "-"


def test_whether_sparse_backends_read_as_many_keys_is_said(add_run, members):
    for name, options in (("mha", {}), ("dma", {"window": 64}), ("swa", {"window": 64})):
        add_run(name, context=256, settings={"attention": options})
    assert keys_said(members()).startswith(
        "Those that drop keys read as many per query, in the mean over a full context"
    )
    assert keys_said(members()).endswith("at nano dma 56.1, swa 56.1.")
    add_run("nsa", context=256, settings={"attention": {"window": 64}})
    said = keys_said(members())
    assert said.startswith(
        "Those that drop keys do not read as many per query, so that a difference between them is of"
    )
    nsa = [run for run in members() if run.attention == "nsa"]
    assert f"nsa {mean_keys_per_query(nsa[0]):.1f}" in said
    assert mean_keys_per_query(nsa[0]) > 2 * 56.1


def test_nothing_is_said_without_all_three(add_run, members):
    for name in ("mha", "dma"):
        add_run(name)
    runs = members()
    assert content_sentences(runs) == []
    add_run("dma_random")
    runs = members()
    (said,) = content_sentences(runs)
    assert "without an interval: no rung has two seeds" in said


def test_of_several_rates_the_recipes_stands_for_a_rung_and_is_named(add_run, members):
    paths = {
        (name, rate): add_run(name, seed=0, settings={"optimizer": {"learning_rate": rate}}, recipe_learning_rate=0.01)
        for name in ("mha", "dma", "dma_random")
        for rate in (0.002, 0.01, 0.03)
    }
    runs = members()
    ((*_, place, _, _, _, _, difference, _),) = control_table(runs).rows
    wanted = mean(paths["dma", 0.01]) - mean(paths["dma_random", 0.01])
    assert (place, difference) == ("nano, learning_rate=0.01", f"{wanted:+.4f}")
    (said,) = content_sentences(runs)
    assert "nano, 1,000,000 tokens, learning_rate=0.01: " in said
