"""Interval attention beside other packages' kernels under the same mask: oracles that share no code with it."""

from functools import partial

import pytest
import torch

from dma_lab.benchmarks.packages import authors_attention, differences, fla_attention, lifetimes_mask
from dma_lab.kernels import interval_attention, prefix_topk_expiry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
DIFFERENCE = 8e-3  # relative; each is allowed 4e-3 from float64 in bfloat16


def inputs_of(H, K, N):
    torch.manual_seed(0)
    q, k, v, d_out = (torch.randn(1, heads, N, 128, device="cuda", dtype=torch.bfloat16) for heads in (H, K, K, H))
    return [q, k, v], d_out


def assert_close(found):
    assert {name: by for name, by in found.items() if by is None or by >= DIFFERENCE} == {}


# Inputs that flash-dmattn 1.2.2 is right about. At 1500 tokens its outputs were seen 1e-2 to 5e-2 from float64, and
# where scores rise, so that whole tiles of a mask are empty, its gradients were NaN; ours were within 3e-3.
@pytest.mark.parametrize(
    ("H", "K", "N", "window", "trend"),
    [(4, 4, 2048, 512, 0.0), (4, 2, 1536, 400, 0.0), (8, 1, 900, 100, -4.0), (2, 2, 384, 500, 0.0)],
)
def test_the_kernels_of_dmas_authors_compute_the_same(H, K, N, window, trend):
    pytest.importorskip("flash_dmattn", reason="flash-dmattn is not installed")
    inputs, d_out = inputs_of(H, K, N)
    scores = torch.randn(1, K, N, device="cuda") + torch.linspace(0, trend, N, device="cuda")
    expiry = prefix_topk_expiry(scores.bfloat16().float(), window)

    def ours(q, k, v, bias):
        return interval_attention(q, k, v, expiry, bias=bias.float(), max_live=window)

    theirs = partial(authors_attention, mask=lifetimes_mask(expiry))
    found = differences(theirs, ours, [*inputs, scores.bfloat16()], d_out)
    assert list(found) == ["out", "dq", "dk", "dv", "dbias"]
    assert_close(found)


@pytest.mark.parametrize(("H", "K", "N", "window"), [(4, 4, 2048, 512), (4, 2, 1500, 400), (2, 1, 333, 9)])
def test_flas_window_is_what_constant_scores_are(H, K, N, window):
    pytest.importorskip("fla", reason="fla-core is not installed")
    inputs, d_out = inputs_of(H, K, N)
    expiry = prefix_topk_expiry(torch.ones(1, K, N, device="cuda"), window)
    ours = partial(interval_attention, expiry=expiry, max_live=window)
    assert_close(differences(partial(fla_attention, window=window), ours, inputs, d_out))
