"""A corpus and a model small enough to train in a second."""

import pickle
import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
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
]


def write_corpus(folder: Path) -> list[str]:
    """Write 400 short documents of a made-up language, in which the next word depends on the last, into ``folder``.

    Returns the overrides that train on them; the prepared data will lie beside them.
    """
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
    where = [f"data.path={folder / 'documents.jsonl'}", f"data.cache_dir={folder / 'cache'}"]
    return ["data=local", *where, "data.validation_fraction=0.1"]


def as_given(monkeypatch: pytest.MonkeyPatch, overrides: list[str], name: str) -> None:
    """What Hydra tells an entry point of the overrides on its command line."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        monkeypatch.setattr(HydraConfig.instance(), "cfg", compose(name, overrides, return_hydra_config=True))


def configuration(overrides: list[str], name: str = "train") -> DictConfig:
    """What an entry point's Hydra would compose.

    Composing takes a tenth of a second, most of it for the choices in groups: what was composed of those is kept, and
    values are then set in a copy of it, as Hydra sets them.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides(overrides)
        if any(override.is_sweep_override() or override.is_hydra_override() for override in parsed):
            return compose(name, overrides)
        values = [override for override in parsed if not (CONF / override.key_or_group).is_dir()]
        choices = [override.input_line for override in parsed if override not in values]
        of_packages = ConfigStore.instance().repo.get("attention", {})
        key = (name, *choices, str({file: each.node for file, each in of_packages.items()}))
        if key not in _composed:
            _composed[key] = pickle.dumps(compose(name, choices))
    config: DictConfig = pickle.loads(_composed[key])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


_composed: dict[tuple[str, ...], bytes] = {}
