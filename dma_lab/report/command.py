"""The command that trains a run's point again: what its config.yaml says that conf/ does not compose to by itself.

A branch is trained by itself, as the plain run of its budget with its warm-up that it is (dma_lab/train/branches.py).
Paths are another machine's: the folder of a run's text stands as ``$DATA``, that of a run whose weights it began with
as ``$RUNS``.
"""

import functools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dma_lab.report.collect import Run
from dma_lab.settings import CONFIG_DIR

_GROUPS = ("data", "optimizer", "schedule", "model")
_LEFT_OUT = ("seed", "output_dir", "data.cache_dir", "logger", "attention.package")
"""The seed is given in any case; of another package's backend the version is what is installed."""
_TEXT = ("data.path", "data.validation_path", "data.tokenizer")
_SHELL = "\0"
"""Stands for the dollar of what a shell fills in."""


def command_of(run: Run) -> str:
    """``python train.py …`` for a shell; empty where conf/ has no longer what such a run is composed of."""
    config: Any = OmegaConf.to_container(run.config, resolve=True)
    seed = config.pop("seed")
    overrides = _overrides(json.dumps(config), run.attention)
    return " ".join(["python train.py", *overrides, f"seed={seed}"]) if overrides else ""


@functools.cache
def _overrides(config: str, attention: str) -> list[str]:
    """For a run with this config (JSON, without its seed) whose attention is called so."""
    settings: Any = json.loads(config)
    wanted = {name: value for name, value in _leaves("", settings) if not _is_left_out(name)}
    choices = _choices(settings, attention)
    composed, is_sweep = _composed(choices)
    composed = composed.copy()
    known = {name for name, _ in _leaves("", OmegaConf.to_container(composed))}
    if any(value is not None for name, value in wanted.items() if name not in known):
        return []
    given: dict[str, Any] = {}
    while differing := _differing(composed, wanted):
        # What refers to others last: it may follow by itself.
        for name in [name for name in differing if not _is_reference(composed, name)] or differing:
            given[name] = wanted[name]
            OmegaConf.update(composed, name, wanted[name], merge=False)
    values = _portable({name: given[name] for name in wanted if name in given})
    overrides = [f"{name}={_as_override(value)}" for name, value in values.items()]
    return [_for_a_shell(override) for override in (*choices, *(["hydra.mode=RUN"] if is_sweep else []), *overrides)]


def _choices(settings: Mapping[str, Any], attention: str) -> tuple[str, ...]:
    """Of conf/'s groups, those that the run's nodes are named after and that are not the experiment's own."""
    study = settings["study"]
    experiment = (f"experiment={study}",) if study in _options("experiment") else ()
    default, _ = _composed(experiment)
    chosen = list(experiment)
    for group in _GROUPS:
        name = settings[group].get("name")
        if name in _options(group) and name != default[group].name:
            chosen.append(f"{group}={name}")
    name = attention if attention in _options("attention") else settings["attention"]["name"]
    return (*chosen, *([f"attention={name}"] if name in _options("attention") else []))


@functools.cache
def _options(group: str) -> frozenset[str]:
    return frozenset(_loader().get_group_options(group))


@functools.cache
def _loader() -> ConfigLoaderImpl:
    return ConfigLoaderImpl(create_config_search_path(str(CONFIG_DIR)))


@functools.cache
def _composed(choices: tuple[str, ...]) -> tuple[DictConfig, bool]:
    """The config, and whether that alone would be a sweep of many runs. It takes a fifth of a second."""
    config = _loader().load_configuration("train", list(choices), RunMode.RUN)
    is_sweep = config.hydra.mode is RunMode.MULTIRUN
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, is_sweep


def _differing(composed: DictConfig, wanted: Mapping[str, Any]) -> list[str]:
    now = dict(_leaves("", OmegaConf.to_container(composed, resolve=True)))
    return [name for name, value in wanted.items() if now.get(name) != value]


def _is_reference(composed: DictConfig, name: str) -> bool:
    parent, _, key = name.rpartition(".")
    return OmegaConf.is_interpolation(OmegaConf.select(composed, parent) if parent else composed, key)


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values; a list is a value."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for name, value in node.items():
        yield from _leaves(f"{prefix}.{name}" if prefix else str(name), value)


def _is_left_out(name: str) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in _LEFT_OUT)


def _portable(values: dict[str, Any]) -> dict[str, Any]:
    """With the folders of text and runs as what a shell fills in."""
    texts = {name: value if isinstance(value, list) else [value] for name, value in values.items() if name in _TEXT}
    paths = [path for listed in texts.values() for path in listed if os.path.isabs(path)]
    folder = (os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0])) if paths else ""

    def moved(path: str) -> str:
        return f"{_SHELL}DATA{path[len(folder.rstrip('/')) :]}" if os.path.isabs(path) else path

    for name in texts:
        values[name] = [*map(moved, texts[name])] if isinstance(values[name], list) else moved(values[name])
    if "init_from" in values:
        values["init_from"] = f"{_SHELL}RUNS/{os.path.basename(values['init_from'].rstrip('/'))}"
    return values


def _as_override(value: Any) -> str:
    """``value`` as Hydra's grammar has it."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str):
        return f"{value}"
    text = value.replace(_SHELL, "")
    try:
        plain = OverridesParser.create().parse_override(f"key={text}").value() == text
    except HydraException:
        plain = False
    return value if plain else "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value)) + "'"


def _for_a_shell(override: str) -> str:
    if _SHELL not in override:
        return shlex.quote(override)
    return '"' + re.sub(r'(["\\$`])', r"\\\1", override).replace(_SHELL, "$") + '"'
