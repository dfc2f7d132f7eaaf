"""Run directories: identity, rewinding, one writer at a time, and disks that take no more."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dma_lab.messages import MishapError, UserError
from dma_lab.train.fit_run import fit_run
from dma_lab.train.identity import identity
from dma_lab.train.runs import RunDirectory
from tests.made_up import summary


def test_identity_depends_on_content_and_not_on_order():
    assert identity({"a": 1, "b": [2, 3]}) == identity({"b": [2, 3], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


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
    run.write_summary(summary(tmp_path, status="running"))
    run.write_summary(summary(tmp_path, val_loss=2.5))
    assert run.summary() == summary(tmp_path, val_loss=2.5)
    assert json.loads((tmp_path / "summary.json").read_text())["val_loss"] == 2.5
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_directory_that_cannot_be_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"taken/run cannot be written \(Not a directory\): set output_dir="):
        RunDirectory(tmp_path / "taken" / "run").claimed().__enter__()


def test_a_full_disk_is_named_and_what_was_saved_before_continues(read, overrides):
    settings = read([*overrides, "trainer.checkpoint_every=20"])
    uncut = fit_run(settings)
    run = RunDirectory(Path(uncut.run))
    before = run.metrics.read_bytes(), torch.load(run.checkpoint, weights_only=True)["state_dict"]
    shutil.rmtree(run.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # a checkpoint has twice that
    try:
        with pytest.raises(UserError, match=r"No room left for .*File too large.*the same command"):
            fit_run(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.summary().status == "failed"
    assert not run.checkpoint.exists()
    assert fit_run(settings).val_loss == uncut.val_loss
    assert run.metrics.read_bytes() == before[0]
    after = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], weight) for name, weight in before[1].items())


def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # which names no file

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(MishapError, match=r"run\.lock cannot be locked \(No locks available\), .*set output_dir"):
        RunDirectory(tmp_path / "run").claimed().__enter__()
