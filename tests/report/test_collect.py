"""What is read of run directories, whole and damaged, and which of them may stand side by side."""

import fcntl
import json
import os

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import Run, Unreadable, read_runs
from tests.report.conftest import vouch


def read_one(path) -> Run | Unreadable:
    runs, problems = read_runs(path.parent)
    (only,) = [*runs, *problems]
    return only


@pytest.mark.parametrize(
    "differing",
    [
        {"data_fingerprint": "b" * 32},
        {"study": "another"},
        {"match": "flops"},
        {"precision": "bf16"},
        {"settings": {"trainer": {"validation_tokens": 8192}}},
        {"settings": {"optimizer": {"weight_decay": 0.2}}},
        {"settings": {"a_setting_of_tomorrow": 3}},
    ],
    ids=str,
)
def test_runs_that_differ_in_more_than_the_attention_are_never_in_one_cohort(add_run, tmp_path, differing):
    add_run("mha")
    add_run("dma", **differing)
    add_run("swa")
    runs, _ = read_runs(tmp_path / "runs")
    members = [{run.attention for run in group} for group in cohorts(runs).values()]
    assert sorted(members, key=len) == [{"dma"}, {"mha", "swa"}]


def test_variants_of_a_backend_are_backends_of_their_own(add_run, tmp_path):
    add_run("mha")
    for window in (32, 64):
        add_run("dma", settings={"attention": {"window": window}})
    add_run("swa", context=128)
    runs, _ = read_runs(tmp_path / "runs")
    (members,) = cohorts(runs).values()
    assert [run.backend for run in members] == [
        "mha context=64",
        "dma window=32 context=64",
        "dma window=64 context=64",
        "swa context=128",
    ]


def test_runs_are_ordered_by_size_budget_seed_and_mha_first(add_run, tmp_path):
    for model in ("3m", "nano"):
        for attention in ("dma", "mha"):
            for tokens in (2_000_000, 500_000):
                add_run(attention, model, tokens, seed=1)
    runs, _ = read_runs(tmp_path / "runs")
    assert [(run.rung, run.summary.tokens, run.attention) for run in runs] == [
        (model, tokens, attention)
        for model in ("nano", "3m")
        for tokens in (500_000, 2_000_000)
        for attention in ("mha", "dma")
    ]


def cut_summary(path):
    (path / "summary.json").write_text((path / "summary.json").read_text()[:80])


def flip_summary(path):
    text = (path / "summary.json").read_text()
    (path / "summary.json").write_text(text.replace('"tokens": 1', '"tokens": 2'))


def change_scores(path):
    scores = dict(np.load(path / "validation.npz"))
    scores["document_nats"][3] *= 2
    np.savez(path / "validation.npz", **scores)


def remove_config(path):
    (path / "config.yaml").unlink()


def empty_config(path):
    (path / "config.yaml").write_text("")
    vouch(path)


def spoil_metrics(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1][:10]
    (path / "metrics.jsonl").write_text("\n".join(lines))


def remove_summary(path):
    (path / "run.lock").touch()
    (path / "summary.json").unlink()


def binary_summary(path):
    (path / "summary.json").write_bytes(os.urandom(100))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_summary, "summary.json cannot be believed: Unterminated string"),
        (flip_summary, "summary.json cannot be believed: its content is not what was written"),
        (remove_config, "config.yaml beside it is missing"),
        (change_scores, "validation.npz beside it is not what was written"),
        (empty_config, "config.yaml lacks attention, model.name, optimizer.learning_rate, schedule, trainer.valid"),
        (spoil_metrics, "metrics.jsonl beside it is not what was written"),
        (remove_summary, "summary.json is missing"),
        (binary_summary, "summary.json cannot be believed"),
    ],
)
def test_a_damaged_directory_is_named_with_its_damage(add_run, damage, said):
    path = add_run()
    damage(path)
    problem = read_one(path)
    assert isinstance(problem, Unreadable)
    assert said in problem.reason
    assert problem.name == path.name


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ({"val_loss": None}, "val_loss"),
        ({"git_commit": 3}, "git_commit"),
        ({"cpu_capability": None, "earlier_machines": None}, "cpu_capability, earlier_machines"),
        ({"flops": "many"}, "flops"),
        ({"val_bits_per_byte": "?"}, "val_bits_per_byte"),
    ],
)
def test_a_summary_without_what_the_report_needs_is_named(add_run, summary, said):
    problem = read_one(add_run(**summary))
    assert isinstance(problem, Unreadable)
    assert problem.reason == f"summary.json gives no usable {said}"


def test_a_run_that_is_being_written_shows_its_whole_lines(add_run):
    path = add_run(status="running")
    (path / "metrics.jsonl").write_bytes((path / "metrics.jsonl").read_bytes()[:-20])
    run = read_one(path)
    assert isinstance(run, Run)
    assert len(run.metrics) == 3
    spoil_metrics(path)
    assert "line 2 of metrics.jsonl is damaged" in read_one(path).reason


@pytest.mark.parametrize(
    ("summary", "status"),
    [
        (
            {"status": "diverged", "step": 7, "reason": "the loss is nan", "val_loss": None},
            "diverged at step 7: the loss is nan",
        ),
        (
            {"status": "failed", "reason": "RuntimeError: no\n\nmemory\n", "val_loss": None},
            "failed: RuntimeError: no memory",
        ),
        ({"status": "interrupted", "step": 40}, "interrupted at step 40 of 100; the same command continues it"),
        ({"status": "running"}, "killed before its end; the same command continues it"),
    ],
)
def test_what_became_of_an_unfinished_run_is_said(add_run, summary, status):
    path = add_run(**summary)
    (path / "run.lock").touch()
    run = read_one(path)
    assert isinstance(run, Run)
    assert run.status == status
    assert not run.finished


def test_a_run_that_a_process_holds_is_running(add_run):
    path = add_run(status="running")
    with (path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = read_one(path)
    assert isinstance(run, Run)
    assert run.status == "running"


def test_runs_in_folders_of_their_own_are_told_apart(add_run, write, tmp_path):
    for folder in ("first", "second"):
        write(tmp_path / "runs" / folder)
    runs, _ = read_runs(tmp_path / "runs")
    assert {run.name.split("/")[0] for run in runs} == {"first", "second"}


def test_a_directory_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such directory"):
        read_runs(tmp_path / "nowhere")
    (tmp_path / "notes.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="it holds no run"):
        read_runs(tmp_path)
