"""One tiny trained run for the tests of this room, which leave it as it is."""

from pathlib import Path

import pytest

from tests.made_up import TINY, configuration, write_corpus


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished MHA run."""
    from dma_lab.train.fit_run import fit_run
    from dma_lab.train.reading import read_settings

    folder = tmp_path_factory.mktemp("trained")
    own = ["attention=mha", "trainer.device=cpu", "tokens=5120", f"output_dir={folder / 'outputs'}"]
    fit_run(read_settings(configuration([*TINY, *write_corpus(folder), *own])))
    (run,) = (folder / "outputs").iterdir()
    return run
