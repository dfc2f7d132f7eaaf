"""Which implementation runs: Triton's kernels on CUDA, plain PyTorch elsewhere, and never silently the slow one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dma_lab.messages import constant_in_graphs, warn_once

_noted: list[str] | None = None


@contextmanager
def noted_kernels() -> Iterator[list[str]]:
    """A list that fills with the names of what attention runs on meanwhile, in order, each once."""
    global _noted
    _noted = []
    try:
        yield _noted
    finally:
        _noted = None


@constant_in_graphs
def note_kernel(name: str) -> None:
    """Say to ``noted_kernels`` that ``name`` runs."""
    if _noted is not None and name not in _noted:
        _noted.append(name)


def choose_triton(impl: str, device: torch.device, unsupported: str | None = None) -> bool:
    """Whether ``impl`` (``auto``, ``triton`` or ``torch``) means the Triton kernels for tensors on ``device``.

    ``unsupported`` says why the kernels do not take the inputs. Raises ValueError for an unknown ``impl``, and where
    ``triton`` is asked for and cannot run; announces it once when ``auto`` falls back on CUDA.
    """
    if impl not in ("auto", "triton", "torch"):
        raise ValueError(f"impl={impl!r}: choose 'auto', 'triton' or 'torch'.")
    if impl == "torch" or (impl == "auto" and device.type != "cuda"):
        return False
    if impl == "auto":
        if unsupported is not None:
            warn_once(
                f"the Triton kernels do not support these inputs ({unsupported}); plain PyTorch runs instead, slowly."
            )
        return unsupported is None
    if unsupported is not None:
        raise ValueError(f"impl='triton': the kernels do not support these inputs ({unsupported}); choose 'torch'.")
    if device.type != "cuda":
        from triton import knobs

        if not knobs.runtime.interpret:
            raise ValueError(
                f"impl='triton' with tensors on {device}: the kernels need CUDA tensors, or Triton's interpreter "
                "(TRITON_INTERPRET=1 in the environment before Python starts); impl='torch' runs anywhere."
            )
    return True
