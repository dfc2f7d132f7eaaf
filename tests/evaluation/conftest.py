"""One tiny trained run for the tests of this room, with needles in its text; a test that spoils a run spoils a copy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dma_lab.evaluation import evaluate as evaluation
from dma_lab.evaluation.checkpoint import TrainedRun, open_run
from dma_lab.evaluation.haystack import Haystack
from dma_lab.evaluation.needle import NeedleTask
from dma_lab.evaluation.settings import EvaluateSettings
from dma_lab.settings import read_settings
from tests.made_up import TINY, configuration, write_corpus
from tests.scripts import Scripts


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished DMA run. Tests leave it as it is."""
    from dma_lab.train.fit_run import fit_run
    from dma_lab.train.reading import read_settings as read_train_settings

    folder = tmp_path_factory.mktemp("trained")
    own = ["attention=dma", "trainer.device=cpu", "tokens=20480", f"output_dir={folder / 'outputs'}"]
    fit_run(read_train_settings(configuration([*TINY, *write_corpus(folder), *own])))
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


@pytest.fixture
def run_suite(run_copy: Path) -> Callable[..., list[dict]]:
    """What ``evaluate.py`` does, in this process; returns the cells of the suite's file."""

    def run(suite: str, *overrides: str) -> list[dict]:
        config = configuration([f"suite={suite}", f"checkpoint={run_copy}", "device=cpu", *overrides], "evaluate")
        return json.loads(evaluation.evaluate(read_settings(EvaluateSettings, config)).read_text())["cells"]

    return run


@pytest.fixture(scope="session")
def run(trained_run: Path) -> TrainedRun:
    """The trained run, opened."""
    return open_run(trained_run)


@pytest.fixture(scope="session")
def make_task(run: TrainedRun) -> Callable[..., NeedleTask]:
    """``make_task(kind, values, **options)``: needles in the run's validation text."""
    haystack, tokenizer = Haystack.of_validation(run.data), run.data.load_tokenizer()

    def task(kind="single", values="numbers", **options) -> NeedleTask:
        options = {"needles": 3, "samples": 4, "seed": 0, **options}
        return NeedleTask(kind, values, haystack=haystack, tokenizer=tokenizer, **options)

    return task
