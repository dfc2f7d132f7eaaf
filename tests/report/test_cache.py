"""Recall against what the decoding cache holds."""

from dma_lab.report.cache import recall_against_cache
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs


def test_recall_lies_by_the_bytes_that_are_held_at_the_end_of_an_example(add_run, tmp_path):
    for name, accuracy in (("mha", 0.9), ("swa", 0.4)):
        add_run(name, val_accuracy=accuracy, val_accuracy_by_gap={"1-2": accuracy})
    add_run("dma")  # trained on something else
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    figure = recall_against_cache(members)
    points = {series.group: (list(series.x), list(series.y)) for series in figure.series}
    # nano: 3 layers of 1 key/value head of 32, keys and values in 2 bytes; 64 tokens, of which swa holds half.
    assert points == {"mha": ([3 * 2 * 64 * 32 * 2], [0.9]), "swa": ([3 * 2 * 32 * 32 * 2], [0.4])}
    assert recall_against_cache([run for run in members if run.attention != "swa"]) is None
