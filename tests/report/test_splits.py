"""What the mean hides: differences by kind of target are those of the targets themselves."""

from dataclasses import replace

import numpy as np
import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.comparison import compare
from dma_lab.report.document import Figure, Table
from dma_lab.report.splits import hidden_by_the_mean
from dma_lab.scaling.replicates import Cell, mean_differences
from tests.report.conftest import CONTEXT, vouch

BANDS = CONTEXT.bit_length()


def split(path, seed, gap, gap_of_repeats):
    """Give a run split sums: ``gap`` more nats per token than MHA in every band, times its number."""
    scores = dict(np.load(path / "validation.npz"))
    shape = len(scores["document_tokens"]), BANDS, 2
    tokens = np.random.default_rng(9).integers(0, 9, shape)
    tokens[:, -2:, 1] = 0  # a kind of target that there is none of
    tokens[3:6] = 0  # and a document that is not scored
    tokens[4, 0, 0], tokens[5, 1, 0] = 33, 64  # and some at the very edges of a length
    own = np.random.default_rng([seed, int(1000 * gap) + 2]).normal(0, 0.005, shape)
    loss = 3 + own + np.stack([gap * np.arange(BANDS), np.full(BANDS, gap_of_repeats)], axis=-1)
    scores |= {"split_tokens": tokens, "split_nats": tokens * loss, "document_tokens": tokens.sum((1, 2))}
    # Of targets that repeat a bigram two in three are of rarity 0, the others of 3; there the gap is twice as wide.
    repeats = tokens[..., 1].sum(1)
    rare = 2 * repeats // 3
    by_rarity = np.stack([rare, *np.zeros((2, len(rare)), int), repeats - rare, np.zeros(len(rare), int)], axis=1)
    scores |= {"repeat_tokens": by_rarity, "repeat_nats": by_rarity * (3 + gap_of_repeats * np.array([1, 0, 0, 2, 0]))}
    np.savez(path / "validation.npz", **scores | {"document_nats": scores["split_nats"].sum((1, 2))})
    vouch(path)
    return scores["split_nats"], tokens


@pytest.fixture
def study(add_run, tmp_path):
    """MHA and two backends with three seeds each, and a single pair at a smaller budget."""
    sums = {}
    for name, gap, gap_of_repeats in (("mha", 0, 0), ("swa", 0.01, 0.1), ("dma", -0.002, 0.05)):
        for seed in (0, 1, 2):
            sums[name, seed] = split(add_run(name, seed=seed), seed, gap, gap_of_repeats)
        if name != "dma":
            split(add_run(name, tokens=500_000), 5, 0.0, 0.0)
    ((members,),) = [list(cohorts(read_runs(tmp_path / "runs")[0]).values())]
    return members, sums


def differences(sums, name, tokens_of):
    """Over trainings, of the targets in ``tokens_of(array)`` (documents,)."""
    tokens = tokens_of(sums["mha", 0][1]).astype(float)
    nats = [tokens_of(sums[name, seed][0]) - tokens_of(sums["mha", seed][0]) for seed in (0, 1, 2)]
    ((found,),) = mean_differences([[Cell(np.stack(nats)[:, tokens > 0], tokens[tokens > 0], "nano", 1.0)]])
    return found


def test_every_kind_of_target_has_its_own_difference(study):
    members, sums = study
    section = hidden_by_the_mean(members)
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    sizes = sums["mha", 0][1].sum((1, 2))
    kinds = {
        "all targets": lambda sums: sums.sum((1, 2)),
        "that repeat a bigram": lambda sums: sums[..., 1].sum(1),
        "all other": lambda sums: sums[..., 0].sum(1),
        "in documents of 33 to 64 tokens": lambda sums: sums.sum((1, 2)) * ((sizes >= 33) & (sizes <= 64)),
        "predicted from 1 token": lambda sums: sums[:, 0].sum(1),
        "predicted from 16 to 31 tokens": lambda sums: sums[:, 4].sum(1),
        "predicted from 32 to 64 tokens": lambda sums: sums[:, 5:].sum((1, 2)),
    }
    for name, tokens_of in kinds.items():
        tokens = tokens_of(sums["mha", 0][1])
        assert rows[name]["tokens"] == f"{tokens.sum():,}"
        assert rows[name]["share"] == f"{tokens.sum() / sizes.sum():.1%}"
        assert rows[name]["documents"] == str((tokens > 0).sum())
        assert rows[name]["MHA's loss"] == f"{tokens_of(sums['mha', 0][0]).sum() / tokens.sum():.4f}"
        for backend in ("swa", "dma"):
            found = differences(sums, backend, tokens_of)
            low, high = found.interval
            star = "" if found.over_documents else "*"
            expected = f"{found.difference:+.4f} [{low:+.4f}, {high:+.4f}]{star}"
            assert rows[name][f"{backend} − MHA [95 %]"] == expected
    assert float(rows["that repeat a bigram"]["swa − MHA [95 %]"].split(" ")[0]) == pytest.approx(0.1, abs=0.005)
    assert "Rung nano, 1,000,000 tokens, 3 seeds" in table.caption
    repeats = sums["mha", 0][1][..., 1].sum(1)
    assert "that repeat a bigram of 2 to 3 documents" not in rows, "there is no such target"
    for name, tokens, gap in (("1 document", 2 * repeats // 3, 0.1), ("8 to 15 documents", -(-repeats // 3), 0.2)):
        row = rows[f"that repeat a bigram of {name}"]
        assert (row["tokens"], row["documents"]) == (f"{tokens.sum():,}", f"{(tokens > 0).sum()}")
        assert row["swa − MHA [95 %]"].startswith(f"{gap:+.4f}")


def test_runs_from_before_rarity_was_counted_are_compared_in_all_else(study):
    members, _ = study
    without = [replace(run, scores={k: v for k, v in run.scores.items() if "repeat" not in k}) for run in members]
    (table,) = [block for block in hidden_by_the_mean(without).blocks if isinstance(block, Table)]
    names = [row[0] for row in table.rows]
    assert "that repeat a bigram" in names
    assert not any("of 1 document" in name for name in names)
    mixed = [*members[: len(members) // 2], *without[len(members) // 2 :]]
    (table,) = [block for block in hidden_by_the_mean(mixed).blocks if isinstance(block, Table)]
    assert len(table.rows) >= len(names)


def test_figures_show_the_gap_by_the_tokens_seen_and_leave_out_what_is_not_there(study):
    members, sums = study
    gap, of_repeats = [block for block in hidden_by_the_mean(members).blocks if isinstance(block, Figure)]
    points = {series.group: series for series in gap.series if series.kind == "points"}
    assert set(points) == {"swa", "dma"}
    bands = [*(slice(band, band + 1) for band in range(5)), slice(5, 7)]
    expected = [differences(sums, "swa", lambda sums, b=band: sums[:, b].sum((1, 2))) for band in bands]
    np.testing.assert_allclose(points["swa"].y, [found.difference for found in expected], rtol=1e-9)
    np.testing.assert_allclose(points["swa"].x, [1, 6**0.5, 28**0.5, 120**0.5, 496**0.5, 2048**0.5], rtol=1e-9)
    (band,) = [series for series in gap.series if series.kind == "band" and series.group == "swa"]
    np.testing.assert_allclose(list(zip(band.y, band.high, strict=True)), [found.interval for found in expected])
    (repeating,) = [series for series in of_repeats.series if series.kind == "points" and series.group == "dma"]
    assert len(repeating.x) == 5
    np.testing.assert_allclose(repeating.y, 0.05, atol=0.01)


def test_a_single_seed_has_no_interval(add_run, tmp_path):
    for name, gap in (("mha", 0.0), ("dma", 0.01)):
        split(add_run(name), 0, gap, gap)
    ((members,),) = [list(cohorts(read_runs(tmp_path / "runs")[0]).values())]
    section = hidden_by_the_mean(members)
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert not any("[" in row[5] for row in table.rows)
    assert not any(
        series.kind == "band" for block in section.blocks if isinstance(block, Figure) for series in block.series
    )


def test_runs_without_split_losses_are_compared_all_the_same(add_run, tmp_path):
    for name in ("mha", "dma"):
        add_run(name)
    ((members,),) = [list(cohorts(read_runs(tmp_path / "runs")[0]).values())]
    assert hidden_by_the_mean(members) is None
    assert len(compare(members).cells) == 1


def test_of_several_rates_the_recipes_is_shown_and_named(add_run, tmp_path):
    sums = {}
    for rate, gap in ((0.002, 0.3), (0.01, 0.1), (0.03, 0.2)):
        for name, own in (("mha", 0.0), ("dma", gap)):
            options = {"settings": {"optimizer": {"learning_rate": rate}}, "recipe_learning_rate": 0.01}
            sums[name, rate] = split(add_run(name, **options), 0, 0.0, own)
    ((members,),) = [list(cohorts(read_runs(tmp_path / "runs")[0]).values())]
    table = next(block for block in hidden_by_the_mean(members).blocks if isinstance(block, Table))
    assert table.caption.startswith("Rung nano, 1,000,000 tokens, learning_rate=0.01, 1 seed, ")
    (repeating,) = (row for row in table.rows if row[0] == "that repeat a bigram")
    (ours, tokens), (theirs, _) = sums["dma", 0.01], sums["mha", 0.01]
    assert repeating[-1] == f"{(ours[..., 1].sum() - theirs[..., 1].sum()) / tokens[..., 1].sum():+.4f}"
