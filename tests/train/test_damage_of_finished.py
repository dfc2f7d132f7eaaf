"""A finished run whose files were damaged is mended, or says in a sentence what is wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dma_lab.report.collect import read_run
from dma_lab.train.fit_run import fit_run
from dma_lab.train.runs import RunDirectory
from tests.train.damage import DAMAGE, continued


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"7", b'{"status": 5}'])
def test_what_is_no_summary_is_none_and_said(tmp_path, capsys, content):
    (tmp_path / "summary.json").write_bytes(content)
    assert RunDirectory(tmp_path).summary() is None
    assert "summary.json is damaged" in capsys.readouterr().err


@pytest.fixture
def finished(uncut, tmp_path):
    return RunDirectory(Path(shutil.copytree(uncut.run, tmp_path / Path(uncut.run).name)))


def test_a_summary_of_another_run_is_not_believed(finished, settings_in, uncut, tmp_path, capsys):
    replace(uncut, seed=1).write(finished.path)
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
        loss = json.dumps(uncut.val_loss)
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
