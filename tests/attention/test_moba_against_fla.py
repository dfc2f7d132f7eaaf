"""MoBA against fla-core's ``parallel_moba``, float32 on the CPU. Held to each other are how blocks are cut and chosen,
how what a query reads of them is merged, and the gradients of both; flash-attn's two functions, which fla calls for
attention to a span of keys and which need a GPU, are plain PyTorch here.

Both sides get the same queries, keys and values, ours repeated for a group's query heads. Both count the query's own
block among those it reads, scale logits by the root of ``head_dim``, and begin blocks anew at each document. Of one
block a query alone there is nothing to compare: theirs is then full attention, ours, as in the paper, its own block.
"""

import fla.ops.moba.parallel as theirs
import pytest
import torch
from torch import Tensor

from dma_lab.attention import build_attention

M, D, N = 20, 6, 48
HEADS = {"mha": (2, 2), "gqa": (4, 2), "mqa": (3, 1)}
DOCUMENTS = {"one": [N], "several": [1, 23, 4, 8, 12], "each shorter than a block": [3, 1, 4] * 6}


def spans(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> list[tuple[slice, slice]]:
    ends = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    return [(slice(q0, q1), slice(k0, k1)) for q0, q1, k0, k1 in ends]


def scores(q_thd: Tensor, k_shd: Tensor, scale: float, causal: bool) -> Tensor:
    logits_hts = torch.einsum("thd,shd->hts", q_thd, k_shd) * scale
    later = torch.ones_like(logits_hts, dtype=torch.bool).triu(1)
    return logits_hts.masked_fill(later, -torch.inf) if causal else logits_hts


def flash_forward(*, q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, **_) -> tuple[Tensor | None, ...]:
    """flash-attn's ``_flash_attn_varlen_forward``: outputs (T, H, D), log-sum-exps (H, T)."""
    outs, lses = [], []
    for at, of in spans(cu_seqlens_q, cu_seqlens_k):
        logits = scores(q[at], k[of], softmax_scale, causal)
        outs.append(torch.einsum("hts,shd->thd", logits.softmax(-1), v[of]))
        lses.append(logits.logsumexp(-1))
    return torch.cat(outs), torch.cat(lses, dim=1), None, None


def flash_backward(
    *, dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, **_
) -> None:
    """flash-attn's ``_flash_attn_varlen_backward``, of outputs and log-sum-exps that may be over other spans, too."""
    for at, of in spans(cu_seqlens_q, cu_seqlens_k):
        weights = (scores(q[at], k[of], softmax_scale, causal) - softmax_lse[:, at, None]).exp()
        d_weights = torch.einsum("thd,shd->hts", dout[at], v[of])
        d_logits = weights * (d_weights - (dout[at] * out[at]).sum(-1).t()[..., None]) * softmax_scale
        dq[at] = torch.einsum("hts,shd->thd", d_logits, k[of])
        dk[of] = torch.einsum("hts,thd->shd", d_logits, q[at])
        dv[of] = torch.einsum("hts,thd->shd", weights, dout[at])


def flash_attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *_: int, causal: bool) -> Tensor:
    """flash-attn's ``flash_attn_varlen_func``, which theirs calls where no document is longer than a block."""
    given = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    return flash_forward(**given, softmax_scale=q.shape[-1] ** -0.5, causal=causal)[0]


@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("block", "count"), [(4, 3), (5, 2), (6, 20)])
def test_outputs_and_gradients_are_theirs(heads, block, count, lengths, monkeypatch):
    monkeypatch.setattr(theirs, "_flash_attn_varlen_forward", flash_forward)
    monkeypatch.setattr(theirs, "_flash_attn_varlen_backward", flash_backward)
    monkeypatch.setattr(theirs, "flash_attn_varlen_func", flash_attention)
    torch.manual_seed(0)
    shape = {"d_model": M, "n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": D, "max_seq_len": 512}
    attention = build_attention("moba", **shape, block=block, selected_blocks=count)
    x, upstream = torch.randn(1, N, M, requires_grad=True), torch.randn(1, N, M)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    q, k, v = attention.heads(x)
    k, v = (part.repeat_interleave(heads[0] // heads[1], dim=1) for part in (k, v))
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    time_first = (part.transpose(1, 2).contiguous() for part in (q, k, v))
    mixed = theirs.parallel_moba(*time_first, ends, max(lengths), block, count)
    expected, found = attention.o_proj(mixed.flatten(2)), attention(x, ids)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    inputs = [x, *attention.parameters()]
    for ours, of_theirs in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, of_theirs, rtol=1e-5, atol=1e-5)
