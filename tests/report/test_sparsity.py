"""Whether sparsity acts is worked out of configs, and said."""

import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.document import Notice
from dma_lab.report.sparsity import context_in_windows


@pytest.fixture
def said(tmp_path):
    def read():
        (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
        return context_in_windows(members)

    return read


def test_two_windows_are_too_few_and_are_named(add_run, said):
    add_run("mha", context=256)
    add_run("dma", context=256)  # conf: half of the context
    add_run("swa_sinks", context=256, settings={"attention": {"window": 60}})
    notice = said()
    assert isinstance(notice, Notice)
    assert notice.text.startswith("Sparsity hardly acts: in 1 of 2 combinations")
    past = "of queries have more keys before them than that"
    assert set(notice.items) == {
        f"dma at nano: a context of 256 is 2 windows of 128, and 50% {past}",
        f"swa_sinks at nano: a context of 256 is 4 windows of 64, and 75% {past}",
    }


def test_four_windows_are_enough(add_run, said):
    add_run("mha", context=256)
    add_run("dma", context=256, settings={"attention": {"window": 32}})
    assert said() == (
        "Contexts are at least 4 windows long. dma at nano: a context of 256 is 8 windows of 32, and 88% of queries "
        "have more keys before them than that."
    )


def test_selected_blocks_that_reach_everywhere_drop_no_key(add_run, said):
    add_run("nsa", context=256)  # 16 selected blocks of 8 tokens
    assert said().items == [
        "nsa at nano: a context of 256 is 2 windows of 128, and 50% of queries have more keys before them than that"
    ]


def test_what_drops_no_key_is_not_mentioned(add_run, said):
    add_run("mha", context=256)
    assert said() is None
