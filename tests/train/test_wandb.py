"""Weights & Biases, offline: one wandb run a run directory, every step in it once, and an agent's run is the first."""

import json
import struct
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from dma_lab.entry_point import agents_arguments
from dma_lab.train.branches import fit_branches
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.fit_run import fit_run

SHORT = ["attention=mha", "logger=wandb", "tokens=10240", "trainer.log_every=3", "trainer.checkpoint_every=4"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


def records(file: Path):
    """What an offline run's file holds: a header of 7 bytes, then LevelDB's log format."""
    data, at, held = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(held)
            held = b""


def logged(run: str) -> tuple[list, list[dict]]:
    """Of the offline records in a run's directory, first to last: (id, group, sweep) of each, and all logged lines."""
    runs, lines = [], []
    for file in sorted(Path(run).glob("wandb/offline-run-*/run-*.wandb")):
        for record in records(file):
            if record.HasField("run") and (new := record.run) and not any(new.run_id == old[0] for old in runs):
                runs.append((new.run_id, new.run_group, new.sweep_id))
            if record.HasField("history"):
                items = record.history.item
                lines.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return runs, lines


def assert_all_lines_once(run: str) -> None:
    _, lines = logged(run)
    written = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in written]
    for ours, theirs in zip(lines, written, strict=True):
        assert {name: ours[name] for name in theirs} == theirs
        assert ours["_step"] == ours["step"]
        assert ours["tokens_per_second"] > 0


def test_runs_of_one_process_are_wandb_runs_of_their_own(read, overrides):
    """A run, and two branches of another seed: three directories, three wandb runs, all lines in each."""
    alone = [fit_run(read([*overrides, *SHORT]))]
    branches = fit_branches(read([*overrides, *SHORT, "seed=1", "schedule.branches=[0.5,1]"]))
    assert branches[1].steps_shared > 3, "its first lines are the shorter one's"
    assert len(list(Path(alone[0].run).parent.glob("*/wandb/offline-run-*"))) == 3
    for summary in (*alone, *branches):
        name = Path(summary.run).name
        assert logged(summary.run)[0] == [(name, name.rpartition("-")[0], "")]
        assert_all_lines_once(summary.run)
    assert wandb.run is None


def test_a_continued_run_logs_no_step_twice(read, overrides, monkeypatch):
    """Cut after step 10: lines to step 9 are logged, the checkpoint is of step 8."""
    settings = read([*overrides, *SHORT])

    def cut(self, trainer, *_):
        if trainer.global_step == 10:
            raise SystemExit(1)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_train_batch_start", cut, raising=False)
        with pytest.raises(SystemExit):
            fit_run(settings)
    summary = fit_run(settings)
    assert len(list(Path(summary.run).glob("wandb/offline-run-*"))) == 2
    assert [run for run, *_ in logged(summary.run)[0]] == [Path(summary.run).name]
    assert_all_lines_once(summary.run)


def test_an_agents_run_is_the_first_of_the_process(read, overrides, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    wandb.teardown()
    first, second = fit_branches(read([*overrides, *SHORT, "schedule.branches=[0.5,1]"]))
    group = Path(second.run).name.rpartition("-")[0]
    assert logged(first.run)[0] == [("agents1", group, "sweep1")]
    assert logged(second.run)[0] == [(Path(second.run).name, group, "")]
    for summary in (first, second):
        assert_all_lines_once(summary.run)


def test_null_of_a_sweep_file_is_null(read, overrides, monkeypatch):
    given = ["tokens=None", "schedule.branches=[0.5, None]", "study=NoneSuch", "model=14k"]
    assert agents_arguments(given) == given
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert agents_arguments(given) == ["tokens=null", "schedule.branches=[0.5, null]", "study=NoneSuch", "model=14k"]
    assert read([*overrides, *agents_arguments(["tokens=None"])]).tokens is None
