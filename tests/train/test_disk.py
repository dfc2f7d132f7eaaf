"""What a run writes is on the disk before it has its name; an error of the disk is a sentence, and loses nothing."""

import errno
import gc
import os
import stat
from pathlib import Path

import pytest

from dma_lab.messages import MishapError
from dma_lab.train.fit_run import fit_run
from dma_lab.train.runs import RunDirectory
from tests.train.damage import continued


def test_errors_of_the_disk_are_sentences_and_what_was_saved_continues(settings_in, uncut, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / Path(uncut.run).name)
    fsync = os.fsync
    # At another moment each: in the first summary, in checkpoints, in their directory's list of names.
    for moment, number in enumerate(
        (errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE, errno.ENOSPC, errno.EDQUOT), start=3
    ):
        calls = iter(range(1, 1000))

        def failing(descriptor, moment=moment, number=number, calls=calls):
            if next(calls) == moment + 2:
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(MishapError) as mishap:
            fit_run(settings_in(tmp_path))
        monkeypatch.undo()
        gc.collect()
        assert os.strerror(number) in str(mishap.value)
        assert "what was saved before is whole" in str(mishap.value)
        assert "\n" not in str(mishap.value)
        assert mishap.value.exit_status == 1
        assert not list(run.path.rglob("*.partial*"))
    continued(run, settings_in(tmp_path), uncut)


def test_all_that_a_run_writes_is_on_the_disk_before_it_has_its_name(settings_in, uncut, tmp_path, monkeypatch):
    synced, moved, lines_at_checkpoint = set(), [], []
    fsync, replace = os.fsync, os.replace

    def synced_now(descriptor):
        status = os.fstat(descriptor)
        synced.add(status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            moved[:] = [path for path in moved if os.stat(path.parent).st_ino != status.st_ino]
        fsync(descriptor)

    def replaced(source, target):
        assert os.stat(source).st_ino in synced, target
        moved.append(Path(target))
        if Path(target).name == "last.ckpt":
            lines_at_checkpoint.append({run.metrics.stat().st_ino, run.speed.stat().st_ino} <= synced)
        replace(source, target)

    run = RunDirectory(tmp_path / Path(uncut.run).name)
    monkeypatch.setattr(os, "fsync", synced_now)
    monkeypatch.setattr(os, "replace", replaced)
    fit_run(settings_in(tmp_path), keep_step=8)
    assert not moved, "and its directory after that"
    assert lines_at_checkpoint == [True] * 3
    files = [file for file in run.path.rglob("*") if file.is_file() and file.name != "run.lock"]
    assert {"last.ckpt", "previous.ckpt", "stable.ckpt", "validation.npz", "config.yaml"} <= {f.name for f in files}
    assert {file.name for file in files if file.stat().st_ino not in synced} == set()
    mask = os.umask(0)
    os.umask(mask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}
