"""Each backend beside MHA at the rate that all share and at its own: what pairs with what, and by how much."""

import re

import pytest
from omegaconf import OmegaConf

from dma_lab.report.both_rates import at_both_rates
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.comparison import compare
from dma_lab.report.sections import build_document
from dma_lab.report.statistics import compute_statistics
from tests.report.conftest import vouch
from tests.report.swept import shift

FILE = "tuned.yaml@12345678"


def statistics_of(path):
    groups = cohorts(read_runs(path)[0])
    return {name: compute_statistics(members, lambda step: None) for name, members in groups.items()}


def rows_at_both_rates(found):
    (section,) = at_both_rates(found)
    return [dict(zip(section.blocks[1].columns, row, strict=True)) for row in section.blocks[1].rows]


def test_runs_of_one_file_pair_in_a_cohort_that_says_so(add_run, tmp_path):
    for attention, rate in (("mha", 0.004), ("dma", 0.006)):
        for more in ({"tuned": FILE}, {"tuned": "tuned.yaml@87654321"}, {}):
            add_run(attention, settings={"optimizer": {"learning_rate": rate}} | more)
    groups = cohorts(read_runs(tmp_path / "runs")[0])
    assert sorted(name.rpartition(", ")[2] for name in groups) == [
        "tuned=None", "tuned=tuned.yaml@12345678", "tuned=tuned.yaml@87654321",
    ]  # fmt: skip
    for name, members in groups.items():
        paired = [difference for run, difference in compare(members).pairs if run.attention == "dma"]
        assert isinstance(paired[0], str) == ("tuned=None" in name), name


def test_shared_and_tuned_rates_stand_side_by_side_at_the_same_point(add_run, tmp_path):
    for tuned, gap in ((None, 0.03), (FILE, -0.01)):
        for tokens in (500_000, 1_000_000):
            for seed in (0, 1, 2):
                for attention, rate in (("mha", 0.01), ("dma", 0.01 if tuned is None else 0.004)):
                    settings = {"optimizer": {"learning_rate": rate}} | ({"tuned": tuned} if tuned else {})
                    path = add_run(attention, tokens=tokens, seed=seed, settings=settings)
                    shift(path, gap if attention == "dma" else 0.0)
    found = statistics_of(tmp_path / "runs")
    (cells,) = rows_at_both_rates(found)
    assert (cells["attention"], cells["beside"], cells["tokens"], cells["seeds"]) == (
        "dma",
        "mha",
        "1,000,000",
        "3 / 3",
    )
    # conftest: DMA's law lies 0.02 lower.
    for kind, gap in (("shared", 0.03), ("tuned", -0.01)):
        value, low, high = map(float, re.findall(r"[+-][\d.]+", cells[f"loss − MHA, {kind} [95 %]"]))
        assert value == pytest.approx(gap - 0.02, abs=0.006)
        assert low < value < high
    assert cells["which shared rate"] == "shared rate"
    assert at_both_rates({name: own for name, own in found.items() if "tuned=None" in name}) == []
    # Runs of one seed differ by what was shifted alone: -0.04 for DMA, nothing for MHA.
    gains = {row[0]: row[1:] for row in at_both_rates(found)[0].blocks[2].rows}
    assert gains["mha"] == ("nano", "1,000,000", "0.01", "0.01", "+0.0000", "3")
    assert gains["dma"][2:4] == ("0.01", "0.004")
    assert gains["dma"][4].startswith("-0.0400")


def test_an_attention_with_other_options_at_tuned_rates_alone_is_not_held_against_the_plain_one(add_run, tmp_path):
    """Among the tuned runs the option does not vary, and it is named all the same."""
    for tuned, options in ((None, {}), (FILE, {"score": "linear"})):
        settings = {"tuned": tuned} if tuned else {}
        for seed in (0, 1):
            add_run("mha", seed=seed, settings=settings)
            shift(add_run("dma", seed=seed, settings=settings | {"attention": options}), 0.5 if tuned else 0.0)
    found = statistics_of(tmp_path / "runs")
    rows = {row["attention"]: row["which shared rate"] for row in rows_at_both_rates(found)}
    assert rows == {"dma": "shared alone", "dma score=linear": "tuned alone"}


def test_variants_stand_beside_their_like_at_both_rates_and_never_beside_other_options(add_run, tmp_path):
    """The tuned runs have DMA with another score alone, and both attentions with a slope."""
    slope, linear = {"recency": "slope"}, {"score": "linear"}
    for tuned, attentions in (
        (None, [("mha", {}), ("mha", slope), ("dma", {}), ("dma", slope)]),
        (FILE, [("mha", {}), ("mha", slope), ("dma", linear), ("dma", slope)]),
    ):
        for seed in (0, 1, 2):
            for attention, options in attentions:
                settings = {"attention": options} | ({"tuned": tuned} if tuned else {})
                shift(add_run(attention, seed=seed, settings=settings), 0.5 if options == linear else 0.0)
    found = statistics_of(tmp_path / "runs")
    rows = {(row["attention"], row["beside"]): row for row in rows_at_both_rates(found)}
    assert rows.keys() == {
        *(("dma", "mha"), ("dma score=linear", "mha"), ("mha recency=slope", "mha")),
        *(("dma recency=slope", "mha"), ("dma recency=slope", "mha recency=slope")),
    }
    assert [rows["dma score=linear", "mha"][name] for name in ("rung", "which shared rate")] == ["-", "tuned alone"]
    assert [rows["dma", "mha"][name] for name in ("rung", "which shared rate")] == ["-", "shared alone"]
    assert rows["dma recency=slope", "mha recency=slope"]["seeds"] == "3 / 3"
    text = str(build_document(read_runs(tmp_path / "runs")[0], [], lambda step: None)[0])
    assert "Group 1, rates not tuned: Verdict" in text
    assert "Group 2, each at its own tuned rate: Verdict" in text


CHOSEN = {"multiplier": 0.5, "options": {"score_rate": 10.0}, "trainings": 208, "notes": []}


def test_a_backend_with_chosen_settings_stands_beside_itself_and_is_named_by_them(add_run, tmp_path):
    """DMA at tuned rates twice: with the settings that tuning chose, and by hand without."""
    for seed in (0, 1, 2):
        add_run("mha", seed=seed)
        add_run("dma", seed=seed)
        add_run("mha", seed=seed, settings={"tuned": FILE})
        own = {"tuned": FILE, "optimizer": {"learning_rate": 0.004}}
        shift(add_run("dma", seed=seed, settings=own), -0.01)
        shift(add_run("dma", seed=seed, settings=own | {"attention": {"score_rate": 10.0}}, tuning=CHOSEN), -0.05)
    found = statistics_of(tmp_path / "runs")
    assert sorted(own.backends for own in found.values()) == [["mha", "dma"], ["mha", "dma", "dma score_rate=10.0"]]
    rows = {row["attention"]: row for row in rows_at_both_rates(found)}
    assert rows.keys() == {"dma", "dma, tuned: score_rate=10.0"}
    # conftest: DMA's law lies 0.02 lower.
    for name, tuned in (("dma", -0.03), ("dma, tuned: score_rate=10.0", -0.07)):
        for kind, gap in (("shared", -0.02), ("tuned", tuned)):
            value = float(rows[name][f"loss − MHA, {kind} [95 %]"].split()[0])
            assert value == pytest.approx(gap, abs=0.006), (name, kind)
        assert rows[name]["seeds"] == "3 / 3"
    gains = {row[0]: row for row in at_both_rates(found)[0].blocks[2].rows}
    assert gains["dma"][5].startswith("-0.0100")
    assert gains["dma, tuned: score_rate=10.0"][5].startswith("-0.0500")
    tuned = max(found.values(), key=lambda own: len(own.backends))
    assert tuned.rates["dma score_rate=10.0"] == "its own tuned rate and settings"


def test_chosen_settings_are_named_where_nothing_else_stands_beside_them(add_run, tmp_path):
    """Among tuned runs alone the option varies in nothing, and the name would be that of plain DMA."""
    add_run("mha", settings={"tuned": FILE})
    add_run("dma", settings={"tuned": FILE, "attention": {"score_rate": 10.0}}, tuning=CHOSEN)
    (found,) = statistics_of(tmp_path / "runs").values()
    assert found.backends == ["mha", "dma score_rate=10.0"]
    assert [run.untuned for run in found.finished] == ["mha", "dma"]


def test_of_several_shared_rates_the_one_that_is_best_in_the_mean_over_seeds_stands_for_all_seeds(add_run, tmp_path):
    """Seed by seed the best would be a minimum over luck: here 0.01 is lucky at seed 0, and 0.02 better in the mean."""
    for attention in ("mha", "dma"):
        for seed in (0, 1, 2):
            for rate, nats in ((0.01, (-0.02, 0.1, 0.1)), (0.02, (0.0, 0.0, 0.0))):
                path = add_run(
                    attention, seed=seed, settings={"optimizer": {"learning_rate": rate}}, val_loss=3.0 + nats[seed]
                )
                shift(path, nats[seed])
            add_run(attention, seed=seed, settings={"optimizer": {"learning_rate": 0.015}, "tuned": FILE})
    found = statistics_of(tmp_path / "runs")
    gains = {row[0]: row for row in at_both_rates(found)[0].blocks[2].rows}
    for attention in ("mha", "dma"):
        assert gains[attention][3] == "0.02"
        assert gains[attention][5].startswith("+0.0000"), "the mean of +0.02, 0 and 0 would be +0.0067"


def test_runs_that_keep_no_word_of_what_was_chosen_are_named_as_their_like(add_run, tmp_path):
    """Such as were given their rate and options by hand, as points.csv has the command."""
    for seed, kept in ((0, {"tuning": CHOSEN}), (1, {})):
        add_run("mha", seed=seed, settings={"tuned": FILE})
        add_run("dma", seed=seed, settings={"tuned": FILE, "attention": {"score_rate": 10.0}}, **kept)
    (found,) = statistics_of(tmp_path / "runs").values()
    assert found.backends == ["mha", "dma score_rate=10.0"]
    assert {run.untuned for run in found.finished} == {"mha", "dma"}
    assert found.rates["dma score_rate=10.0"] == "its own tuned rate and settings"


def test_runs_of_before_a_setting_could_be_asked_for_stand_beside_those_that_leave_it_at_that(add_run, tmp_path):
    for tuned in (None, FILE):
        for seed in (0, 1):
            for attention in ("mha", "dma"):
                path = add_run(attention, seed=seed, settings={"tuned": tuned} if tuned else {})
                config = OmegaConf.load(path / "config.yaml")
                if tuned:
                    config.trainer.activation_checkpointing, config.data.encoding = False, "utf-8"
                else:
                    config.trainer.pop("activation_checkpointing", None)
                    config.data.pop("encoding", None)
                OmegaConf.save(config, path / "config.yaml")
                vouch(path)
    (cells,) = rows_at_both_rates(statistics_of(tmp_path / "runs"))
    assert cells["seeds"] == "2 / 2"


def test_multiples_of_another_recipe_are_other_rates(add_run, runs):
    """The recipe is the code's, and the file has multiples of it: a later version may train at other rates with it."""
    for recipe, seed in ((0.01, 0), (0.02, 1)):
        for attention, multiple in (("mha", 1.0), ("dma", 0.4)):
            settings = {"tuned": FILE, "optimizer": {"learning_rate": multiple * recipe}}
            add_run(attention, seed=seed, settings=settings, recipe_learning_rate=recipe)
    compared = compare(runs())
    assert [cell.difference.seeds for cell in compared.cells] == [1, 1], "two rates are no two seeds of one"
    assert [cell.run.setting for cell in compared.cells] == [
        "learning_rate=tuned from 0.01",
        "learning_rate=tuned from 0.02",
    ]
    add_run("swa", settings={"tuned": FILE}, recipe_learning_rate=0.02)
    (swa,) = (difference for run, difference in compare(runs()).pairs if run.attention == "swa")
    assert swa.endswith("the nearest differs in optimizer.learning_rate")


@pytest.mark.parametrize("kept", [True, False])
def test_a_rate_by_hand_is_not_the_files_whatever_file_is_named_beside_it(add_run, runs, kept):
    """The command that repeats a run names file and rate: with another rate it repeats nothing."""
    tuning = {"tuning": {"multiplier": 0.4, "options": {}, "trainings": 9, "notes": []}} if kept else {}
    of_file = {"recipe_learning_rate": 0.01, **tuning}
    for seed in (0, 1):
        add_run("mha", seed=seed, settings={"tuned": FILE}, recipe_learning_rate=0.01)
        settings = {"tuned": FILE, "optimizer": {"learning_rate": 0.004}}
        add_run("dma", seed=seed, settings=settings, **(of_file if seed else {"recipe_learning_rate": 0.01}))
    assert [cell.difference.seeds for cell in compare(runs()).cells] == [2], "a run repeated as it was is the file's"
    for rate, seed in ((0.02, 0), (0.03, 2)):
        settings = {"tuned": FILE, "optimizer": {"learning_rate": rate}}
        add_run("dma", seed=seed, settings=settings, recipe_learning_rate=0.01)
    add_run("mha", seed=2, settings={"tuned": FILE}, recipe_learning_rate=0.01)
    compared = compare(runs())
    apart = {run.config.optimizer.learning_rate: found for run, found in compared.pairs if run.attention == "dma"}
    for rate in (0.02, 0.03) if kept else (0.004, 0.02, 0.03):  # without what the file said, any may be its rate
        assert apart[rate].endswith("the nearest differs in optimizer.learning_rate")
    assert [cell.difference.seeds for cell in compared.cells] == ([2] if kept else [])
    assert compute_statistics(runs(), lambda step: None).rates["dma"] == "the best of up to 2 rates per point"
