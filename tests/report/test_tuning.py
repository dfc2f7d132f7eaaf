"""A sweep of learning rates to a file, and that file through the entry point of training; what pairs with what."""

import math
import re
from functools import partial

import numpy as np
import pytest
import yaml

from dma_lab.messages import UserError
from dma_lab.report.both_rates import at_both_rates
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.comparison import compare
from dma_lab.report.sections import build_document
from dma_lab.report.statistics import compute_statistics
from dma_lab.report.tuned_file import write_tuned
from dma_lab.report.tuning_figure import learning_rates
from tests.report.conftest import vouch
from tests.train.conftest import settings_of

RATES = [0.004 * 1.5**step for step in range(-3, 4)]
BEST = {("mha", "nano"): 0.004, ("mha", "440k"): 0.004, ("dma", "nano"): 0.006, ("dma", "440k"): 0.003}
RECIPE = {"nano": 0.008, "440k": 0.006}
PARAMETERS = {"nano": 148_096, "440k": 443_424}


def write_sweep(add_run, attention, rungs=("nano", "440k"), best=BEST, rates=RATES):
    for rung in rungs:
        for rate in rates:
            for seed in (0, 1):
                loss = 3 + 0.1 * math.log(rate / best[attention, rung]) ** 2 + 1e-4 * (seed - 0.5)
                add_run(
                    attention, rung, seed=seed, val_loss=loss, recipe_learning_rate=RECIPE[rung],
                    params_non_embedding=PARAMETERS[rung],
                    settings={"optimizer": {"name": "muon", "learning_rate": rate}},
                )  # fmt: skip


@pytest.fixture
def sweep(add_run):
    return partial(write_sweep, add_run)


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
    # 0.5 of 0.008 and 0.667 of 0.006.
    assert [point["multiplier"] for point in by_name["mha"]["points"]] == pytest.approx([0.5, 2 / 3], rel=1e-3)
    assert all(backend["notes"] == [] for backend in by_name.values())
    assert all(backend["trainings"] == 28 for backend in by_name.values())


def test_rungs_that_agree_have_one_multiplier_and_its_interval(sweep, tmp_path):
    best = {("mha", rung): 0.5 * RECIPE[rung] * 1.0001**sign for rung, sign in (("nano", 1), ("440k", -1))}
    sweep("mha", best=best)
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    (backend,) = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["backends"]
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["attention=swa"], "has no rate for attention=swa with these options (it has mha, dma)"),
        (["attention=dma", "attention.window=9"], "has no rate for attention=dma with these options"),
        (["attention=mha", "optimizer.learning_rate=0.01"], "and optimizer.learning_rate=0.01 both set the rate"),
        (["attention=mha", "optimizer=adamw"], "was tuned with optimizer=muon, not adamw"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_entry_point_refuses_what_the_file_does_not_hold(tuned, given, said):
    with pytest.raises(UserError) as refusal:
        settings_of([*given, f"tuned={tuned}"])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_option_that_came_after_the_file_had_its_default_then(tuned, tmp_path):
    content = yaml.safe_load(tuned.read_text())
    for backend in content["backends"]:
        for option in ("recency", "scores", "score_rate", "gate"):
            backend["attention"].pop(option, None)
    earlier = tmp_path / "earlier.yaml"
    earlier.write_text(yaml.safe_dump(content))
    rates = [settings_of(["attention=dma", f"tuned={file}"]).optimizer.learning_rate for file in (earlier, tuned)]
    assert rates[0] == rates[1]
    with pytest.raises(UserError, match="has no rate for attention=dma with these options"):
        settings_of(["attention=dma", "attention.score_rate=2.0", f"tuned={earlier}"])


@pytest.mark.parametrize("content", [None, "points: [", "optimizer: adamw", b"\xff\xfe", "optimizer: 3\nbackends: []"])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    file = tmp_path / "wrong.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"wrong\.yaml (cannot be read|is no file of tuned rates)"):
        settings_of([f"tuned={file}"])


def test_edges_and_divergence_are_said_in_the_file_and_beside_the_table(sweep, add_run, tmp_path, capsys):
    sweep("mha", rungs=["nano"], best={("mha", "nano"): 0.1})
    add_run(
        "mha",
        "nano",
        recipe_learning_rate=0.008,
        status="diverged",
        settings={"optimizer": {"name": "muon", "learning_rate": 0.5}},
    )
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    (backend,) = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["backends"]
    edge, diverged = "at nano the best is the highest rate at which no seed diverged", "at nano diverged at 0.5"
    alone = "tuned at nano alone: other sizes take the same multiple of the recipe's rate"
    assert backend["notes"] == [edge, diverged, alone]
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"warning: mha: {note}" for note in (edge, diverged, alone)]
    assert "diverged at 0.5" in said.out


def test_a_rate_at_which_one_seed_diverged_is_not_chosen(sweep, add_run, tmp_path):
    sweep("mha", rungs=["nano"])
    settings = {"optimizer": {"name": "muon", "learning_rate": RATES[4]}}
    shape = {"recipe_learning_rate": RECIPE["nano"], "params_non_embedding": PARAMETERS["nano"]}
    add_run("mha", "nano", seed=2, val_loss=2.0, settings=settings, **shape)
    # Of a training with branches that diverged in its first, nothing is found at the longer budgets.
    add_run("mha", "nano", 250_000, seed=1, status="diverged", settings=settings, **shape)
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    (backend,) = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["backends"]
    assert backend["points"][0]["multiplier"] == pytest.approx(0.5, rel=1e-3)
    assert f"at nano diverged at {RATES[4]:g}" in backend["notes"]
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    table = learning_rates(members).blocks[-1]
    assert [row[-1] for row in table.rows] == [f"diverged at {RATES[4]:g}"]


def test_sweeps_of_two_studies_are_refused(sweep, add_run, tmp_path):
    sweep("mha", rungs=["nano"])
    for rate in RATES[:4]:
        add_run(
            "mha", "440k", settings={"optimizer": {"name": "muon", "learning_rate": rate}}, recipe_learning_rate=0.006,
            params_non_embedding=PARAMETERS["440k"], data_fingerprint="0123456789abcdef",
        )  # fmt: skip
    with pytest.raises(UserError, match=r"holds sweeps of more than one study: .* differ in data_fingerprint; tune"):
        write_tuned([tmp_path], tmp_path / "tuned.yaml")


def test_settings_swept_over_unequal_tokens_are_not_ranked(sweep, add_run, tmp_path, capsys):
    sweep("dma", rungs=["nano"])
    for rate in RATES[2:5]:
        settings = {"optimizer": {"name": "muon", "learning_rate": rate}, "attention": {"score": "linear"}}
        shape = {"recipe_learning_rate": 0.008, "params_non_embedding": PARAMETERS["nano"]}
        add_run("dma", "nano", 500_000, val_loss=2 + 0.1 * math.log(rate / 0.004) ** 2, settings=settings, **shape)
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    said = capsys.readouterr()
    assert "settings" not in said.out
    assert "warning: at nano attentions were swept over 500,000 and 1,000,000 tokens: their losses" in said.err
    assert {path.stem for path in tmp_path.glob("tuned*.svg")} == {"tuned-nano-500000", "tuned-nano-1000000"}


def test_too_few_rates_make_no_curve(sweep, tmp_path):
    sweep("mha", rungs=["nano"], rates=RATES[:2])
    with pytest.raises(UserError, match="mha at nano has finished runs at 2 learning rates"):
        write_tuned([tmp_path], tmp_path / "tuned.yaml")


def test_the_recipes_rate_comes_from_a_study_and_its_neighbours_from_another_folder(write, tmp_path, capsys):
    """The study has three budgets, more seeds, rungs that were not swept, and another machine."""
    add = {folder: partial(write, tmp_path / folder) for folder in ("study", "neighbours")}

    right = {"mha": 0.004, "dma": 0.005}

    def run(folder, attention, rate, seed, tokens=1_000_000, rung="nano", **more):
        # A budget of its own has another best rate, which no sweep is of.
        best = right[attention] if tokens == 1_000_000 else 0.03
        loss = 3 + 0.1 * math.log(rate / best) ** 2 + 1e-4 * (seed - 0.5)
        shape = {"recipe_learning_rate": RECIPE["nano"], "params_non_embedding": PARAMETERS.get(rung, 1_000_000)}
        settings = {"optimizer": {"name": "muon", "learning_rate": rate}}
        add[folder](attention, rung, tokens, seed=seed, val_loss=loss, settings=settings, **shape, **more)

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
            "at nano trained on 2 kinds of machine, whose rounding is taken for noise",
            "tuned at nano alone: other sizes take the same multiple of the recipe's rate",
        ]
    assert "warning: mha at 1m has finished runs at 1 learning rates" in capsys.readouterr().err


def test_two_sweeps_that_differ_in_more_are_refused(sweep, add_run, tmp_path):
    sweep("mha", rungs=["nano"], rates=RATES[:3])
    for rate in RATES[:3]:
        settings = {"optimizer": {"name": "muon", "learning_rate": rate, "weight_decay": 0.0}}
        add_run("mha", "nano", settings=settings, recipe_learning_rate=0.008, params_non_embedding=PARAMETERS["nano"])
    with pytest.raises(UserError, match=r"differ in more than learning rate and seed \(optimizer.weight_decay\)"):
        write_tuned([tmp_path], tmp_path / "tuned.yaml")


def test_runs_of_one_file_pair_in_a_cohort_that_says_so(add_run, tmp_path):
    for attention, rate in (("mha", 0.004), ("dma", 0.006)):
        for more in ({"tuned": "tuned.yaml@12345678"}, {"tuned": "tuned.yaml@87654321"}, {}):
            add_run(attention, settings={"optimizer": {"learning_rate": rate}} | more)
    groups = cohorts(read_runs(tmp_path / "runs")[0])
    assert sorted(name.rpartition(", ")[2] for name in groups) == [
        "tuned=None", "tuned=tuned.yaml@12345678", "tuned=tuned.yaml@87654321",
    ]  # fmt: skip
    for name, members in groups.items():
        paired = [difference for run, difference in compare(members).pairs if run.attention == "dma"]
        assert isinstance(paired[0], str) == ("tuned=None" in name), name


def test_the_curves_stand_in_the_report_and_beside_the_file(sweep, add_run, tmp_path):
    for attention in ("mha", "dma"):
        sweep(attention, rungs=["nano"])
    sweep("swa", rungs=["nano"], best={("swa", "nano"): 0.1})
    shape = {"recipe_learning_rate": 0.008, "params_non_embedding": PARAMETERS["nano"]}
    own = {"optimizer": {"name": "muon", "learning_rate": 0.04}}
    add_run("dma", "nano", status="diverged", settings=own, **shape)
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    assert {path.name for path in tmp_path.glob("tuned*")} == {"tuned.yaml", "tuned-nano.svg", "tuned-nano.png"}
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    figure, table = learning_rates(members).blocks
    by_kind = {}
    for series in figure.series:
        if series.kind == "band":
            continue
        kind = series.mark if series.kind == "points" else "curve" if series.faint else "interval"
        by_kind[series.group, kind] = series
    for attention, best in (("mha", 0.004), ("dma", 0.006)):
        points, curve = by_kind[attention, "circle"], by_kind[attention, "curve"]
        assert sorted(points.x) == pytest.approx(sorted(2 * RATES)), "every seed is a point"
        exact = [3 + 0.1 * math.log(rate / best) ** 2 for rate in curve.x]
        assert list(curve.y) == pytest.approx(exact, abs=1e-6)
        lowest, interval = by_kind[attention, "diamond"], by_kind[attention, "interval"]
        assert (lowest.x, lowest.y) == (pytest.approx([best], rel=1e-3), pytest.approx([3.0], abs=1e-4))
        assert interval.x[0] < best < interval.x[1] < 1.01 * best
    assert by_kind["swa", "triangle"].x == pytest.approx([RATES[-1]])
    assert ("swa", "interval") not in by_kind
    assert by_kind["dma", "cross"].x == [0.04]
    rows = {row[0]: row[3:] for row in table.rows}
    assert rows["mha"][:2] == ("7", "2")
    assert [rows[name][2] for name in ("mha", "dma")] == ["14", "15"], "the run that diverged was spent, too"
    assert rows["mha"][4] == "0.5"
    assert rows["mha"][5].startswith("3.0000 [")
    assert rows["dma"][6] == "diverged at 0.04"
    assert "highest rate tried" in rows["swa"][6]
    (band,) = [series for series in figure.series if (series.group, series.kind) == ("mha", "band")]
    curve = by_kind["mha", "curve"]
    assert (np.array(band.y) < curve.y).all()
    assert (np.array(band.high) > curve.y).all()


def test_without_a_sweep_there_are_no_curves(add_run, tmp_path):
    for rate in (0.01, 0.02):
        add_run("mha", settings={"optimizer": {"learning_rate": rate}})
    assert learning_rates(read_runs(tmp_path / "runs")[0]) is None


def test_shared_and_tuned_rates_stand_side_by_side_at_the_same_point(add_run, tmp_path):
    for tuned, gap in ((None, 0.03), ("tuned.yaml@12345678", -0.01)):
        for tokens in (500_000, 1_000_000):
            for seed in (0, 1, 2):
                for attention, rate in (("mha", 0.01), ("dma", 0.01 if tuned is None else 0.004)):
                    settings = {"optimizer": {"learning_rate": rate}} | ({"tuned": tuned} if tuned else {})
                    path = add_run(attention, tokens=tokens, seed=seed, settings=settings)
                    shift(path, gap if attention == "dma" else 0.0)
    groups = cohorts(read_runs(tmp_path / "runs")[0])
    found = {name: compute_statistics(members, lambda step: None) for name, members in groups.items()}
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


def rows_at_both_rates(found):
    (section,) = at_both_rates(found)
    return [dict(zip(section.blocks[1].columns, row, strict=True)) for row in section.blocks[1].rows]


def test_an_attention_with_other_options_at_tuned_rates_alone_is_not_held_against_the_plain_one(add_run, tmp_path):
    """Among the tuned runs the option does not vary, and it is named all the same."""
    for tuned, options in ((None, {}), ("tuned.yaml@12345678", {"score": "linear"})):
        settings = {"tuned": tuned} if tuned else {}
        for seed in (0, 1):
            add_run("mha", seed=seed, settings=settings)
            shift(add_run("dma", seed=seed, settings=settings | {"attention": options}), 0.5 if tuned else 0.0)
    groups = cohorts(read_runs(tmp_path / "runs")[0])
    found = {name: compute_statistics(members, lambda step: None) for name, members in groups.items()}
    rows = {row["attention"]: row["which shared rate"] for row in rows_at_both_rates(found)}
    assert rows == {"dma": "shared alone", "dma score=linear": "tuned alone"}


def test_variants_stand_beside_their_like_at_both_rates_and_never_beside_other_options(add_run, tmp_path):
    """The tuned runs have DMA with another score alone, and both attentions with a slope."""
    slope, linear = {"recency": "slope"}, {"score": "linear"}
    for tuned, attentions in (
        (None, [("mha", {}), ("mha", slope), ("dma", {}), ("dma", slope)]),
        ("tuned.yaml@12345678", [("mha", {}), ("mha", slope), ("dma", linear), ("dma", slope)]),
    ):
        for seed in (0, 1, 2):
            for attention, options in attentions:
                settings = {"attention": options} | ({"tuned": tuned} if tuned else {})
                shift(add_run(attention, seed=seed, settings=settings), 0.5 if options == linear else 0.0)
    groups = cohorts(read_runs(tmp_path / "runs")[0])
    found = {name: compute_statistics(members, lambda step: None) for name, members in groups.items()}
    rows = {(row["attention"], row["beside"]): row for row in rows_at_both_rates(found)}
    assert rows.keys() == {
        *(("dma", "mha"), ("dma score=linear", "mha"), ("mha recency=slope", "mha")),
        *(("dma recency=slope", "mha"), ("dma recency=slope", "mha recency=slope")),
    }
    assert [rows["dma score=linear", "mha"][name] for name in ("rung", "which shared rate")] == ["-", "tuned alone"]
    assert [rows["dma", "mha"][name] for name in ("rung", "which shared rate")] == ["-", "shared alone"]
    assert rows["dma recency=slope", "mha recency=slope"]["seeds"] == "3 / 3"
    text = str(build_document([run for members in groups.values() for run in members], [], lambda step: None)[0])
    assert "Group 1, rates not tuned: Verdict" in text
    assert "Group 2, each at its own tuned rate: Verdict" in text


def shift(path, nats):
    """Raise every document's loss of a run."""
    scores = dict(np.load(path / "validation.npz"))
    scores["document_nats"] = scores["document_nats"] + nats * scores["document_tokens"]
    np.savez(path / "validation.npz", **scores)
    vouch(path)


def test_unequal_budgets_are_said_and_settings_of_one_backend_have_rates_of_their_own(sweep, add_run, tmp_path, capsys):
    sweep("mha", rungs=["nano"])
    for score, lowest in (("exp", 3.0), ("linear", 2.9)):
        for rate in RATES[2:5]:
            settings = {"optimizer": {"name": "muon", "learning_rate": rate}, "attention": {"score": score}}
            loss = lowest + 0.1 * math.log(rate / 0.004) ** 2
            shape = {"recipe_learning_rate": 0.008, "params_non_embedding": PARAMETERS["nano"]}
            add_run("dma", "nano", val_loss=loss, settings=settings, **shape)
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    said = capsys.readouterr()
    assert "warning: not all had the same budget; trainings: mha 14, dma 3, dma score=linear 3" in said.err
    backends = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["backends"]
    assert {own["attention"].get("score"): own["trainings"] for own in backends} == {None: 14, "exp": 3, "linear": 3}
    (plain,), (linear,) = (
        [line for line in said.out.splitlines() if f"│ {name} " in line] for name in ("dma ", "dma score=linear")
    )
    assert "3.0000 [" in plain
    assert "2.9000 [" in linear
    assert {own["overrides"] for own in backends} == {
        "attention=mha", "attention=dma", "attention=dma attention.score=linear"
    }  # fmt: skip
    (sentence,) = [line for line in said.out.splitlines() if line.startswith("dma at nano: of 2 settings")]
    assert "`attention=dma attention.score=linear` has the least loss, 2.9000 [" in sentence
    assert "the next is `attention=dma`, 3.0000 [" in sentence
