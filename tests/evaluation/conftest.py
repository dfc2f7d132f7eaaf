"""One tiny trained run for the tests of this room; a test that spoils a run spoils a copy."""

import random
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.doors import Doors

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "attention=dma",
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.head_dim=16",
    "model.d_ff=96",
    "model.vocab_size=320",
    "trainer.context=64",
    "trainer.tokens_per_step=512",
    "trainer.validation_tokens=2048",
    "trainer.device=cpu",
    "tokens=20480",
]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished DMA run on 400 documents in which the next word depends on the last. Tests leave it as it is."""
    from dma_lab.train.fit_run import fit_run
    from dma_lab.train.settings import read_settings

    folder = tmp_path_factory.mktemp("trained")
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(2, 7))) for _ in range(60)]
    follow = {word: draw.sample(words, 3) for word in words}
    lines = []
    for _ in range(400):
        text = [draw.choice(words)]
        while len(text) < 90:
            text.append(draw.choice(follow[text[-1]]))
        lines.append(f'{{"text": "{" ".join(text)}."}}')
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    data = ["data=local", f"data.path={folder / 'documents.jsonl'}", f"data.cache_dir={folder / 'cache'}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*TINY, *data, "data.validation_fraction=0.1", f"output_dir={folder / 'outputs'}"])
    fit_run(read_settings(config))
    (run,) = (folder / "outputs").iterdir()
    return run


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to spoil; the prepared data is the one run's."""
    return Path(shutil.copytree(trained_run, tmp_path / trained_run.name))


@pytest.fixture
def evaluate(doors: Doors):
    """``evaluate(*overrides)``: from the repository's root to its end."""
    return lambda *overrides: doors.open("evaluate.py", list(overrides))
