"""Compiles every kernel for an H100 on a machine that has none, and prints their names: what runs under the interpreter
need not compile. ``python -m tests.kernels.compiled_kernels``, without TRITON_INTERPRET.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dma_lab.kernels.blocks.choice import choose_blocks_triton
from dma_lab.kernels.blocks.masked_operator import masked_attention_triton, masked_attention_triton_backward
from dma_lab.kernels.blocks.operator import selected_attention_triton, selected_attention_triton_backward
from dma_lab.kernels.decode.triton import admit_key_triton, interval_attention_decode_triton
from dma_lab.kernels.interval.hopper.dkv import hopper_dkv
from dma_lab.kernels.interval.hopper.dq import hopper_dq
from dma_lab.kernels.interval.hopper.forward import hopper_forward
from dma_lab.kernels.interval.key_lists import build_key_lists
from dma_lab.kernels.interval.operator import interval_attention_triton, interval_attention_triton_backward, list_block
from dma_lab.kernels.selection.counting import expiry_from_scores
from dma_lab.kernels.selection.ranks import rank_scores

B, H, K, N, LIVE = 1, 4, 2, 512, 128
compiled: set[str] = set()


class _H100:
    """What Triton asks its driver before a launch."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile_alone(launch: Callable[..., Any]) -> Callable[..., Any]:
    def compile_alone(kernel: Any, *arguments: Any, **options: Any) -> Any:
        compiled.add(kernel.fn.__name__)
        return launch(kernel, *arguments, **options | {"warmup": True})

    return compile_alone


def _of_operator(operator: Any, *arguments: Any) -> Any:
    """Called past PyTorch's dispatcher, which takes an operator's tensors for those of a CPU."""
    return operator._init_fn(*arguments)


def _heads(count: int, length: int, dtype: torch.dtype) -> Tensor:
    """Narrow in float32, whose products take long to compile."""
    return torch.randn(B, count, length, 64 if dtype == torch.bfloat16 else 16).to(dtype)


def compile_all() -> None:
    scores, positions = torch.randn(B, K, N), torch.arange(N)
    rank_scores(scores[0].double(), None)
    _of_operator(expiry_from_scores, scores[0], LIVE, 0, None, None)
    _of_operator(expiry_from_scores, scores[0], LIVE, 16, *torch.zeros(2, K, N, dtype=torch.int32))
    expiry = (positions + 1 + LIVE).clamp(max=N).int().expand(B, K, N)
    for dtype, bias in ((torch.bfloat16, scores), (torch.float32, None)):
        q, d_out = _heads(H, N, dtype), _heads(H, N, dtype)
        k, v = _heads(K, N, dtype), _heads(K, N, dtype)
        compile_interval_attention(q, k, v, d_out, expiry, bias)
        compile_blocks(q, k, v, d_out, positions)
        cache = (
            _heads(K, LIVE, dtype),
            _heads(K, LIVE, dtype),
            scores[..., :LIVE].clone(),
            torch.zeros(B, K, LIVE).long(),
        )
        _of_operator(admit_key_triton, *cache, k[:, :, :1], v[:, :, :1], scores[..., :1], 300, LIVE, 0)
        _of_operator(interval_attention_decode_triton, q[:, :, :1], cache[0], cache[1], cache[3], bias, 0.1)


def compile_interval_attention(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, expiry: Tensor, bias: Tensor | None
) -> None:
    out, lse, *lists = _of_operator(interval_attention_triton, q, k, v, expiry, bias, 0.1, LIVE)
    _of_operator(interval_attention_triton_backward, d_out, q, k, v, expiry, bias, out, lse, lists, 0.1, LIVE)
    if q.dtype == torch.bfloat16:
        key_lists = build_key_lists(expiry, list_block(q, k), LIVE, bias)
        hopper_forward(q, k, v, key_lists, 0.1)
        hopper_dq(d_out, q, k, v, out, lse, lse, key_lists, 0.1)
        hopper_dkv(d_out, q, k, v, expiry, bias, lse, lse, key_lists.by_arrival_rn, 0.1)


def compile_blocks(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, positions: Tensor) -> None:
    """NSA's: summaries of 32 tokens every 16, selected blocks of 64, four of them."""
    start_bn, end_bn = torch.zeros(2, B, N, dtype=torch.int32)
    lse = torch.randn(B, H, N)
    _of_operator(choose_blocks_triton, q, k[:, :, 1::16], lse, start_bn, start_bn, 4, 32, 16, 64, 0.1)
    chosen = (positions[:, None] // 64).int().expand(B, K, N, 4).contiguous()
    out, lse, *lists = _of_operator(selected_attention_triton, q, k, v, chosen, end_bn + N, 64, 0.1)
    operator = selected_attention_triton_backward
    _of_operator(operator, d_out, q, k, v, chosen, end_bn + N, out, lse, *lists, 64, 0.1)
    out, lse, bits_bkn = _of_operator(masked_attention_triton, q, k, v, chosen, start_bn, end_bn + N, 64, 0.1)
    operator = masked_attention_triton_backward
    _of_operator(operator, d_out, q, k, v, start_bn, end_bn + N, out, lse, bits_bkn, 64, 0.1)


if __name__ == "__main__":
    driver.set_active(_H100())
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)
    JITFunction.run = _compile_alone(JITFunction.run)  # type: ignore[method-assign]
    compile_all()
    print(*sorted(compiled))
