import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from dma_lab.data.mqar import RecallSettings, RecallSize
from dma_lab.data.settings import DataSettings

_FOLDER = Path(__file__).parents[2] / "conf" / "data"


@pytest.mark.parametrize("path", sorted(_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_data_config_lists_every_setting_and_stands(path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(_FOLDER.parent), version_base="1.3"):
        node = compose("train", [f"data={path.stem}", "model.vocab_size=1024", "trainer.context=64"])
    values = OmegaConf.to_container(node, resolve=True)["data"]
    kind = RecallSettings if values["source"] == "mqar" else DataSettings
    assert list(values) == [field.name for field in dataclasses.fields(kind)]
    assert values["name"] == path.stem
    assert values["vocab_size"] == 1024
    if values["source"] == "local":
        values["path"] = "corpus/"
    if values["source"] == "mqar":
        values["size"] = RecallSize(**values["size"])
    kind(**values)
