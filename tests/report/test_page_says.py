"""What the report says plainly: what it lacks, what it cannot compare, and what it will not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from dma_lab.report.collect import read_runs
from dma_lab.report.markdown import write_markdown
from dma_lab.report.page import write_page
from dma_lab.report.sections import build_document
from dma_lab.report.tables import write_points
from tests.report.conftest import vouch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def report(tmp_path):
    """Writes page and Markdown (the pictures, which take the time, are left out), and returns the Markdown."""

    def write() -> str:
        runs, problems = read_runs(tmp_path / "runs")
        document, compared = build_document(runs, problems, lambda step: None)
        (tmp_path / "report").mkdir()
        write_points(tmp_path / "report" / "points.csv", compared)
        write_page(document, tmp_path / "report" / "index.html")
        write_markdown(document, tmp_path / "report" / "report.md")
        return (tmp_path / "report" / "report.md").read_text()

    return write


def test_all_is_well_when_all_is_well(add_run, report):
    for attention in ("mha", "dma"):
        add_run(attention)
    text = report()
    assert "2 of 2 runs finished: mha, dma." in text
    assert "All runs are finished, of one data set and one commit." in text


def test_one_backend_alone_is_compared_with_nothing(add_run, report):
    add_run("dma")
    assert "Only dma has finished runs here: there is nothing to compare it with." in report()


def test_of_mha_alone_it_is_not_said_that_it_is_missing(add_run, report):
    add_run("mha")
    text = report()
    assert "Only MHA is finished here, so there is no backend to hold against it." in text
    assert "No MHA run" not in text


def test_without_mha_there_is_no_difference_to_it(add_run, report):
    add_run("dma")
    add_run("swa")
    text = report()
    assert "No MHA run is finished here, so no difference to MHA can be given." in text
    assert "No MHA run is finished here, so nothing is said of any backend relative to it." in text


def test_mixed_fingerprints_are_refused_and_each_is_shown_alone(add_run, report):
    add_run("mha")
    add_run("dma", data_fingerprint="b" * 32)
    text = report()
    assert "> - aaaaaaaa (1 run)\n> - bbbbbbbb (1 run)" in text
    assert "The runs form 2 groups that are not compared with each other." in text
    assert "Only mha has finished runs here" in text
    assert "Only dma has finished runs here" in text
    assert "\n## Group 2: Comparison" in text


def test_mixed_commits_and_uncommitted_code_are_said(add_run, report):
    add_run("mha")
    add_run("dma", git_commit="d" * 40 + "-dirty")
    text = report()
    assert "The finished runs come from 2 commits." in text
    assert "> - cccccccccc (1 run)\n> - dddddddddd-dirty (1 run)" in text
    assert "Some runs come from code that no commit holds" in text


def test_failed_cut_and_damaged_runs_are_listed_and_count_for_nothing(add_run, report, tmp_path):
    add_run("mha")
    failed = add_run("dma", status="failed", reason="ValueError: no")
    cut = add_run("swa", status="interrupted", step=12)
    damaged = add_run("nsa")
    (damaged / "summary.json").write_text("{")
    text = report()
    assert "1 of 4 runs finished" in text
    assert f"> - {failed.name}: failed: ValueError: no" in text
    assert f"> - {cut.name}: interrupted at step 12 of 100" in text
    assert f"> - {damaged.name}: unreadable, summary.json cannot be believed" in text
    assert "> - dma at rung nano, 1,000,000 tokens, seed 0: failed: ValueError: no" in text
    assert len((tmp_path / "report" / "points.csv").read_text().splitlines()) == 2


def test_points_that_only_some_backends_have_are_missed(add_run, report):
    add_run("mha")
    add_run("mha", "1m")
    add_run("dma")
    assert "> - dma at rung 1m, 1,000,000 tokens, seed 0: not run" in report()


def test_a_group_without_a_finished_run_says_so(add_run, report):
    add_run("mha", status="running", val_loss=None)
    text = report()
    assert "No run of this group is finished." in text
    assert "0 of 1 run finished" in text


def test_nothing_but_damage_still_makes_a_report(add_run, report):
    (add_run() / "summary.json").write_text("[]")
    assert "0 of 1 run finished: none can be read." in report()


def test_fewer_points_than_a_law_has_parameters_give_no_law(add_run, report):
    for tokens in (500_000, 1_000_000, 2_000_000):
        for seed in (0, 1):
            add_run("mha", tokens=tokens, seed=seed)
    text = report()
    assert "> - mha: 6 runs of 1 sizes and 3 numbers of tokens, 3 distinct points, cannot fix the law's 5" in text
    assert "E + A/N^α" not in text


def test_five_budgets_of_one_size_give_no_law(add_run, report):
    for tokens in (1, 2, 3, 4, 5):
        add_run("mha", tokens=tokens * 100_000)
    assert "> - mha: 5 runs of 1 sizes and 5 numbers of tokens, 5 distinct points, cannot fix" in report()


def test_contexts_that_differ_between_rungs_are_said(add_run, report):
    add_run("mha")
    add_run("mha", "1m", context=128)
    assert "Contexts differ (64, 128 tokens)." in report()


def test_of_a_learning_rate_sweep_the_best_run_stands_for_its_point(add_run, report, drawn):
    losses = []
    for rate in (0.01, 0.02, 0.04):
        path = add_run("mha", settings={"optimizer": {"learning_rate": rate}}, val_loss=4 + abs(rate - 0.02))
        losses.append(json.loads((path / "summary.json").read_text())["val_loss"])
    text = report()
    assert "2 finished runs differ from another in their learning rate or warm-up alone" in text
    figures = drawn()
    (trace,) = figures["loss-executed"]["data"]
    assert trace["y"] == [min(losses)]


def test_it_says_what_tokenizers_lose(add_run, report):
    add_run("mha", val_bits_per_byte=None, val_text_bits_per_byte=None, tokenizer_loses="capital letters, accents")
    text = report()
    assert "Tokenizers of these runs lose text, which costs nothing: there are no bits per byte" in text
    assert "capital letters, accents (1 run)" in text


FILLED = {"data": {"filler": "random"}}


def test_recall_runs_show_accuracy_in_place_of_bits_per_byte(add_run, report, drawn):
    gaps = {"3-4": 0.9, "5-8": 0.5}
    for attention in ("mha", "dma"):
        recall = {"val_accuracy": 0.7, "val_accuracy_by_gap": gaps}
        run = add_run(attention, val_bits_per_byte=None, val_text_bits_per_byte=None, **recall)
        OmegaConf.save(OmegaConf.merge(OmegaConf.load(run / "config.yaml"), FILLED), run / "config.yaml")
        vouch(run)
    text = report()
    assert "| perplexity | accuracy |" in text
    assert "bits/byte" not in text
    assert "stands random filler (data.filler)" in text
    figures = drawn()
    marks = [trace for trace in figures["recall"]["data"] if trace["mode"] == "markers"]
    assert [(trace["name"], trace["x"], trace["y"]) for trace in marks] == [
        ("mha", [4, 8], [0.9, 0.5]),
        ("dma", [4, 8], [0.9, 0.5]),
    ]


def test_loss_by_position_is_the_mean_over_each_bins_tokens(add_run, report, drawn):
    scores = np.load(add_run("mha") / "validation.npz")
    report()
    figures = drawn()
    (marks,) = (trace for trace in figures["position"]["data"] if trace["mode"] == "markers")
    nats, tokens = scores["position_nats"], scores["position_tokens"]
    seen = 0
    for text, y in zip(marks["text"], marks["y"], strict=True):
        first, last = (int(word) for word in text.split(",")[0].removeprefix("positions ").split(" to "))
        assert first == seen + 1, "bins follow each other without a gap"
        mean = nats[first - 1 : last].sum() / tokens[first - 1 : last].sum()
        assert y == pytest.approx(mean, rel=5e-6), "to the six digits that the page holds"
        seen = last
    assert seen == len(nats)


def test_what_runs_say_of_themselves_cannot_break_out_of_the_page(add_run, report, tmp_path):
    evil = "</script><script>alert(1)</script> | <b>x</b>"
    add_run("mha", hardware=evil)
    add_run("dma", model=evil, params_non_embedding=100, status="failed", reason=evil)
    text = report()
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<script") == page.count("</script>") == 3
    assert "<b>x" not in page
    assert "\\| <b>x</b>" in text, "a pipe would open another cell"


def test_the_entry_point_says_where_the_report_lies_and_refuses_an_empty_directory(scripts, add_run, tmp_path):
    add_run()
    done, refused = (
        scripts.run("report.py", [f"output_dir={tmp_path / 'report'}", f"runs={runs}"])
        for runs in (tmp_path / "runs", tmp_path / "nothing")
    )
    assert (done.returncode, done.stdout) == (0, f"report: {tmp_path / 'report' / 'index.html'}\n")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: runs=")
    assert "Traceback" not in refused.stderr
