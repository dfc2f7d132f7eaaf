"""A corpus and a model small enough to train in a second, a run of it that was cut off, and the entry points."""

import gc
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dma_lab.checkpoints import read_checkpoint, recorded
from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run
from dma_lab.train.reading import read_settings
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings
from tests import made_up
from tests.made_up import configuration, write_corpus
from tests.scripts import Scripts, spawn_warm

TINY = [
    *made_up.TINY,
    "trainer.log_every=5",
    "trainer.validate_every=20",
    "trainer.checkpoint_every=10",
    "tokens=30720",
]
# 12 steps: lines at 2, 4, …, checkpoints at 4, 8 and 12; cut after the line of step 10.
SHORT = [
    "attention=mha",
    "tokens=6144",
    "trainer.log_every=2",
    "trainer.validate_every=12",
    "trainer.checkpoint_every=4",
]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny run; the prepared data is shared."""
    return [*TINY, *write_corpus(tmp_path_factory.mktemp("corpus"))]


@pytest.fixture
def overrides(tiny_run: list[str], tmp_path: Path) -> list[str]:
    """A tiny run whose outputs lie in the test's own folder."""
    return [*tiny_run, f"output_dir={tmp_path}"]


def settings_of(overrides: list[str], config_name: str = "train") -> TrainSettings:
    """What the entry point would read."""
    return read_settings(configuration(overrides, config_name))


@pytest.fixture(scope="session")
def read():
    return settings_of


@pytest.fixture
def warm_peers(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that ``fit_run`` starts in this one have everything imported."""
    monkeypatch.setattr(multiprocessing, "get_context", spawn_warm())


@pytest.fixture
def run_script(scripts: Scripts):
    """``run_script("train.py", overrides)``: from the repository's root to its end."""
    return scripts.run


class CutError(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(scope="session")
def settings_in(tiny_run: list[str]) -> Callable[..., TrainSettings]:
    """``settings_in(folder, *more)``: of the short run whose outputs lie there."""
    return lambda folder, *more: settings_of([*tiny_run, *SHORT, f"output_dir={folder}", *more])


@pytest.fixture(scope="session")
def uncut(settings_in: Callable[..., TrainSettings], tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """The summary of the short run, finished. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("uncut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "nowhere"))  # nothing passes through it
        return fit_run(settings_in(folder))


@pytest.fixture(scope="session")
def cut_once(
    settings_in: Callable[..., TrainSettings], uncut: Summary, tmp_path_factory: pytest.TempPathFactory
) -> Path:
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
    run = folder / Path(uncut.run).name
    replace(Summary.read(run), status="running").write(run)
    return run


@pytest.fixture
def cut(cut_once: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the short run, cut off after the line of step 10, to spoil."""
    return RunDirectory(Path(shutil.copytree(cut_once, tmp_path / cut_once.name)))


@pytest.fixture
def own_identity(cut: RunDirectory) -> Callable[[int], dict]:
    identity = recorded(read_checkpoint(cut.checkpoint))["identity"]
    return lambda step: identity
