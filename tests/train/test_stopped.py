"""A changed setting of a stopped run is another run, and says so once."""

import pytest
from omegaconf import OmegaConf

from dma_lab.train.runs import RunDirectory
from dma_lab.train.stopped import stopped_neighbour
from tests.made_up import summary

WRITTEN = {
    "study": "s",
    "seed": 0,
    "output_dir": "here",
    "optimizer": {"name": "adamw", "learning_rate": 0.01, "betas": [0.9, 0.95]},
    "schedule": {"name": "wsd", "warmup": 0.1, "decay": 0.2},
}


@pytest.fixture
def beside(tmp_path):
    def add(name: str, status: str, **changed) -> None:
        folder = tmp_path / name
        folder.mkdir()
        config = OmegaConf.merge(WRITTEN, {"output_dir": "there"}, changed)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
        summary(folder, status=status, step=3, steps=9).write(folder)

    return add


def test_the_nearest_stopped_run_is_named_with_what_differs(beside, tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert stopped_neighbour(run, WRITTEN) is None
    beside("finished", "finished", seed=1)
    beside("far", "interrupted", seed=1, study="t", optimizer={"name": "muon"}, schedule={"decay": 0.3})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("{")
    assert stopped_neighbour(run, WRITTEN) is None
    beside("near", "interrupted", seed=1, optimizer={"learning_rate": 0.02})
    beside("nearest", "running", optimizer={"learning_rate": 0.02})
    said = f"{tmp_path / 'nearest'} was stopped, and this is another run than it: "
    assert stopped_neighbour(run, WRITTEN) == said + "optimizer.learning_rate=0.01 (there 0.02)"
    run.path.mkdir()
    run.write_config(WRITTEN)
    assert stopped_neighbour(run, WRITTEN) is None  # it has begun
