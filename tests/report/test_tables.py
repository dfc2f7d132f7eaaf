"""The comparison's numbers against sums worked out here, and Markdown, page and CSV against each other."""

import csv
import json
import math
import re

import numpy as np
import pytest

from dma_lab.report.write import write_report
from dma_lab.scaling.replicates import Cell, mean_differences
from tests.report.conftest import vouch


def points(folder):
    with (folder / "points.csv").open() as stream:
        return list(csv.DictReader(stream))


def markdown_table(folder, first_column, holding=""):
    """Rows of the first table whose header begins with ``first_column``, as dictionaries."""
    lines = (folder / "report.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |") and holding in line)
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[start:]]
    rows = rows[: next((i for i, line in enumerate(lines[start:]) if not line.startswith("|")), len(rows))]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


@pytest.fixture(scope="module")
def compared(write, tmp_path_factory):
    """Three backends at one rung, two seeds."""
    root, report = (tmp_path_factory.mktemp("compared") / name for name in ("runs", "report"))
    sizes = {"peak_memory_bytes": 3 * 2**20, "tokens_per_second": 98_765.4}
    paths = {
        (attention, seed): write(root, attention, seed=seed, **sizes)
        for attention in ("mha", "dma", "nsa")
        for seed in (0, 1)
    }
    write_report([root], report)
    return paths, report


def test_the_csv_holds_what_the_runs_wrote(compared):
    paths, folder = compared
    rows = {(row["attention"], int(row["seed"])): row for row in points(folder)}
    assert rows.keys() == paths.keys()
    for key, path in paths.items():
        summary = json.loads((path / "summary.json").read_text())
        assert rows[key]["run"] == path.name
        for name in set(summary) & set(rows[key]) - {"run"}:
            assert rows[key][name] == str(summary[name])


def test_differences_to_mha_are_those_of_the_documents_with_an_interval_over_them(compared):
    paths, folder = compared
    generator = np.random.default_rng(7)
    for row in points(folder):
        if row["attention"] == "mha":
            assert row["difference"] == row["no_difference_because"] == ""
            continue
        seed = int(row["seed"])
        ours, theirs = (np.load(paths[name, seed] / "validation.npz") for name in (row["attention"], "mha"))
        delta, tokens = ours["document_nats"] - theirs["document_nats"], ours["document_tokens"]
        assert float(row["difference"]) == pytest.approx(delta.sum() / tokens.sum(), rel=1e-12)
        drawn = []
        for _ in range(4000):
            chosen = generator.integers(len(delta), size=len(delta))
            drawn.append(delta[chosen].sum() / tokens[chosen].sum())
        width = float(row["document_interval_high"]) - float(row["document_interval_low"])
        low, high = np.quantile(drawn, (0.025, 0.975))
        assert float(row["document_interval_low"]) == pytest.approx(low, abs=0.15 * width)
        assert float(row["document_interval_high"]) == pytest.approx(high, abs=0.15 * width)
        assert int(row["documents"]) == 40
        assert float(row["effective_documents"]) == pytest.approx(tokens.sum() ** 2 / (tokens**2).sum(), rel=1e-12)


def test_the_markdown_and_the_page_say_what_the_csv_says(compared):
    _, folder = compared
    rows, page = points(folder), (folder / "index.html").read_text()
    table = markdown_table(folder, "attention", holding="perplexity")
    assert len(table) == len(rows) == 6
    for shown, row in zip(table, rows, strict=True):
        assert shown["attention"] == row["backend"]
        assert shown["rung"] == row["model"]
        assert shown["tokens"] == f"{int(row['tokens']):,}"
        assert shown["loss"] == f"{float(row['val_loss']):.4f}"
        assert shown["perplexity"] == f"{math.exp(float(row['val_loss'])):.2f}"
        assert shown["bits/byte"] == f"{float(row['val_bits_per_byte']):.4f}"
        assert shown["bits/byte of text"] == f"{float(row['val_text_bits_per_byte']):.4f}"
        assert shown["parameters"] == f"{int(row['params_non_embedding']):,}"
        assert shown["FLOP exec."] == f"{float(row['flops_executed']):.2e}"
        assert shown["FLOP dense"] == f"{float(row['flops']):.2e}"
        assert (shown["tokens/s"], shown["MiB"]) == ("98,765", "3")
        if row["difference"]:
            low, high = float(row["document_interval_low"]), float(row["document_interval_high"])
            assert (
                shown["loss − MHA [document interval]"] == f"{float(row['difference']):+.4f} [{low:+.4f}, {high:+.4f}]"
            )
            assert shown["documents"] == f"{row['documents']} ({float(row['effective_documents']):.1f})"
        else:
            assert shown["loss − MHA [document interval]"] == shown["documents"] == ""
        for cell in shown.values():
            assert f">{cell}</td>" in page


def test_differences_over_trainings_are_those_of_the_runs_documents(compared):
    paths, folder = compared
    text = (folder / "report.md").read_text()
    for attention in ("dma", "nsa"):
        files = {key: np.load(path / "validation.npz") for key, path in paths.items()}
        nats = [files[attention, seed]["document_nats"] - files["mha", seed]["document_nats"] for seed in (0, 1)]
        ((own,),) = mean_differences(
            [[Cell(np.stack(nats), files["mha", 0]["document_tokens"].astype(float), "nano", 1.0)]]
        )
        low, high = own.interval
        cells = f"2 | {own.difference:+.4f} [{low:+.4f}, {high:+.4f}] | {own.spread:.4f} | {own.p_value:.2g} |"
        assert f"| {attention} | nano | 1,000,000 | {cells}" in text
        assert own.difference == pytest.approx(
            np.mean([float(row["difference"]) for row in points(folder) if row["attention"] == attention])
        )


def test_one_seed_each_gives_no_interval_over_trainings_but_the_words(add_run, tmp_path):
    for attention in ("mha", "dma"):
        add_run(attention)
    write_report([tmp_path / "runs"], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "so nothing tells what other trainings would have given" in text
    assert "std. over seeds" not in text


def test_a_rung_of_one_seed_takes_the_spread_of_a_rung_of_two_and_that_is_said(add_run, tmp_path):
    for model, seeds in (("nano", (0, 1, 2)), ("1m", (0,))):
        for seed in seeds:
            for attention in ("mha", "dma"):
                add_run(attention, model, seed=seed)
    add_run("swa")
    write_report([tmp_path / "runs"], tmp_path / "report")
    rows = {row["rung"]: row for row in markdown_table(tmp_path / "report", "attention") if row["attention"] == "dma"}
    assert rows["1m"]["seeds"] == "1"
    assert rows["1m"]["std. over seeds"] == f"~{rows['nano']['std. over seeds']}"
    (alone,) = (row for row in markdown_table(tmp_path / "report", "attention") if row["attention"] == "swa")
    assert alone["mean loss − MHA [95 %]"].endswith(" no interval")
    assert (alone["std. over seeds"], alone["p"]) == ("unknown", "-")


def test_runs_that_scored_other_tokens_are_not_subtracted(add_run, tmp_path):
    add_run("mha")
    path = add_run("dma")
    scores = dict(np.load(path / "validation.npz"))
    scores["document_tokens"][[0, 1]] += [1, -1]
    np.savez(path / "validation.npz", **scores)
    vouch(path)
    write_report([tmp_path / "runs"], tmp_path / "report")
    reasons = {row["attention"]: row["no_difference_because"] for row in points(tmp_path / "report")}
    assert reasons == {
        "mha": "",
        "dma": "it and the MHA run scored different tokens",
    }


def test_figures_are_files_and_those_of_an_older_report_go(add_run, tmp_path):
    add_run("mha")
    extra = add_run("mha", "1m", data_fingerprint="b" * 32)
    output = tmp_path / "report"
    write_report([tmp_path / "runs"], output)
    mine = output / "figures" / "mine.png"
    mine.touch()
    assert (output / "figures" / "group2-training.svg").exists()
    for file in extra.iterdir():
        file.unlink()
    write_report([tmp_path / "runs"], output)
    linked = set(re.findall(r"\(figures/(.*?)\.svg\)", (output / "report.md").read_text()))
    assert linked == {"evidence", "loss-executed", "loss-dense-equivalent", "training", "position"}
    files = {path.name for path in (output / "figures").iterdir()} - {mine.name}
    assert files == {f"{slug}.{kind}" for slug in linked for kind in ("svg", "png")}
    assert mine.exists(), "a file that no report wrote stays"


def test_the_same_runs_give_the_same_report(add_run, tmp_path):
    add_run("mha")
    add_run("dma")
    for name in ("first", "second"):
        write_report([tmp_path / "runs"], tmp_path / name)
    files = [file.relative_to(tmp_path / "first") for file in (tmp_path / "first").rglob("*") if file.is_file()]
    assert len(files) == 3 + 2 * 5
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_runs_whose_weights_are_not_here_are_one_line(compared):
    said = [line for line in (compared[1] / "report.md").read_text().splitlines() if "No lifetimes" in line]
    assert said == ["> **Note.** No lifetimes of 2 of 2 runs: their weights are not here."]
