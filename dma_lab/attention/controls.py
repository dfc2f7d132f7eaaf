"""Controls: a backend with one option that makes it another attention, and the names these go by.

What of a backend's effect is due to what it claims shows beside a control that lacks just that: DMA's choice by content
beside the same sparsity by chance, sparsity beside a few full layers, attention beside a gate that any may have.
"""

from collections.abc import Mapping
from typing import Any

CONTROLS = {
    "dma_random": ("dma", "scores", "random"),
    "dma_frozen": ("dma", "scores", "frozen"),
    "swa_sinks": ("swa", "sinks", None),
    "hybrid": ("swa", "full_every", None),
    "gated_mha": ("mha", "gate", True),
}
"""By name: the backend, the option, and its value; None: any that sets it."""


def label(node: Mapping[str, Any]) -> str:
    """What attention with this ``name`` and these options is called: the backend, or the control (or several) it is."""
    found = [
        control
        for control, (backend, option, value) in CONTROLS.items()
        if node["name"] == backend and node.get(option) and (value is None or node[option] == value)
    ]
    return "+".join(found) or node["name"]


def telling(called: str) -> set[str]:
    """The options that make an attention of this ``label`` other than its backend."""
    return {CONTROLS[control][1] for control in called.split("+") if control in CONTROLS}
