"""One tiny trained run for the tests of this room, which leave it as it is."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "attention=mha",
    "model.n_layers=2",
    "model.d_model=32",
    "model.head_dim=16",
    "model.d_ff=96",
    "model.vocab_size=320",
    "trainer.context=64",
    "trainer.tokens_per_step=512",
    "trainer.validation_tokens=512",
    "trainer.device=cpu",
    "tokens=5120",
    "data=local",
    "data.validation_fraction=0.1",
]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished MHA run."""
    from dma_lab.train.fit_run import fit_run
    from dma_lab.train.settings import read_settings

    folder = tmp_path_factory.mktemp("trained")
    lines = [f'{{"text": "{" ".join(str(number**power) for power in range(40))}"}}' for number in range(2, 102)]
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    where = [f"data.path={folder / 'documents.jsonl'}", f"data.cache_dir={folder / 'cache'}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*TINY, *where, f"output_dir={folder / 'outputs'}"])
    fit_run(read_settings(config))
    (run,) = (folder / "outputs").iterdir()
    return run
