"""From a sweep of learning rates to a file of each backend's best, and what is said of it."""

import math
from functools import partial

import pytest
import yaml

from dma_lab.messages import UserError
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.document import Notice
from dma_lab.report.tuned_file import write_tuned
from dma_lab.report.tuning_figure import learning_rates
from tests.report.swept import BEST, PARAMETERS, RATES, RECIPE, add_swept, write_sweep
from tests.train.conftest import settings_of


@pytest.fixture
def sweep(add_run):
    return partial(write_sweep, add_run)


@pytest.fixture
def written(tmp_path):
    """Writes a file of the runs under ``tmp_path``; returns its entries."""

    def write():
        write_tuned([tmp_path], tmp_path / "tuned.yaml")
        return yaml.safe_load((tmp_path / "tuned.yaml").read_text())["backends"]

    return write


@pytest.fixture(scope="module")
def tuned(write, tmp_path_factory):
    """What the sweep's file says of MHA and DMA."""
    folder = tmp_path_factory.mktemp("sweep")
    for attention in ("mha", "dma"):
        write_sweep(partial(write, folder / "runs"), attention)
    file = folder / "tuned.yaml"
    write_tuned([folder], file)
    return file


def test_rungs_that_disagree_have_a_multiplier_each(tuned):
    by_name = {backend["attention"]["name"]: backend for backend in yaml.safe_load(tuned.read_text())["backends"]}
    assert [point["parameters"] for point in by_name["dma"]["points"]] == [148_096, 443_424]
    assert [point["multiplier"] for point in by_name["dma"]["points"]] == pytest.approx([0.75, 0.5], rel=1e-3)
    assert [point["multiplier"] for point in by_name["mha"]["points"]] == pytest.approx([0.5, 2 / 3], rel=1e-3)
    assert all(backend["notes"] == [] for backend in by_name.values())
    assert all(backend["trainings"] == 28 for backend in by_name.values())


def test_rungs_that_agree_have_one_multiplier_and_its_interval(sweep, written):
    best = {("mha", rung): 0.5 * RECIPE[rung] * 1.0001**sign for rung, sign in (("nano", 1), ("440k", -1))}
    sweep("mha", best=best)
    (backend,) = written()
    (point,) = backend["points"]
    assert point["multiplier"] == pytest.approx(0.5, rel=1e-3)
    low, high = point["interval"]
    assert 0.49 < low < 0.5 < high < 0.51


def test_a_run_takes_its_backends_rate(tuned):
    rates = {
        rung: settings_of([f"model={rung}", "attention=dma", f"tuned={tuned}"]).optimizer.learning_rate
        for rung in ("nano", "440k", "1m")
    }
    assert rates["nano"] == pytest.approx(0.75 * 0.00865, rel=0.01)
    assert rates["440k"] == pytest.approx(0.5 * 0.0072, rel=0.01)
    assert rates["1m"] == pytest.approx(0.5 * 0.00631, rel=0.01), "level beyond what was tuned"
    settings = settings_of(["attention=mha", f"tuned={tuned}"])
    assert settings.tuned.startswith("tuned.yaml@")
    assert settings.optimizer.learning_rate == pytest.approx(0.5 * 0.00865, rel=0.01)


def test_edges_and_divergence_are_said_in_the_file_and_beside_the_table(sweep, add_run, written, capsys):
    sweep("mha", rungs=["nano"], best={("mha", "nano"): 0.1})
    add_swept(add_run, "mha", "nano", 0.5, status="diverged")
    (backend,) = written()
    edge, diverged = "at nano the best is the highest rate at which no seed diverged", "at nano diverged at 0.5"
    alone = "tuned at nano alone: other sizes take the same multiple of the recipe's rate"
    assert backend["notes"] == [edge, diverged, alone]
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"warning: mha: {note}" for note in (edge, diverged, alone)]
    assert "diverged at 0.5" in said.out


def test_a_rate_at_which_one_seed_diverged_is_not_chosen(sweep, add_run, written, tmp_path):
    sweep("mha", rungs=["nano"])
    add_swept(add_run, "mha", "nano", RATES[4], 2.0, seed=2)
    # Of a training with branches that diverged in its first, nothing is found at the longer budgets.
    add_swept(add_run, "mha", "nano", RATES[4], tokens=250_000, seed=1, status="diverged")
    (backend,) = written()
    assert backend["points"][0]["multiplier"] == pytest.approx(0.5, rel=1e-3)
    assert f"at nano diverged at {RATES[4]:g}" in backend["notes"]
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    table = learning_rates(members).blocks[-1]
    assert [row[-1] for row in table.rows] == [f"diverged at {RATES[4]:g}"]


def test_too_few_rates_make_no_curve(sweep, written):
    sweep("mha", rungs=["nano"], rates=RATES[:2])
    with pytest.raises(UserError, match="mha at nano has finished runs at 2 learning rates"):
        written()


def test_a_backend_that_diverged_at_most_rates_is_said_to_have(sweep, add_run, written, tmp_path, capsys):
    """It has no entry in the file and no curve on the page: that is not for want of runs."""
    sweep("mha", rungs=["nano"])
    sweep("dma", rungs=["nano"], rates=RATES[:2])
    for rate in RATES[2:]:
        add_swept(add_run, "dma", "nano", rate, status="diverged")
    (backend,) = written()
    assert backend["overrides"] == "attention=mha"
    lost = ", ".join(f"{rate:g}" for rate in RATES[2:])
    said = (
        f"has finished runs at 2 learning rates at which none diverged (one did at {lost}), and a curve takes 3 or more"
    )
    assert f"warning: dma at nano {said}" in capsys.readouterr().err
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    (notice,) = [block for block in learning_rates(members).blocks if isinstance(block, Notice)]
    assert notice.items == [f"dma at nano, 1,000,000 tokens, {said}"]


def test_the_recipes_rate_comes_from_a_study_and_its_neighbours_from_another_folder(write, tmp_path, capsys):
    """The study has three budgets, more seeds, rungs that were not swept, and another machine."""
    add = {folder: partial(write, tmp_path / folder) for folder in ("study", "neighbours")}
    right = {"mha": 0.004, "dma": 0.005}

    def run(folder, attention, rate, seed, tokens=1_000_000, rung="nano", **more):
        # A budget of its own has another best rate, which no sweep is of.
        best = right[attention] if tokens == 1_000_000 else 0.03
        loss = 3 + 0.1 * math.log(rate / best) ** 2 + 1e-4 * (seed - 0.5)
        add_swept(add[folder], attention, rung, rate, loss, tokens=tokens, seed=seed, **more)

    for attention in ("mha", "dma"):
        for seed in (0, 1, 2):
            for tokens in (250_000, 500_000, 1_000_000):
                run("study", attention, 0.0045, seed, tokens)
            run("study", attention, 0.0045, seed, rung="1m")
        for rate in (0.0045 / 1.5, 0.0045 * 1.5):
            run("neighbours", attention, rate, 0, hardware="1 x H200")
    file = tmp_path / "tuned.yaml"
    write_tuned([tmp_path / "study", tmp_path / "neighbours"], file)
    by_name = {own["attention"]["name"]: own for own in yaml.safe_load(file.read_text())["backends"]}
    for attention in ("mha", "dma"):
        (point,) = by_name[attention]["points"]
        assert point["multiplier"] == pytest.approx(right[attention] / RECIPE["nano"], rel=0.01)
        assert by_name[attention]["notes"] == [
            "at nano not every rate has the same seeds (0 and 0, 1, 2): which rates they fell to is in the curve",
            "at nano trained on 2 kinds of machine, whose rounding is taken for noise",
            "tuned at nano alone: other sizes take the same multiple of the recipe's rate",
        ]
    assert "warning: mha at 1m has finished runs at 1 learning rates" in capsys.readouterr().err


def test_unequal_budgets_are_said(sweep, written, capsys):
    sweep("mha", rungs=["nano"])
    sweep("dma", rungs=["nano"], rates=RATES[2:6], seeds=[0])
    backends = written()
    assert "warning: not all had the same budget; trainings: mha 14, dma 4" in capsys.readouterr().err
    assert {own["overrides"]: own["trainings"] for own in backends} == {"attention=mha": 14, "attention=dma": 4}


def test_attentions_swept_over_unequal_tokens_have_figures_of_their_own(sweep, written, tmp_path, capsys):
    sweep("mha", rungs=["nano"])
    sweep("dma", rungs=["nano"], tokens=500_000)
    written()
    said = capsys.readouterr().err
    assert "warning: at nano attentions were swept over 500,000 and 1,000,000 tokens: their losses" in said
    assert {path.stem for path in tmp_path.glob("tuned*.svg")} == {"tuned-nano-500000", "tuned-nano-1000000"}


def test_multiples_are_of_the_recipe_that_will_be_multiplied(sweep, add_run, written, capsys):
    """Runs of an earlier recipe: what was found is the rate, and it is what ``tuned=FILE`` gives."""
    sweep("mha", rungs=["nano"], rates=RATES[2:])
    for rate in RATES[:2]:
        loss = 3 + 0.1 * math.log(rate / BEST["mha", "nano"]) ** 2
        add_run(
            "mha", "nano", val_loss=loss, recipe_learning_rate=0.01, params_non_embedding=PARAMETERS["nano"],
            settings={"optimizer": {"name": "muon", "learning_rate": rate}},
        )  # fmt: skip
    (backend,) = written()
    assert backend["points"][0]["multiplier"] == pytest.approx(0.5, rel=0.01)
    said = capsys.readouterr()
    assert (
        "warning: at nano the recipe's rate was 0.01 when runs were trained; what is written are multiples of 0.0086"
        in (said.err)
    )
    (row,) = [line for line in said.out.splitlines() if "│ mha " in line]
    assert [cell.strip() for cell in row.split("│")][7] == "-", "of two recipes there is no one multiple"
