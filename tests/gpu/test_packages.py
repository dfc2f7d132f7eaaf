"""Interval attention beside other packages' kernels under the same mask: oracles that share no code with it."""

import pytest
import torch

from benchmarks.packages import authors_attention, fla_attention, lifetimes_mask
from dma_lab.kernels import interval_attention, prefix_topk_expiry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
DIFFERENCE = 8e-3  # relative; each is allowed 4e-3 from float64 in bfloat16


def inputs_of(H, K, N, D=128):
    torch.manual_seed(0)
    q, k, v, d_out = (torch.randn(1, heads, N, D, device="cuda", dtype=torch.bfloat16) for heads in (H, K, K, H))
    return [tensor.requires_grad_() for tensor in (q, k, v)], d_out


def with_gradients(out, inputs, d_out):
    return out, *torch.autograd.grad(out, inputs, d_out)


def assert_close(found, expected):
    for name, ours, theirs in zip(("out", "dq", "dk", "dv", "dbias"), found, expected, strict=False):
        difference = ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
        assert difference < DIFFERENCE, f"{name} differs by {difference:.1e}"


@pytest.mark.parametrize(
    ("H", "K", "N", "window", "trend"),
    [(4, 4, 2048, 512, 0.0), (4, 2, 1500, 400, 4.0), (8, 1, 900, 100, -4.0), (2, 2, 384, 500, 0.0)],
)
def test_the_kernels_of_dmas_authors_compute_the_same(H, K, N, window, trend):
    pytest.importorskip("flash_dmattn", reason="flash-dmattn is not installed")
    inputs, d_out = inputs_of(H, K, N)
    scores = torch.randn(1, K, N, device="cuda") + torch.linspace(0, trend, N, device="cuda")
    bias = scores.bfloat16().requires_grad_()
    expiry = prefix_topk_expiry(bias.float(), window)
    leaves = [*inputs, bias]
    found = with_gradients(interval_attention(*inputs, expiry, bias=bias.float(), max_live=window), leaves, d_out)
    assert_close(found, with_gradients(authors_attention(*leaves, lifetimes_mask(expiry)), leaves, d_out))


@pytest.mark.parametrize(("H", "K", "N", "window"), [(4, 4, 2048, 512), (4, 2, 1500, 400), (2, 1, 333, 1)])
def test_flas_window_is_what_constant_scores_are(H, K, N, window):
    pytest.importorskip("fla", reason="fla-core is not installed")
    inputs, d_out = inputs_of(H, K, N)
    expiry = prefix_topk_expiry(torch.ones(1, K, N, device="cuda"), window)
    found = with_gradients(interval_attention(*inputs, expiry, max_live=window), inputs, d_out)
    assert_close(found, with_gradients(fla_attention(*inputs, window), inputs, d_out))
