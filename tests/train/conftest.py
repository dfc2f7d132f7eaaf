"""A corpus and a model small enough to train in a second, and the doors called as a user calls them."""

import multiprocessing
import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from dma_lab.train.settings import TrainSettings, read_settings
from tests.doors import Doors, spawn_warm

ROOT = Path(__file__).resolve().parents[2]
TINY = [
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
    "trainer.log_every=5",
    "trainer.validate_every=20",
    "trainer.checkpoint_every=10",
    "tokens=30720",
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 400 short documents of a made-up language in which the next word depends on the last."""
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(2, 7))) for _ in range(60)]
    follow = {word: draw.sample(words, 3) for word in words}
    lines = []
    for _ in range(400):
        text = [draw.choice(words)]
        while len(text) < 90:
            text.append(draw.choice(follow[text[-1]]))
        lines.append(f'{{"text": "{" ".join(text)}."}}')
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_run(corpus: Path) -> list[str]:
    """A tiny run; the prepared data is shared."""
    cache = corpus.parent / "cache"
    data = ["data=local", f"data.path={corpus}", f"data.cache_dir={cache}", "data.validation_fraction=0.1"]
    return [*TINY, *data]


@pytest.fixture
def overrides(tiny_run: list[str], tmp_path: Path) -> list[str]:
    """A tiny run whose outputs lie in the test's own folder."""
    return [*tiny_run, f"output_dir={tmp_path}"]


def settings_of(overrides: list[str], config_name: str = "train") -> TrainSettings:
    """What the door would read."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return read_settings(compose(config_name, overrides))


@pytest.fixture(scope="session")
def read():
    return settings_of


@pytest.fixture
def warm_peers(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that ``fit_run`` starts in this one have everything imported."""
    monkeypatch.setattr(multiprocessing, "get_context", spawn_warm())


@pytest.fixture
def door(doors: Doors):
    """``door("train.py", overrides)``: from the repository's root to its end."""
    return doors.open
