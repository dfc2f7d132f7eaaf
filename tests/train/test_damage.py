"""A run whose directory was damaged ends as the undamaged one, or says in a sentence why it cannot."""

import dataclasses
import errno
import gc
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dma_lab.attention import AttentionConfig
from dma_lab.checkpoints import read_checkpoint, recorded, write_checkpoint
from dma_lab.messages import MishapError, UserError
from dma_lab.report.collect import read_run
from dma_lab.run_summary import read_summary, write_summary
from dma_lab.train.continuing import prepare_start
from dma_lab.train.fit_run import fit_run
from dma_lab.train.identity import state_identity
from dma_lab.train.runs import RunDirectory

# 12 steps: lines at 2, 4, …, checkpoints at 4, 8 and 12; cut after the line of step 10.
SHORT = [
    "attention=mha",
    "tokens=6144",
    "trainer.log_every=2",
    "trainer.validate_every=12",
    "trainer.checkpoint_every=4",
]
OF_THE_MOMENT = {"tokens_per_second", "seconds", "peak_memory_bytes"}


class CutError(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(scope="module")
def settings_in(tiny_run):
    from tests.train.conftest import settings_of

    return lambda folder, *more: settings_of([*tiny_run, *SHORT, f"output_dir={folder}", *more])


@pytest.fixture(scope="module")
def uncut(settings_in, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "nowhere"))  # nothing passes through it
        return fit_run(settings_in(folder))


@pytest.fixture(scope="module")
def cut_once(settings_in, uncut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    append = RunDirectory.append

    def appended(run, file, line):
        append(run, file, line)
        if file == run.speed and line["step"] == 10:
            raise CutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "append", appended)
        with pytest.raises(CutError):
            fit_run(settings_in(folder))
    gc.collect()  # the error's frames hold the run's lock, which a killed process would have let go
    run = folder / Path(uncut["run"]).name
    summary = read_summary(run)
    write_summary(run, summary | {"status": "running"})
    return run


@pytest.fixture
def cut(cut_once, tmp_path):
    return RunDirectory(Path(shutil.copytree(cut_once, tmp_path / cut_once.name)))


@pytest.fixture
def own_identity(cut):
    identity = recorded(read_checkpoint(cut.checkpoint))["identity"]
    return lambda step: identity


def continued(run: RunDirectory, settings, uncut) -> None:
    """Continues ``run``, which ends as the uncut one: lines, weights, summary."""
    summary = fit_run(settings)
    theirs = RunDirectory(Path(uncut["run"]))
    assert run.metrics.read_bytes() == theirs.metrics.read_bytes()
    steps = [json.loads(line)["step"] for line in run.speed.read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]
    ours, other = (read_checkpoint(one.checkpoint)["state_dict"] for one in (run, theirs))
    assert all(torch.equal(ours[name], weight) for name, weight in other.items())
    assert summary == read_summary(run.path)
    leave_out = OF_THE_MOMENT | {"run"}
    assert {k: v for k, v in summary.items() if k not in leave_out} == {
        k: v for k, v in uncut.items() if k not in leave_out
    }
    assert OmegaConf.load(run.path / "config.yaml").seed == 0


def not_finite(file: Path) -> None:
    content = read_checkpoint(file)
    next(iter(content["state_dict"].values())).view(-1)[3] = float("nan")
    write_checkpoint(content, file)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "a bit flipped": flipped,
    "not finite": not_finite,
    "garbage": lambda file: file.write_bytes(b"\xff\xfe" * 700),
    "lost": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(cut, uncut, own_identity, capsys, how):
    DAMAGE[how](cut.checkpoint)
    previous = cut.previous.read_bytes()
    capsys.readouterr()
    prepare_start(cut, own_identity)
    said = capsys.readouterr().err
    assert ("last.ckpt is damaged" in said) == (how != "lost")
    assert "continues from previous.ckpt, of step 4" in said
    assert cut.checkpoint.read_bytes() == previous
    assert not cut.previous.exists()
    assert cut.metrics.read_bytes() == b"".join(Path(uncut["run"], "metrics.jsonl").read_bytes().splitlines(True)[:2])


def test_a_run_continued_from_the_previous_checkpoint_ends_as_the_uncut_one(cut, settings_in, uncut, tmp_path):
    os.truncate(cut.checkpoint, 1000)
    left = [cut.path / "summary.json.partial-77", cut.checkpoint.with_name("last.partial")]
    for file in left:
        file.touch()
    continued(cut, settings_in(tmp_path), uncut)
    assert not any(file.exists() for file in left)
    assert read_checkpoint(cut.previous)["global_step"] == 8


def test_with_no_checkpoint_left_training_begins_again_and_says_so(cut, settings_in, uncut, tmp_path, capsys):
    flipped(cut.checkpoint)
    os.truncate(cut.previous, 100)
    capsys.readouterr()
    continued(cut, settings_in(tmp_path), uncut)
    said = capsys.readouterr().err
    assert "last.ckpt is damaged" in said
    assert "previous.ckpt is damaged" in said
    assert "no checkpoint to continue from: it is trained from the start" in said


LINES = {
    "lost": lambda lines: None,
    "empty": lambda lines: b"",
    "shorter": lambda lines: b"".join(lines[:2]),
    "a hole": lambda lines: b"".join(lines[:1] + lines[2:]),
    "one twice": lambda lines: b"".join(lines[:2] + lines[1:]),
    "a digit changed": lambda lines: b"".join(lines).replace(b'"step": 6', b'"step": 7', 1),
    "no text": lambda lines: lines[0] + b"\xff\xfe\n" + b"".join(lines[2:]),
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "speed.jsonl"])
@pytest.mark.parametrize("how", LINES)
def test_damaged_lines_are_restored_from_the_checkpoint(cut, own_identity, capsys, how, name):
    file = cut.path / name
    lines = file.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 10]
    damaged = LINES[how](lines)
    file.unlink() if damaged is None else file.write_bytes(damaged)
    capsys.readouterr()
    prepare_start(cut, own_identity)
    assert file.read_bytes() == b"".join(lines[:4])
    assert "had lost or changed lines up to step 8; they are restored" in capsys.readouterr().err


def test_an_undamaged_run_continues_without_a_word_of_damage(cut, settings_in, uncut, tmp_path, capsys):
    for name in ("config.yaml", "summary.json"):  # of no use to a run that trains on, and made again
        (cut.path / name).write_bytes(b"\xff{")
    capsys.readouterr()
    continued(cut, settings_in(tmp_path), uncut)
    said = capsys.readouterr().err
    assert "summary.json is damaged" in said
    assert "lines" not in said
    assert "ckpt" not in said


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"7", b'{"status": 5}'])
def test_what_is_no_summary_is_none_and_said(tmp_path, capsys, content):
    (tmp_path / "summary.json").write_bytes(content)
    assert RunDirectory(tmp_path).summary() is None
    assert "summary.json is damaged" in capsys.readouterr().err


@pytest.fixture
def finished(uncut, tmp_path):
    return RunDirectory(Path(shutil.copytree(uncut["run"], tmp_path / Path(uncut["run"]).name)))


def test_a_summary_of_another_run_is_not_believed(finished, settings_in, uncut, tmp_path, capsys):
    write_summary(finished.path, uncut | {"seed": 1})
    capsys.readouterr()
    continued(finished, settings_in(tmp_path), uncut)
    assert "is of another run: it has another seed; it is made again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("summary.json", "a digit changed"),
        ("config.yaml", "a bit flipped"),
        ("metrics.jsonl", "cut off"),
        ("speed.jsonl", "lost"),
        ("validation.npz", "a bit flipped"),
        ("checkpoints/last.ckpt", "a bit flipped"),
    ],
)
def test_damage_to_a_finished_run_is_noticed_and_mended(finished, settings_in, uncut, tmp_path, capsys, name, how):
    file = finished.path / name
    scores = finished.validation.read_bytes()
    if how == "a digit changed":
        loss = json.dumps(uncut["val_loss"])
        file.write_text(file.read_text().replace(loss, str(int(loss[0]) + 1) + loss[1:]))
    else:
        DAMAGE[how](file)
    capsys.readouterr()
    continued(finished, settings_in(tmp_path), uncut)
    assert f"{file.name if 'ckpt' in name else 'summary.json'} is damaged" in capsys.readouterr().err
    assert finished.validation.read_bytes() == scores
    assert read_run(finished.path, "mended").status == "finished"
    fit_run(settings_in(tmp_path))
    assert "finished before" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_of_the_same_shapes_is_refused(cut, settings_in, tmp_path):
    other = fit_run(settings_in(tmp_path / "other", "optimizer.learning_rate=0.001"))
    own = cut.checkpoint.read_bytes()
    shutil.copyfile(RunDirectory(Path(other["run"])).checkpoint, cut.checkpoint)
    with pytest.raises(UserError, match=r"another run: .*optimizer.learning_rate=0.001 .*; move it away"):
        fit_run(settings_in(tmp_path))
    cut.checkpoint.write_bytes(own)
    content = read_checkpoint(cut.checkpoint)
    recorded(content)["identity"]["data_fingerprint"] = "0" * 32
    write_checkpoint(content, cut.checkpoint)
    with pytest.raises(UserError, match=r"another run: .*data_fingerprint=0{32}"):
        fit_run(settings_in(tmp_path))


def test_states_are_told_apart_by_all_that_led_to_them(settings_in):
    settings = settings_in("nowhere")

    def state(group=None, step=5, steps=12, fingerprint="f", precision="fp32", **changes):
        changed = dataclasses.replace(getattr(settings, group), **changes) if group else None
        own = dataclasses.replace(settings, **({group: changed} if group else changes))
        return state_identity(own, steps, fingerprint, precision, None, step)

    same = state()
    assert state(seed=1) != same
    assert state(match="none") != same
    assert state(attention=AttentionConfig.of("mha", {"rope_base": 5000.0})) != same
    assert state("model", d_ff=128) != same
    assert state("init", qk_gain=2.0) != same
    assert state("data", mask_documents=False) != same
    assert state("optimizer", weight_decay=0.2) != same
    assert state("trainer", tokens_per_step=1024) != same
    assert state("trainer", validation_tokens=1024) != same
    assert state("schedule", warmup_steps=3) != same
    assert state(fingerprint="g") != same
    assert state(precision="bf16") != same
    assert state(output_dir="elsewhere") == same
    assert state("trainer", log_every=7) == same
    # The decay takes the last 3 of 12 steps. Before it, a state is that of any budget; from it on, of one.
    assert state("schedule", warmup_steps=1, steps=24) == state("schedule", warmup_steps=1, step=9)
    assert state("schedule", warmup_steps=1, steps=24, step=10) != state("schedule", warmup_steps=1, step=10)
    assert state("schedule", final_fraction=0.5) == same
    assert state("schedule", final_fraction=0.5, step=10) != state(step=10)


def test_a_branch_begins_from_what_is_whole_and_of_its_training(cut, own_identity, uncut, tmp_path, capsys):
    shorter, run = RunDirectory(tmp_path / "shorter"), RunDirectory(tmp_path / "longer")
    for one in (shorter, run):
        one.stable.parent.mkdir(parents=True)

    def begun(spoil=lambda file: None, step=8, identity=own_identity):
        shutil.copyfile(cut.checkpoint, shorter.stable)
        spoil(shorter.stable)
        capsys.readouterr()
        return prepare_start(run, identity, [(tmp_path / "none", 9), (shorter.path, step)]), capsys.readouterr().err

    for arguments, said in (
        ({"spoil": flipped}, "stable.ckpt is damaged"),
        ({"spoil": not_finite}, "stable.ckpt is damaged (its weights or"),
        ({"step": 4}, "it is of step 8 and not of 4"),
        ({"identity": lambda step: own_identity(step) | {"seed": 1}}, "trained with seed=0 and this run has 1"),
    ):
        start, told = begun(**arguments)
        assert start.steps_shared == 0
        assert said in told
        assert not run.checkpoint.exists()
        assert not run.metrics.exists()
    start, told = begun()
    assert (start.steps_shared, told) == (8, "")
    assert read_checkpoint(run.checkpoint)["global_step"] == 8
    assert run.metrics.read_bytes() == b"".join(Path(uncut["run"], "metrics.jsonl").read_bytes().splitlines(True)[:4])


def test_errors_of_the_disk_are_sentences_and_what_was_saved_continues(settings_in, uncut, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / Path(uncut["run"]).name)
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

    run = RunDirectory(tmp_path / Path(uncut["run"]).name)
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
