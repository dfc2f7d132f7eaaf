"""A run's summary: what is read is what was written, and what cannot be used is named by its keys."""

import json
from dataclasses import replace
from typing import Any

import pytest

from dma_lab.run_summary import Summary, UnusableSummaryError
from tests.made_up import summary, summary_of, write_summary

# Of stages and ends that no one run has together.
OF_SOME = {
    "recipe_learning_rate": 0.01,
    "tuning": {"multiplier": 2.0, "options": {"window": 16}, "trainings": 20, "notes": ["at an edge"]},
    "init_from_digest": "d" * 32,
    "init_from_anew": [],
    "init_from_left": ["layers.0.bias"],
    "earlier_machines": ["another"],
    "flops": 6 * 10**23,  # more than 64 bits hold
    "step": 100,
    "steps_skipped": 0,
    "mfu_executed": 0.25,
    "mfu_dense_equivalent": 0.5,
    "seconds": {"steps": 1.5},
    "val_loss_at_start": 3.5,
    "val_accuracy": 0.5,
    "val_accuracy_by_pairs": {"2": 0.5},
    "val_accuracy_by_gap": {"5-8": 0.5},
    "reason": "no memory",
    "signal": 15,
    "batch": {"step": 10, "sequences": [72, 79], "documents": [1, 2]},
    "process": {"host": "here", "pid": 4711, "since": 1.5, "device": "cpu"},
    "a_key_of_tomorrow": [1, None],
}


def written(run) -> dict[str, Any]:
    content = json.loads((run / "summary.json").read_text())
    return {name: value for name, value in content.items() if name not in ("digest", "files")}


def test_what_is_read_and_written_again_has_every_key(tmp_path):
    content = summary_of(tmp_path, **OF_SOME)
    write_summary(tmp_path, content)
    read = Summary.read(tmp_path)
    assert (read.tuning.multiplier, read.earlier_machines, read.init_from_anew) == (2.0, ("another",), ())
    assert read.flops == content["flops"]
    read.write(tmp_path)
    assert written(tmp_path) == content
    assert Summary.read(tmp_path) == read


def test_what_is_not_known_has_no_key_and_a_rate_that_is_not_is_null(tmp_path):
    running = summary(tmp_path, status="running", tokens_per_second=None)
    running.write(tmp_path)
    assert not written(tmp_path).keys() & {"tokens_per_second", "tuning", "process", "finished_before", "further"}
    replace(running, status="finished", seconds={"compiling": 1.5}, finished_before=True).write(tmp_path)
    assert written(tmp_path)["tokens_per_second"] is None, "no step was taken after compiling"
    assert Summary.read(tmp_path).tokens_per_second is None


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({"seed": "0"}, ["seed"]),
        ({"tokens": 2.5, "compiled": 1, "earlier_machines": "another"}, ["tokens", "compiled", "earlier_machines"]),
        ({"steps": None}, ["steps"]),
        ({"status": "stopped"}, ["status"]),
        ({"val_loss": None, "d_ff": "96"}, ["val_loss", "d_ff"]),
        ({"val_bits_per_byte": "?"}, ["val_bits_per_byte"]),
        ({"tuning": {"multiplier": 2.0}}, ["tuning"]),
    ],
    ids=str,
)
def test_keys_that_cannot_be_used_are_named(tmp_path, changed, keys):
    write_summary(tmp_path, summary_of(tmp_path, **changed))
    with pytest.raises(UnusableSummaryError) as error:
        Summary.read(tmp_path)
    assert error.value.keys == keys
    assert str(error.value) == f"it gives no usable {', '.join(keys)}"


def test_keys_that_are_missing_are_named_and_of_an_unfinished_run_fewer(tmp_path):
    outcome = ["val_loss", "val_perplexity", "tokens_per_second", "peak_memory_bytes"]
    content = {name: value for name, value in summary_of(tmp_path).items() if name not in ("git_commit", *outcome)}
    for status, keys in (("finished", [*outcome, "git_commit"]), ("running", ["git_commit"])):
        write_summary(tmp_path, content | {"status": status})
        with pytest.raises(UnusableSummaryError) as error:
            Summary.read(tmp_path)
        assert error.value.keys == keys
