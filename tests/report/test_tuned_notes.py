"""What the tuner said, on the page of runs that were trained with its file."""

from pathlib import Path

from dma_lab.report.archive import unpacked, write_archive
from dma_lab.report.collect import read_runs
from dma_lab.report.sections import build_document

FILE = "tuned.yaml@12345678"
EDGE = "at nano the best is the highest rate tried, so the optimum may lie beyond"


def tuned(options=None, trainings=14, notes=()):
    return {"multiplier": 0.5, "options": options or {}, "trainings": trainings, "notes": list(notes)}


def tables(*folders: Path):
    """Of a page: by section the table of how each was tuned."""
    page, _ = build_document(read_runs(*folders)[0], [], lambda step: None)
    return {
        section.title: block
        for section in page.sections
        for block in section.blocks
        if getattr(block, "title", None) == "How each was tuned"
    }


def add_tuned(add_run):
    add_run("mha", settings={"tuned": FILE}, tuning=tuned())
    options = {"score_rate": 10.0}
    add_run(
        "dma", settings={"tuned": FILE, "attention": options},
        tuning=tuned(options, 208, ["of 16 settings tried", EDGE]),
    )  # fmt: skip


def test_the_page_says_it_beside_both_comparisons_at_own_rates(add_run, tmp_path):
    for attention in ("mha", "dma"):
        add_run(attention)
    add_tuned(add_run)
    found = tables(tmp_path / "runs")
    assert found.keys() == {"Group 2, each at its own tuned rate: Verdict", "Shared rate and tuned rates"}
    for table in found.values():
        assert table.rows == [
            ("mha", "its own", "14", "-"),
            ("dma score_rate=10.0", "score_rate=10.0", "208", f"of 16 settings tried; {EDGE}"),
        ]
        assert FILE in table.caption


def test_an_archive_of_the_runs_says_it_too(add_run, tmp_path):
    add_tuned(add_run)
    write_archive([tmp_path / "runs"], tmp_path / "runs.tar.xz")
    with unpacked([tmp_path / "runs.tar.xz"]) as folders:
        (table,) = tables(*folders).values()
    assert EDGE in table.rows[1][3]


def test_runs_that_do_not_keep_it_are_named_and_shared_ones_have_no_such_table(add_run, tmp_path):
    add_run("mha")
    assert tables(tmp_path / "runs") == {}
    add_run("dma", settings={"tuned": FILE})
    (table, _) = (*tables(tmp_path / "runs").values(), None)
    assert table.rows == [("dma", "unknown", "unknown", "these runs do not keep what the tuner said of it")]
