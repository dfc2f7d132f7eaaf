"""A run that begins beside a stopped one and differs from it in few settings, which may have been changed unawares."""

from typing import Any

from omegaconf import OmegaConf

from dma_lab.run_summary import Summary
from dma_lab.train.runs import RunDirectory
from dma_lab.train.status import status_in_words

_MOST = 3
"""Settings in which a run may differ and still be taken for the one that was meant."""
_NOT_THE_RUNS = ("output_dir", "logger", "data.cache_dir", "trainer.device", "trainer.checkpoint_every")


def stopped_neighbour(run: RunDirectory, written: dict[str, Any]) -> str | None:
    """Of the stopped runs beside ``run``, which has not begun, the nearest, in words; None where none is near.

    Args:
        written: the run's settings, as its config.yaml will have them.
    """
    if run.checkpoint.exists() or (run.path / "config.yaml").exists():
        return None
    ours, found = _flat(written), []
    for file in run.path.parent.glob("*/config.yaml"):
        try:
            # This first, and of no other file: a sweep has hundreds of finished runs, and looks for each point.
            if "same command" not in status_in_words(file.parent, Summary.read(file.parent, beside=())):
                continue
            theirs = _flat(OmegaConf.to_container(OmegaConf.load(file)))
        except Exception:  # damaged, or no run: not what is looked for
            continue
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if 0 < len(differing) <= _MOST:
            found.append((len(differing), file.parent, differing, theirs))
    if not found:
        return None
    _, path, differing, theirs = min(found, key=lambda near: near[:2])
    said = ", ".join(f"{name}={ours.get(name)} (there {theirs.get(name)})" for name in differing)
    return f"{path} was stopped, and this is another run than it: {said}"


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Settings by their whole names."""
    if path in _NOT_THE_RUNS:
        return {}
    if not isinstance(node, dict):
        return {path: node}
    return {
        name: value
        for key, below in node.items()
        for name, value in _flat(below, f"{path}.{key}" if path else str(key)).items()
    }
