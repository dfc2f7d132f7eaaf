"""The arithmetic of scaling: laws fitted to runs. Pure functions, no torch.

Fits are imported when they are first named: they need scipy, which takes a second.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dma_lab.scaling.difference import weigh_for_difference
    from dma_lab.scaling.envelope import Curve, fit_envelope
    from dma_lab.scaling.fit import ParametricFit, fit_parametric
    from dma_lab.scaling.held_out import hold_out_largest
    from dma_lab.scaling.isoflop import fit_isoflop, fit_parabola
    from dma_lab.scaling.joint import fit_joint
    from dma_lab.scaling.optimum import compute_multiplier, compute_optimal
    from dma_lab.scaling.shared_floor import share_floor
    from dma_lab.scaling.trainings import TrainingsFit, fit_trainings

_HOME = {
    "Curve": "envelope",
    "ParametricFit": "fit",
    "TrainingsFit": "trainings",
    "compute_multiplier": "optimum",
    "compute_optimal": "optimum",
    "fit_envelope": "envelope",
    "fit_isoflop": "isoflop",
    "fit_joint": "joint",
    "fit_parabola": "isoflop",
    "fit_parametric": "fit",
    "fit_trainings": "trainings",
    "hold_out_largest": "held_out",
    "share_floor": "shared_floor",
    "weigh_for_difference": "difference",
}
__all__ = [
    "Curve",
    "ParametricFit",
    "TrainingsFit",
    "compute_multiplier",
    "compute_optimal",
    "fit_envelope",
    "fit_isoflop",
    "fit_joint",
    "fit_parabola",
    "fit_parametric",
    "fit_trainings",
    "hold_out_largest",
    "share_floor",
    "weigh_for_difference",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
