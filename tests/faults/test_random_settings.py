"""Random settings, right and wrong, through the reading of settings and the plan: a plan comes out, or one sentence."""

import itertools
import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, seed, settings
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dma_lab.train.branches import plan_branches
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import padded_vocabulary, plan_run
from dma_lab.train.reading import read_settings

ROOT = Path(__file__).resolve().parents[2]
CHOICES = {
    "model": ["14k", "nano", "80m", "1.7b"],
    "attention": ["mha", "swa", "mla", "nsa", "dma", "dma_random", "hybrid"],
    "data": ["stdlib", "local", "mqar", "fineweb_edu", "wikitext103"],
    "schedule": ["wsd", "cosine"],
    "logger": ["local", "wandb", "tensorboard", "trackio"],
}

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(st.characters(categories=["Cs"]), max_size=2)
_LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2048),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.sampled_from([0, 2**31 - 1, 2**31, 2**63, 2**64, 10**12, 10**30, 10**400]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 0.5, 1.0, 1e300, float("inf"), float("nan")]),
    _TEXT,
    st.sampled_from(["", " ", "..", "../x", "/", "auto", "params", "flops", "none", "cpu", "cuda", "x" * 300, "~"]),
    st.sampled_from(
        ["${seed}", "${nope}", "???", "a\nb", "\x00", "bpe", "exp", "noise", "1e3", "true", "東京", "\u202e"]
    ),
)
VALUES = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=2), max_leaves=6
)
PLAUSIBLE = {
    "seed": st.integers(0, 2**32 - 1),
    "study": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,30}", fullmatch=True),
    "match": st.sampled_from(["params", "flops", "none"]),
    "tokens_per_parameter": st.floats(0.1, 1000),
    "tokens": st.integers(10**7, 10**13),
    "model.n_layers": st.integers(1, 12),
    "model.d_ff": st.integers(64, 8192),
    "model.vocab_size": st.integers(2, 40_000).map(lambda half: 2 * half),
    "model.tie_embeddings": st.booleans(),
    "optimizer.learning_rate": st.floats(1e-8, 10),
    "schedule.decay_fraction": st.floats(0.01, 0.5),
    "schedule.final_fraction": st.floats(0, 1),
    "schedule.branches": st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.5, 64.0]), min_size=1, max_size=4, unique=True),
    "attention.rope_base": st.floats(1, 1e12),
    "trainer.context": st.sampled_from([64, 128, 256]),
    "trainer.activation_checkpointing": st.booleans(),
    "trainer.loader_workers": st.integers(0, 8),
    "trainer.validation_tokens": st.integers(4096, 10**9),
    "data.mask_documents": st.booleans(),
}
SMALL = st.integers(1, 4096) | st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512]) | st.none() | st.booleans()


@pytest.fixture(scope="module")
def configs() -> list[DictConfig]:
    """What conf/ composes to, with every choice of every group somewhere."""
    most = max(map(len, CHOICES.values()))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return [
            compose(
                "train",
                [
                    f"{group}={names[(turn + shift * number) % len(names)]}"
                    for number, (group, names) in enumerate(CHOICES.items())
                ],
            )
            for turn, shift in itertools.product(range(most), range(2))
        ]


def _leaves(config: DictConfig) -> list[str]:
    """Every setting, nodes too, as the command line names it."""
    found = []
    for key in config:
        found.append(str(key))
        value = config._get_node(key)
        if isinstance(value, DictConfig):
            found += [f"{key}.{below}" for below in _leaves(value)]
    return found


@pytest.mark.parametrize(
    "number", [pytest.param(100, id="short"), pytest.param(2000, id="long", marks=pytest.mark.faults)]
)
def test_a_plan_comes_out_or_one_sentence(trials, configs, number):
    @seed(int(os.environ.get("FAULTS_SEED", "0")))
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def once(data: st.DataObject) -> None:
        config = data.draw(st.sampled_from(configs)).copy()
        OmegaConf.set_struct(config, False)
        leaves = _leaves(config)
        changed: dict[str, Any] = {}
        for _ in range(data.draw(st.integers(1, 3))):
            kind = data.draw(st.sampled_from(["plausible", "small", "anything"]))
            setting = data.draw(st.sampled_from(list(PLAUSIBLE) if kind == "plausible" else leaves))
            values = {"plausible": PLAUSIBLE.get(setting), "small": SMALL, "anything": VALUES}[kind]
            changed[setting] = data.draw(values)
        if config.data.source == "local":
            config.data.path = "corpus.jsonl"
        for setting, value in changed.items():
            try:
                OmegaConf.update(config, setting, value, merge=False)
            except (OmegaConfBaseException, HydraException, ValueError, RecursionError):
                return  # such a config cannot be composed at all; tests/test_entry_point.py has what is said then
        fault = ", ".join(f"{setting}={value!r}" for setting, value in changed.items())
        trials.try_here(fault, lambda: _plan(config), must_name=_words(changed))

    once()


def _words(changed: dict[str, Any]) -> tuple[str, ...]:
    """Names of which a sentence has to hold one: what was changed, or what is taken from that."""
    parts = {part for setting in changed for part in setting.split(".")}
    return tuple(parts | {"match=none"} | ({"data.size.length"} if parts & {"context", "model", "trainer"} else set()))


def _plan(config: DictConfig) -> None:
    chosen = read_settings(config)
    hardware = resolve_hardware(chosen.trainer)
    plan = plan_run(chosen, padded_vocabulary(chosen.model.vocab_size), hardware)
    if chosen.schedule.branches:
        plan_branches(chosen, plan.shape.vocab_size, hardware)
