"""What the flash-attn packages are asked for, told by stand-ins that have their functions' arguments and no kernels.

The packages themselves run in tests/gpu. Here the operator around them runs on the CPU: what it passes, in which
layout, forward and backward, eagerly and compiled.
"""

import sys
from types import ModuleType

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dma_lab.kernels import Documents, document_bounds, interval_attention
from dma_lab.kernels.causal import flash_operator
from dma_lab.kernels.causal.attention import IMPLEMENTATIONS

LENGTHS = [1, 30, 12, 21]
B, H, N, D = 2, 4, 64, 16


def weights_of(q_hnd, k_hnd, scale, window):
    """Logits of one sequence in float64, those that are not seen -inf."""
    t = torch.arange(q_hnd.shape[1])
    seen = (t <= t[:, None]) & (t[:, None] < t + (window or len(t)))
    return (q_hnd @ k_hnd.mT * scale).masked_fill(~seen, -torch.inf)


def by_head(group, *tensors):
    """(N, heads, width) -> float64 (H, N, width)."""
    doubled = (tensor.double().transpose(0, 1) for tensor in tensors)
    return [tensor.repeat_interleave(group if len(tensor) < H else 1, 0) for tensor in doubled]


def forward_of(q, k, v, scale, window):
    """Output (N, H, width) and log-sum-exp (H, N) of one sequence."""
    q, k, v = by_head(q.shape[1] // k.shape[1], q, k, v)
    logits = weights_of(q, k, scale, window)
    return (logits.softmax(-1) @ v).transpose(0, 1), logits.logsumexp(-1)


def gradients_of(dout, q, k, v, out, lse, scale, window):
    """dq, dk and dv of one sequence, with softmax made again of its log-sum-exp."""
    K, group = k.shape[1], q.shape[1] // k.shape[1]
    dout, q, k, v, out = by_head(group, dout, q, k, v, out)
    p = (weights_of(q, k, scale, window) - lse.double()[..., None]).exp()
    ds = p * (dout @ v.mT - (dout * out).sum(-1, keepdim=True)) * scale
    dk, dv = (gradient.unflatten(0, (K, group)).sum(1) for gradient in (ds.mT @ q, p.mT @ dout))
    return tuple(gradient.transpose(0, 1) for gradient in (ds @ k, dk, dv))


def over_sequences(function, tensors, offsets, longest, *asked):
    """``function`` over a batch of sequences, or over those that ``offsets`` cut flat tensors into, joined again.

    Log-sum-exps have their heads before their tokens.
    """
    if offsets is None:
        each = [function(*one, *asked) for one in zip(*tensors, strict=True)]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]
    lengths = offsets.diff().tolist()
    assert (offsets.dtype, offsets[-1], longest) == (torch.int32, B * N, max(lengths))
    cut = [tensor.split(lengths, dim=1 if tensor.ndim == 2 else 0) for tensor in tensors]
    each = [function(*one, *asked) for one in zip(*cut, strict=True)]
    return [torch.cat(parts, dim=1 if parts[0].ndim == 2 else 0) for parts in zip(*each, strict=True)]


def version_2() -> ModuleType:
    """Its functions as flash-attn 2.8 has them: a window counts keys beside the query's own, -1 is none."""
    module = ModuleType("flash_attn.flash_attn_interface")

    def keys(causal, left, right):
        assert causal
        assert (left, right) == (-1, -1) or (left >= 0 and right == 0)
        return None if left < 0 else left + 1

    def forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1,
    ):  # fmt: skip
        assert cu_seqlens_q is cu_seqlens_k
        assert (max_seqlen_q, dropout_p) == (max_seqlen_k, 0.0)
        window = keys(causal, window_size_left, window_size_right)
        asked = cu_seqlens_q, max_seqlen_q, softmax_scale, window
        out, lse = over_sequences(forward_of, (q, k, v), *asked)
        return out.to(q.dtype), lse.float(), None, None

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
    ):  # fmt: skip
        window = keys(causal, window_size_left, window_size_right)
        asked = cu_seqlens_q, max_seqlen_q, softmax_scale, window
        for into, gradient in zip(
            (dq, dk, dv), over_sequences(gradients_of, (dout, q, k, v, out, softmax_lse), *asked), strict=True
        ):
            into.copy_(gradient)

    module._flash_attn_varlen_forward, module._flash_attn_varlen_backward = forward, backward
    return module


def version_4() -> ModuleType:
    """Its functions as flash-attn-4 4.0.0b36 has them: with ``causal`` the right side of a window is 0."""
    module = ModuleType("flash_attn.cute.interface")

    def forward(
        q, k, v, *, softmax_scale, causal, return_lse, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
        max_seqlen_k=None, window_size_left=None,
    ):  # fmt: skip
        assert causal
        assert return_lse
        window = None if window_size_left is None else window_size_left + 1
        asked = cu_seqlens_q, max_seqlen_q, softmax_scale, window
        out, lse = over_sequences(forward_of, (q, k, v), *asked)
        return out.to(q.dtype), lse.float(), None, None, None

    def backward(
        q, k, v, out, dout, lse, *, softmax_scale, causal, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
        max_seqlen_k=None, window_size_left=None, deterministic=False,
    ):  # fmt: skip
        window = None if window_size_left is None else window_size_left + 1
        asked = cu_seqlens_q, max_seqlen_q, softmax_scale, window
        return tuple(
            gradient.to(q.dtype) for gradient in over_sequences(gradients_of, (dout, q, k, v, out, lse), *asked)
        )

    module._flash_attn_fwd, module._flash_attn_bwd = forward, backward
    return module


@pytest.fixture
def stand_ins(monkeypatch):
    for module in (ModuleType("flash_attn"), ModuleType("flash_attn.cute"), version_2(), version_4()):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    # The operators are CUDA's alone; for these tests the CPU runs the same bodies.
    library = torch.library.Library("dma_lab", "FRAGMENT")
    for name in ("_attend", "_backward_pass"):
        operator = getattr(flash_operator, name)
        library.impl(operator._opoverload, operator._init_fn, "CPU")
    yield
    library._destroy()


def inputs_of(version, dtype=torch.float32):
    torch.manual_seed(0)
    key_heads, value_width = (2, D) if version == 2 else (H, D // 2)  # version 2 with groups, 4 as MLA would have it
    shapes = (B, H, N, D), (B, key_heads, N, D), (B, key_heads, N, value_width)
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


def expected_of(q, k, v, window, ids, d_out, scale):
    expiry = document_bounds(ids, B, N, q.device)[1]
    expiry = expiry if window is None else torch.minimum(expiry, torch.arange(N) + window)
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    out = interval_attention(*exact, expiry[:, None].expand(-1, k.shape[1], -1).to(torch.int32), scale=scale)
    return out, *torch.autograd.grad(out, exact, d_out.double())


def ids_of(*lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(B, -1)


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("packed", [False, True, "bare ids"])
def test_the_operator_passes_what_was_asked_for(stand_ins, version, window, packed):
    q, k, v = inputs_of(version)
    ids = ids_of(*LENGTHS) if packed else None
    documents = Documents.of(ids) if packed is True else ids
    d_out = torch.randn(B, H, N, v.shape[-1])
    out = flash_operator.flash_attention(q, k, v, window, documents, 0.3, version=version)
    found = out, *torch.autograd.grad(out, (q, k, v), d_out)
    for each, wanted in zip(found, expected_of(q, k, v, window, ids, d_out, 0.3), strict=True):
        torch.testing.assert_close(each.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("bare", [False, True])
def test_one_graph_serves_batches_of_any_number_of_documents(stand_ins, version, bare):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    (listed,) = (each for each in IMPLEMENTATIONS if each.name == f"flash-attn {version}")

    def attend(q, k, v, documents):
        return listed.attend(2 * q, k, v, None, documents, None)

    compiled = torch.compile(attend, backend=counter, fullgraph=True)
    q, k, v = inputs_of(version)
    d_out = torch.randn(B, H, N, v.shape[-1])
    for lengths in (LENGTHS, [64], [30, 34], [1] * 64):
        documents = ids_of(*lengths)
        if not bare:
            documents = Documents.of(documents)
            torch._dynamo.maybe_mark_dynamic(documents.offsets, 0)  # as on CUDA they are by themselves
        out = compiled(q, k, v, documents)
        found = out, *torch.autograd.grad(out, (q, k, v), d_out)
        expected = attend(q, k, v, documents)
        wanted = expected, *torch.autograd.grad(expected, (q, k, v), d_out)
        for each, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(each, reference)
    assert counter.frame_count == 1
