"""What a run came to, to be compared bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dma_lab.run_summary import Summary

OF_THE_MOMENT = {"run", "tokens_per_second", "seconds", "peak_memory_bytes"}


def runs_in(folder: Path) -> list[Path]:
    """Those of a working directory."""
    return sorted(file.parent for file in folder.glob("runs/*/run.lock"))


def results_in(folder: Path) -> dict[str, dict[str, Any]]:
    return {run.name: result_of(run) for run in runs_in(folder)}


def result_of(run: Path, but: str | None = None) -> dict[str, Any]:
    """Name to value of all that two trainings of one run have in common. Raises whatever a damaged file gives."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    summary = Summary.read(run).written()
    with np.load(run / "validation.npz") as scores:
        arrays = {f"validation.npz {name}": scores[name].tobytes() for name in scores}
    found = {
        **{f"summary.json {name}": value for name, value in summary.items() if name not in OF_THE_MOMENT},
        **arrays,
        **{f"last.ckpt {name}": value for name, value in _flat(content["state_dict"])},
        **{f"last.ckpt optimizer {name}": value for name, value in _flat(content["optimizer_states"])},
        "last.ckpt global_step": content["global_step"],
        "metrics.jsonl": (run / "metrics.jsonl").read_bytes(),
        "speed.jsonl": [json.loads(line)["step"] for line in (run / "speed.jsonl").read_text().splitlines()],
        "config.yaml": (run / "config.yaml").read_bytes(),
        "files": sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()),
    }
    stable = run / "checkpoints" / "stable.ckpt"
    if stable.exists() and stable.name != but:
        found |= {f"stable.ckpt {n}": v for n, v in _flat(torch.load(stable, weights_only=True)["state_dict"])}
    return found


def difference(folder: Path, expected: dict[str, dict[str, Any]], but: str | None = None) -> str:
    """What the runs under ``folder`` differ in from what they should be, by name; empty where in nothing.

    Args:
        but: a checkpoint that is not looked at.
    """
    try:
        found = {run.name: result_of(run, but) for run in runs_in(folder)}
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace(str(folder), "")
    if found.keys() != expected.keys():
        return f"runs: {', '.join(found)}"
    for run, result in expected.items():
        for name in [*result, *found[run]]:
            if not (but and name.startswith(but)) and found[run].get(name) != result.get(name):
                return name
    return ""


def _flat(node: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, Tensor):
        return [(name, (str(node.dtype), tuple(node.shape), node.numpy().tobytes()))]
    if isinstance(node, dict):
        return [pair for key, value in node.items() for pair in _flat(value, f"{name}.{key}")]
    if isinstance(node, list | tuple):
        return [pair for key, value in enumerate(node) for pair in _flat(value, f"{name}.{key}")]
    return [(name, node)]
