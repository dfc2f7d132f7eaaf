"""Which kernels an attention layer runs on: what it calls, not what it is meant to call."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dma_lab.attention import AttentionBackend


class _AttentionOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if (name.startswith("dma_lab::") or "attention" in name) and name not in self.names:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def attention_ops(layer: AttentionBackend, x: Tensor, document_ids: Tensor | None = None) -> list[str]:
    """Operators that ``layer``'s forward pass calls on x (B, N, M), in order: the project's own, as
    ``dma_lab::interval_attention``, and those behind PyTorch's SDPA; none where all is plain PyTorch.
    """
    with torch.no_grad(), _AttentionOps() as seen:
        layer(x, document_ids)
    return seen.names
