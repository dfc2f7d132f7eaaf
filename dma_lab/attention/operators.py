"""Which kernels an attention layer runs on: what it calls, not what it is meant to call."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dma_lab.attention.base import AttentionBackend

_INTERVAL = "dma_lab::interval_attention"


class _AttentionOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.on_hopper = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if (name.startswith("dma_lab::") or "attention" in name) and name not in self.names:
            self.names.append(name)
        if name == _INTERVAL:
            from dma_lab.kernels.interval.hopper.ring import hopper_supports  # which wants Triton, as the operator does

            self.on_hopper = hopper_supports(*args[:3])
        return func(*args, **(kwargs or {}))


def attention_ops(layer: AttentionBackend, x: Tensor, document_ids: Tensor | None = None) -> list[str]:
    """Operators that ``layer``'s forward pass calls on x (B, N, M), in order: the project's own, as
    ``dma_lab::interval_attention``, and those behind PyTorch's SDPA; none where all is plain PyTorch.
    """
    with torch.no_grad(), _AttentionOps() as seen:
        layer(x, document_ids)
    return seen.names


def attention_kernels(layer: AttentionBackend, seq_len: int, *, device: torch.device, packed: bool, bf16: bool) -> str:
    """What ``layer``, which is on ``device``, attends with over ``seq_len`` tokens, for a run's summary: its operators,
    and whether interval attention ran its kernels for Hopper GPUs or those in plain Triton.
    """
    x = torch.zeros(1, seq_len, layer.d_model, device=device)
    document_ids = torch.zeros(1, seq_len, dtype=torch.int64, device=device) if packed else None
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16), _AttentionOps() as seen:
        layer(x, document_ids)
    kind = "Hopper" if seen.on_hopper else "Triton"
    return ", ".join(f"{name} ({kind})" if name == _INTERVAL else name for name in seen.names) or "plain PyTorch"
