"""A corpus and a model small enough to train in a second, and the entry points called as a user calls them."""

import multiprocessing
from pathlib import Path

import pytest

from dma_lab.train.reading import read_settings
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
