"""A corpus and a model small enough to train in a second, and what a run's summary may hold."""

import hashlib
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from dma_lab.run_summary import BESIDE, Summary
from dma_lab.seals import sealed

CONF = Path(__file__).resolve().parents[1] / "conf"
TINY_MODEL = [
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.head_dim=16",
    "model.d_ff=96",
    "model.vocab_size=320",
]
TINY = [
    *TINY_MODEL,
    "trainer.context=64",
    "trainer.tokens_per_step=512",
    "trainer.validation_tokens=2048",
]


def write_corpus(folder: Path, documents: int = 400) -> list[str]:
    """Write short documents of a made-up language, in which the next word depends on the last, into ``folder``.

    Returns the overrides that train on them; the prepared data will lie beside them.
    """
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(2, 7))) for _ in range(60)]
    follow = {word: draw.sample(words, 3) for word in words}
    lines = []
    for _ in range(documents):
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


def summary_of(run: Path, **changed: Any) -> dict[str, Any]:
    """What ``summary.json`` may hold of a run in ``run`` that is finished, with these keys instead."""
    return {
        "run": str(run),
        "study": "study",
        "model": "nano",
        "rung": "nano",
        "attention": "mha",
        "match": "params",
        "seed": 0,
        "params_total": 215_536,
        "params_non_embedding": 150_000,
        "d_ff": 192,
        "context": 64,
        "steps": 100,
        "tokens": 1_000_000,
        "flops": 900_000_000_000,
        "flops_executed": 900_000_000_000,
        "unigram_entropy": 5.1,
        "data_fingerprint": "a" * 32,
        "hardware": "1 x CPU",
        "cpu_capability": "AVX2",
        "precision": "fp32",
        "compiled": False,
        "torch": "2.13.0",
        "git_commit": "c" * 40,
        "steps_shared": 0,
        "earlier_machines": [],
        "tokens_per_second": 1234.5,
        "peak_memory_bytes": 2**30,
        "kernels": "plain PyTorch",
        "val_loss": 2.5,
        "val_perplexity": 12.2,
        "val_bits_per_byte": 1.25,
        "val_text_bits_per_byte": 1.19,
        "status": "finished",
    } | changed


def write_summary(run: Path, content: dict[str, Any]) -> None:
    """``summary.json`` as a run would write it, whatever ``content`` is: it vouches for what now lies beside it."""
    if content.get("status") in ("finished", "diverged"):
        beside = [run / name for name in BESIDE if (run / name).exists()]
        content = content | {"files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in beside}}
    (run / "summary.json").write_text(sealed(content))


def rewrite_summary(run: Path, **changed: Any) -> None:
    """The same with these keys instead; without those that are None."""
    content = json.loads((run / "summary.json").read_text()) | changed
    kept = {name: value for name, value in content.items() if name not in ("digest", "files")}
    write_summary(run, {name: value for name, value in kept.items() if name not in changed or value is not None})


def summary(run: Path, **changed: Any) -> Summary:
    """``summary_of``, as it is read."""
    return Summary.of(summary_of(run, **changed))
