"""Run directories: identity, rewinding, and one writer at a time."""

import json
import os
import signal
import subprocess
import sys

import pytest

from dma_lab.messages import UserError
from dma_lab.train.runs import RunDirectory, identity


def test_identity_depends_on_content_and_not_on_order():
    assert identity({"a": 1, "b": [2, 3]}) == identity({"b": [2, 3], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


def test_rewind_drops_later_lines_and_a_torn_one(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (5, 10, 15):
        run.append(run.metrics, {"step": step, "loss": 1.0 / step})
    kept = run.metrics.read_text().splitlines(keepends=True)[:2]
    with run.metrics.open("a") as stream:
        stream.write('{"step": 20, "lo')
    run.rewind(10)
    assert run.metrics.read_text() == "".join(kept)


def test_a_run_is_claimed_by_one_process_and_freed_by_its_death(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib; from dma_lab.train.runs import RunDirectory\n"
            "with RunDirectory(pathlib.Path(sys.argv[1])).claimed(): print('held', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process"), RunDirectory(tmp_path).claimed():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with RunDirectory(tmp_path).claimed():
        pass
    with RunDirectory(tmp_path).claimed():  # and by the context's end
        pass


def test_a_summary_is_replaced_as_a_whole(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.summary() is None
    run.write_summary({"status": "running"})
    run.write_summary({"status": "finished", "val_loss": 2.5})
    assert run.summary() == {"status": "finished", "val_loss": 2.5}
    assert json.loads((tmp_path / "summary.json").read_text())["val_loss"] == 2.5
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
