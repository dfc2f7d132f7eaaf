"""What a run's rung is called: by its name while it is that rung, by what it is where overrides made another of it."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from dma_lab.settings import CONFIG_DIR

# Not of the shape: the tokenizer's, and what the trainer takes its default from.
_NOT_SHAPE = {"name", "vocab_size", "context"}


def rung_name(model: Mapping[str, Any]) -> str:
    """Of a run's ``model`` settings: ``14k``, or as ``14k n_layers=3`` with what differs from conf/model/14k.yaml."""
    file = CONFIG_DIR / "model" / f"{model['name']}.yaml"
    rung: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else {}
    changed = [f"{name}={model[name]}" for name in model if name not in _NOT_SHAPE and model[name] != rung.get(name)]
    return " ".join((model["name"], *changed))
