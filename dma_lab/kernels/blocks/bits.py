"""Which blocks a query chose, as bits: where a document has few blocks, a number per query and key/value head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.sizes import cdiv

_QUERIES = 128


def choice_bits(chosen: Tensor, start_bn: Tensor, block: int) -> Tensor:
    """int32 (B, K, N): bit ``i`` is set where a query chose the i-th block of its document.

    Arguments as in ``selected_attention``, contiguous; no document may have more than 32 blocks.
    """
    B, K, N, S = chosen.shape
    bits_bkn = torch.empty(B, K, N, dtype=torch.int32, device=chosen.device)
    _bits_kernel[(cdiv(N, _QUERIES), B * K)](chosen, start_bn, bits_bkn, K, N, block, S, _QUERIES)
    return bits_bkn


@triton.jit
def _bits_kernel(chosen_ptr, start_ptr, bits_ptr, K, N, BLOCK: tl.constexpr, S: tl.constexpr, QUERIES: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    t_q = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    start_q = tl.load(start_ptr + row // K * N + t_q, mask=t_q < N, other=0)
    bits_q = tl.zeros((QUERIES,), tl.int32)
    for s in range(S):
        begin_q = tl.load(chosen_ptr + (row * N + t_q) * S + s, mask=t_q < N, other=-1)
        bits_q |= tl.where(begin_q >= 0, 1 << ((begin_q - start_q) // BLOCK), 0)
    tl.store(bits_ptr + row * N + t_q, bits_q, mask=t_q < N)
