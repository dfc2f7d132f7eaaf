"""A run cut off, whose directory was damaged, ends as the undamaged one, or says in a sentence why it cannot."""

import json
import os
from pathlib import Path

import pytest

from dma_lab.checkpoints import read_checkpoint
from dma_lab.train.continuing import prepare_start
from tests.train.damage import DAMAGE, continued, flipped


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
    assert cut.metrics.read_bytes() == b"".join(Path(uncut.run, "metrics.jsonl").read_bytes().splitlines(True)[:2])


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
