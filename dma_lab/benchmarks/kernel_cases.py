"""What ``bench.py kernels`` measures at one length: parts of interval attention, dense attention and FlexAttention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dma_lab.benchmarks.packages import packages_that_attend
from dma_lab.kernels import interval_attention, prefix_topk_expiry
from dma_lab.kernels.causal.problem import Problem
from dma_lab.kernels.interval.key_lists import build_key_lists
from dma_lab.kernels.interval.key_order import backward_key_order
from dma_lab.kernels.interval.operator import attend_lists, list_block

DENSE = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
PARTS = ("selection", "key_lists", "key_order", "forward", "total")
KINDS = ("random", "constant", "drifting", "sinks")

Functions = dict[str, Callable[[], Any]]


class Case:
    """Inputs of one attention, bfloat16, and what is timed of it: ``H`` query and ``K`` key/value heads of width ``D``
    over ``N`` tokens, a ``kind`` of scores that keeps ``window`` keys per query.
    """

    def __init__(self, N: int, window: int, H: int, K: int, D: int, kind: str) -> None:
        torch.manual_seed(0)
        self.q, self.k, self.v, self.d_out = (
            torch.randn(1, N, heads, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for heads in (H, K, K, H)
        )
        self.window, self.scores = window, scores_of(kind, K, N)
        self.expiry = prefix_topk_expiry(self.scores, window)
        self._inputs = [tensor.detach().requires_grad_() for tensor in (self.q, self.k, self.v, self.scores)]

    def total(self) -> tuple[Tensor, ...]:
        q, k, v, scores = self._inputs
        expiry = prefix_topk_expiry(scores, self.window)
        out = interval_attention(q, k, v, expiry, bias=scores, max_live=self.window)
        return torch.autograd.grad(out, self._inputs, self.d_out)

    def functions(self) -> Functions:
        """Of every one of ``PARTS``."""
        q, k, v, scores, expiry, window = self.q, self.k, self.v, self.scores, self.expiry, self.window
        build = partial(build_key_lists, expiry, list_block(q, k), window, scores)
        lists = build()
        return {
            "selection": lambda: prefix_topk_expiry(scores, window),
            "key_lists": build,
            "key_order": lambda: backward_key_order(expiry, lists),
            "forward": lambda: attend_lists(q, k, v, lists, q.shape[-1] ** -0.5),
            "total": self.total,
        }

    def peak_bytes(self) -> int:
        """Peak memory of ``total`` beyond its inputs."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.total()
        return torch.cuda.max_memory_allocated() - before


def scores_of(kind: str, K: int, N: int) -> Tensor:
    """Float32 (1, K, N) scores: ``random``; ``constant``, a sliding window; ``drifting`` upwards; a few ``sinks``."""
    noise = torch.randn(1, K, N, device="cuda")
    if kind == "constant":
        return torch.ones_like(noise)
    if kind == "drifting":
        return noise + torch.linspace(-2, 2, N, device="cuda")
    return noise + 9.0 * (torch.arange(N, device="cuda") < 64) if kind == "sinks" else noise


def live_share(expiry: Tensor) -> float:
    """Live (query, key) pairs over those of causal attention, the mean over heads."""
    N = expiry.shape[-1]
    live = (expiry.long() - torch.arange(N, device=expiry.device)).sum().item()
    return live / (expiry.numel() // N * N * (N + 1) / 2)


def dense_functions(case: Case) -> dict[str, Functions]:
    """Causal attention over the inputs of ``case``, keys and values once for every query head, by what computes it:
    PyTorch's cuDNN and flash kernels, and the flash-attn packages where installed.
    """
    group = case.q.shape[1] // case.k.shape[1]
    k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (case.k, case.v))
    inputs = [tensor.detach().requires_grad_() for tensor in (case.q, k, v)]

    def functions(attend: Callable[..., Tensor]) -> Functions:
        return {
            "forward": torch.no_grad()(lambda: attend(*inputs)),
            "total": lambda: torch.autograd.grad(attend(*inputs), inputs, case.d_out),
        }

    def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    attends: dict[str, Callable[..., Tensor]] = {name: partial(sdpa, backend) for name, backend in DENSE.items()}
    attends |= packages_that_attend(Problem.of(case.q, k, v))
    return {name: functions(attend) for name, attend in attends.items()}


def flex_function(case: Case) -> Callable[[], Tensor]:
    """FlexAttention's forward pass under the mask of ``case``, with its scores as biases; compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = (tensor.contiguous() for tensor in (case.q, case.k, case.v))
    (_, H, N, _), expiry, scores = q.shape, case.expiry, case.scores

    def live(b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        return (j <= t) & (t < expiry[b, h, j])

    def biased(score: Tensor, b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        return score + scores[b, h, j]

    mask = create_block_mask(live, 1, H, N, N, device="cuda", _compile=True)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return torch.no_grad()(lambda: compiled(q, k, v, score_mod=biased, block_mask=mask))
