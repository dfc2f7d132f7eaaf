"""Scores that evaluate.py wrote into the runs' directories, as the report shows them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from dma_lab.evaluation import suite
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.figures.palette import MISSING
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.document import Figure, Notice, Section, Table
from dma_lab.report.evaluations import evaluations
from dma_lab.report.write import write_report
from dma_lab.seals import sealed

TITLE = "Beyond the loss"


MACHINE = {"hardware": "CPU (x86_64, GenuineIntel, AVX2)", "precision": "fp32", "torch": "2.13.0"}


def record(
    run: Path, suite: str, *cells: tuple[dict, dict], step: int = 100, weight: float = 1.0, **machine: str
) -> None:
    """Cells as evaluate.py keeps them, by its own code; the runs that ``add_run`` makes have 100 steps."""
    trained = SimpleNamespace(path=run, weights={"A": torch.tensor([weight])}, step=step)
    with EvaluationRecord(trained, suite, MACHINE | machine) as file:
        for cell, scores in cells:
            file.add(cell, scores)


def needle(length: int, depth: float, exact: float, gain: float, kind: str = "single") -> tuple[dict, dict]:
    cell = {"kind": kind, "values": "numbers", "length": length, "depth": depth, "samples": 4, "seed": 0}
    return cell, {"exact": exact, "substring": 1.0, "gain": gain, "gain_error": None}


def context(length: int, perplexity: float, stride: int | None = None) -> tuple[dict, dict]:
    cell = {"context": length, "stride": stride or length // 2, "tokens": 4096, "rope_base": 10_000.0}
    return cell, {"loss": 0.0, "perplexity": perplexity, "bits_per_byte": 0.0, "sums": "context-0.npz"}


def task(name: str, limit: int | None = None, **scores: float) -> tuple[dict, dict]:
    cell = {"task": name, "digest": "d", "max_length": 64, "limit": limit}
    return cell, {"questions": 20, **scores, "by_question": "local-0.npz"}


@pytest.fixture
def section(tmp_path):
    """The section of the only cohort."""

    def build() -> Section | None:
        (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
        return evaluations(members)

    return build


def tables(section: Section | None) -> list[dict[str, str]]:
    assert section is not None
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_runs_that_were_not_evaluated_have_no_section(add_run, section):
    add_run("mha")
    (add_run("dma") / "evaluation").mkdir()
    assert section() is None


def test_needles_lie_by_backend_depth_and_length_and_what_is_missing_is_empty(add_run, section):
    record(add_run("mha"), "needle", *(needle(n, d, d / 2, n * d / 64 - 1) for n in (128, 64) for d in (0.0, 1.0)))
    record(add_run("dma"), "needle", needle(64, 1.0, 1.0, float("nan")), needle(128, 1.0, 0.25, -3.5))
    exact, gain, scatter = section().blocks
    assert exact.rows == gain.rows == ["mha 0%", "mha 100%", "dma 0%", "dma 100%"]
    assert exact.columns == ["64 tokens", "128 tokens"]
    assert exact.values == [[0.0, 0.0], [0.5, 0.5], [None, None], [1.0, 0.25]]
    assert gain.values == [[-1.0, -1.0], [0.0, 1.0], [None, None], [None, -3.5]]
    assert (exact.reach, gain.reach) == (None, 3.5)
    # Both have depth 1. nano: 3 layers of 1 key/value head of 32; dma keeps 32 keys, each with a score and a place.
    points = {series.group: (list(series.x), list(series.y)) for series in scatter.series}
    assert points["mha"] == ([3 * 2 * 64 * 32 * 2, 3 * 2 * 128 * 32 * 2], [0.5, 0.5])
    assert points["dma"] == ([3 * 32 * (2 * 32 * 2 + 4 + 4)] * 2, [0.25, 1.0])
    assert "Rung nano, 1,000,000 tokens, seed 0, trained on contexts of 64 tokens" in exact.caption


def test_a_backend_alone_is_no_scatter(add_run, section):
    record(add_run("mha"), "needle", needle(64, 1.0, 1.0, 0.0), needle(128, 1.0, 1.0, 0.0))
    assert [block.slug for block in section().blocks] == ["needle-1-exact", "needle-1-gain"]


def test_every_kind_of_needle_has_maps_of_its_own(add_run, section):
    record(add_run("mha"), "needle", needle(64, 0.5, 1.0, 2.0), needle(64, 0.5, 0.25, 1.0, kind="multikey"))
    maps = {block.slug: block for block in section().blocks}
    assert list(maps) == ["needle-1-exact", "needle-1-gain", "needle-2-exact", "needle-2-gain"]
    assert "single, numbers" in maps["needle-1-exact"].title
    assert "multikey, numbers" in maps["needle-2-exact"].title
    assert maps["needle-2-exact"].values == [[0.25]]


def test_perplexity_is_drawn_by_context_in_order(add_run, section):
    record(add_run("mha"), "context", context(128, 9.0), context(32, 12.0), context(64, 10.0))
    record(add_run("dma"), "context", context(64, 9.5))
    (figure,) = section().blocks
    assert isinstance(figure, Figure)
    points = {series.group: (series.x, series.y) for series in figure.series if series.kind == "points"}
    assert points == {"mha": ([32, 64, 128], [12.0, 10.0, 9.0]), "dma": ([64], [9.5])}


def test_losses_by_context_of_other_points_are_in_a_table(add_run, section):
    record(add_run("mha"), "context", context(128, 9.0), context(32, 12.0))
    record(add_run("mha", model="1m", seed=1), "context", context(64, 7.0), context(128, 8.0))
    record(add_run("dma"), "context", context(64, 9.5))
    figure, table = section().blocks
    assert {series.group: series.x for series in figure.series} == {"mha": [32, 128], "dma": [64]}
    assert table.columns == ("attention", "rung", "tokens", "seed", "trained on", "32", "64", "128")
    assert sorted(table.rows) == [
        ("dma", "nano", "1,000,000", "0", "64", "", "2.2513", ""),
        ("mha", "1m", "1,000,000", "1", "64", "", "1.9459", "2.0794"),
        ("mha", "nano", "1,000,000", "0", "64", "2.4849", "", "2.1972"),
    ]


def test_contexts_scored_in_another_way_share_no_figure(add_run, section):
    record(add_run("mha"), "context", context(64, 10.0))
    record(add_run("dma"), "context", context(64, 8.0, stride=1))
    assert [{series.group for series in figure.series} for figure in section().blocks] == [{"mha"}, {"dma"}]


def test_scores_computed_on_two_makers_machines_share_no_figure(add_run, section):
    record(add_run("mha"), "context", context(64, 10.0), hardware="CPU (x86_64, GenuineIntel, AVX2)")
    record(add_run("dma"), "context", context(64, 8.0), hardware="CPU (x86_64, AuthenticAMD, AVX2)")
    assert [{series.group for series in figure.series} for figure in section().blocks] == [{"mha"}, {"dma"}]


def test_benchmarks_stand_task_by_backend_with_error_and_chance(add_run, section):
    both = {"acc": 0.4, "acc_error": 0.1, "chance": 0.25}
    record(add_run("mha"), "local", task("piqa", **both), task("cloze", exact_match=0.5))
    record(add_run("dma"), "local", task("piqa", **{**both, "acc": 0.45}))
    record(add_run("dma", "1m"), "paper", task("arc_easy", acc=0.3))
    same = {"rung": "nano", "tokens": "1,000,000", "seed": "0", "questions": "20"}
    assert tables(section()) == [
        {"task": "arc_easy", "score": "acc", **same, "rung": "1m", "chance": "", "mha": "", "dma": "0.300"},
        {"task": "cloze", "score": "exact_match", **same, "chance": "", "mha": "0.500", "dma": ""},
        {"task": "piqa", "score": "acc", **same, "chance": "0.250", "mha": "0.400 ± 0.100", "dma": "0.450 ± 0.100"},
    ]


def test_a_suite_that_is_added_says_itself_how_it_is_shown(add_run, section, monkeypatch):
    monkeypatch.setattr(suite, "_SUITES", suite.registered_suites())

    class Riddles(suite.Suite):
        name: Literal["riddles"]
        reported_as = "tasks"

    class Rhymes(suite.Suite):
        name: Literal["rhymes"]

    run = add_run("mha")
    record(run, "rhymes", task("limerick", acc=0.25))
    assert section() is None, "it names no form"
    record(run, "riddles", task("sphinx", acc=0.5))
    assert [(row["task"], row["mha"]) for row in tables(section())] == [("sphinx", "0.500")]


def test_scores_of_other_questions_or_lengths_stand_in_other_rows(add_run, section):
    members = [{"task": "a", "max_length": 64, "limit": 5}, {"task": "b", "max_length": 64, "limit": 5}]
    record(
        add_run("mha"),
        "paper",
        task("a", acc=0.5),
        ({"task": "mean", "mean_of": members}, {"questions": 10, "acc": 0.1}),
    )
    record(add_run("dma"), "paper", task("a", limit=5, acc=0.25))
    rows = [(row["task"], row["mha"], row["dma"]) for row in tables(section())]
    assert rows == [("a (limit None)", "0.500", ""), ("a (limit 5)", "", "0.250"), ("mean", "0.100", "")]


def test_scores_of_an_earlier_checkpoint_are_not_the_runs(add_run, section):
    record(run := add_run("mha"), "local", task("piqa", acc=0.1), step=50)
    assert section() is None
    record(run, "local", task("piqa", acc=0.2))
    assert [row["mha"] for row in tables(section())] == ["0.200"]


def test_scores_of_several_weights_are_none_of_them_shown_without_the_checkpoint(add_run, section):
    record(run := add_run("mha"), "local", task("piqa", acc=0.1))
    record(run, "local", task("piqa", acc=0.2), weight=2.0)
    (notice,) = section().blocks
    assert "it has scores of several weights" in notice.text


def test_scores_of_another_machine_or_precision_stand_apart(add_run, section):
    record(run := add_run("mha"), "context", context(64, 10.0))
    record(run, "context", context(64, 11.0), hardware="NVIDIA H200")
    record(run, "context", context(64, 12.0), precision="bf16")
    figures = section().blocks
    assert [[series.y for series in figure.series if series.kind == "points"] for figure in figures] == [
        [[10.0]],
        [[11.0]],
        [[12.0]],
    ]
    assert "hardware NVIDIA H200" in figures[1].caption


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", sealed({"cells": [{"cell": {"step": 100}, "scores": {}}]})),
        sealed({"cells": [], "step": 100}).replace("100", "101"),
    ],
)
def test_a_damaged_file_is_named_and_hides_no_other(add_run, section, text):
    record(run := add_run("mha"), "local", task("piqa", acc=0.2))
    (run / "evaluation/needle.json").write_text(text)
    notice, table = section().blocks
    assert isinstance(notice, Notice)
    assert isinstance(table, Table)
    assert notice.text.startswith(f"evaluation/needle.json of {run.name} cannot be read: ")


def test_the_whole_report_holds_them(add_run, tmp_path, drawn):
    record(run := add_run("mha"), "needle", needle(64, 0.0, 1.0, 2.5), needle(64, 1.0, 0.0, float("nan")))
    record(run, "context", context(32, 12.0), context(64, 10.0))
    record(run, "local", task("piqa", acc=0.25))
    write_report([tmp_path / "runs"], tmp_path / "report")
    figures = drawn()
    (gain,) = figures["needle-1-gain"]["data"]
    assert gain["z"] == [[2.5], [None]]
    assert figures["needle-1-gain"]["layout"]["plot_bgcolor"] == MISSING, "white would be a gain of 0"
    assert MISSING in (tmp_path / "report/figures/needle-1-gain.svg").read_text()
    assert (gain["zmin"], gain["zmax"], gain["text"]) == (-2.5, 2.5, [["64 tokens"], ["64 tokens"]])
    markdown = (tmp_path / "report/report.md").read_text()
    assert f"## {TITLE}" in markdown
    assert "| piqa | acc | nano |" in markdown
    for slug in ("needle-1-exact", "needle-1-gain", "context-1"):
        assert (tmp_path / "report/figures" / f"{slug}.svg").is_file()
        assert f"(figures/{slug}.svg)" in markdown
