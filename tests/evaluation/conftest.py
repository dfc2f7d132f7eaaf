"""One tiny trained run for the tests of this room; a test that spoils a run spoils a copy."""

import shutil
from pathlib import Path

import pytest

from tests.made_up import TINY, configuration, write_corpus
from tests.scripts import Scripts


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished DMA run. Tests leave it as it is."""
    from dma_lab.train.fit_run import fit_run
    from dma_lab.train.reading import read_settings

    folder = tmp_path_factory.mktemp("trained")
    own = ["attention=dma", "trainer.device=cpu", "tokens=20480", f"output_dir={folder / 'outputs'}"]
    fit_run(read_settings(configuration([*TINY, *write_corpus(folder), *own])))
    (run,) = (folder / "outputs").iterdir()
    return run


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to spoil; the prepared data is the one run's."""
    return Path(shutil.copytree(trained_run, tmp_path / trained_run.name))


@pytest.fixture
def evaluate(scripts: Scripts):
    """``evaluate(*overrides)``: from the repository's root to its end."""
    return lambda *overrides: scripts.run("evaluate.py", list(overrides))
