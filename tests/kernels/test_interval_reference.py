"""The plain PyTorch path of interval attention against loops, gradcheck, and itself block by block."""

import subprocess
import sys

import pytest
import torch

from dma_lab.kernels import interval_attention, prefix_topk_expiry
from dma_lab.kernels.interval.reference import blockwise_interval_attention, dense_interval_attention


def random_input(N, *, H=4, K=2, D=8, D_v=6, B=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(N)
    return (
        torch.randn(B, H, N, D, generator=generator, dtype=dtype),
        torch.randn(B, K, N, D, generator=generator, dtype=dtype),
        torch.randn(B, K, N, D_v, generator=generator, dtype=dtype),
        torch.randn(B, K, N, generator=generator, dtype=dtype),
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("N", "H", "K", "scale"), [(1, 2, 2, None), (29, 4, 4, 0.3), (29, 4, 2, None), (29, 4, 1, None)]
)
def test_attention_is_a_softmax_over_live_keys(N, H, K, scale, with_bias, live_by_expiry, attention_by_loops):
    q, k, v, bias = random_input(N, H=H, K=K)
    bias = bias if with_bias else None
    # Lifetimes at random, with keys that never live and queries that see none.
    position = torch.arange(N)
    expiry = (position + torch.randint(0, 9, (2, K, N), generator=torch.Generator().manual_seed(5))).clamp(max=N)
    expiry = expiry.to(torch.int32)
    out = interval_attention(q, k, v, expiry, bias=bias, scale=scale)
    expected = attention_by_loops(q, k, v, live_by_expiry(expiry), bias, scale)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_full_lifetimes_are_causal_attention():
    q, k, v, _ = random_input(50, K=4)
    out = interval_attention(q, k, v, torch.full((2, 4, 50), 50, dtype=torch.int32))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_gradients_in_float64():
    q, k, v, bias = (tensor.requires_grad_() for tensor in random_input(11, B=1, D=3, D_v=2))
    expiry = prefix_topk_expiry(bias, 4)
    expiry[0, 0, :3] = torch.arange(3)  # the first queries see nothing
    assert torch.autograd.gradcheck(
        lambda q, k, v, bias: interval_attention(q, k, v, expiry, bias=bias), (q, k, v, bias)
    )


@pytest.mark.parametrize("window", [1, 9, 200])
def test_block_by_block_equals_dense(window, score_kind, make_scores):
    N = 83
    q, k, v, _ = random_input(N)
    bias = make_scores(score_kind, 2, 2, N).double()
    expiry = prefix_topk_expiry(bias, window)
    results = []
    for attend in (dense_interval_attention, lambda *arguments: blockwise_interval_attention(*arguments, block=16)):
        inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v, bias)]
        out = attend(*inputs[:3], expiry, inputs[3], 0.4)
        results.append((out, *torch.autograd.grad((out * torch.cos(q[..., :6])).sum(), inputs)))
    for blockwise, dense in zip(*results, strict=True):
        torch.testing.assert_close(blockwise, dense, rtol=1e-10, atol=1e-12)


def test_later_tokens_change_no_earlier_output():
    N, t = 70, 33
    tensors = random_input(N, dtype=torch.float32)
    changed = [tensor.clone() for tensor in tensors]
    for tensor in changed:
        tensor[:, :, t + 1 :] = 7 * torch.randn_like(tensor[:, :, t + 1 :])
    before, after = (
        interval_attention(q, k, v, prefix_topk_expiry(bias, 9), bias=bias) for q, k, v, bias in (tensors, changed)
    )
    assert torch.equal(before[:, :, : t + 1], after[:, :, : t + 1])
    assert not torch.equal(before[:, :, t + 1 :], after[:, :, t + 1 :])


def test_long_sequences_need_no_square_of_memory():
    program = """
import resource, torch
from dma_lab.kernels import interval_attention, prefix_topk_expiry
N, w = 32768, 1024
torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, N, 64) for _ in range(3))
score = torch.randn(1, 2, N)
with torch.no_grad():
    expiry = prefix_topk_expiry(score, w)
    out = interval_attention(q, k, v, expiry, bias=score)
t = 30011
live = (torch.arange(N) <= t) & (t < expiry[0, 1])
assert int(live.sum()) == w
weights = (k[0, 1, live] @ q[0, 1, t] / 8 + score[0, 1, live]).softmax(0)
torch.testing.assert_close(out[0, 1, t], weights @ v[0, 1, live], rtol=1e-4, atol=1e-5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 1024**2  # KiB: one N x N float32 alone is 4 GiB


N5 = {"q": torch.ones(1, 4, 5, 8), "k": torch.ones(1, 2, 5, 8), "v": torch.ones(1, 2, 5, 6)}
N5["expiry"] = torch.full((1, 2, 5), 5, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"q": torch.ones(4, 5, 8)}, "^q "),
        ({"k": torch.ones(1, 2, 6, 8)}, "^k "),
        ({"k": torch.ones(1, 3, 5, 8)}, "^k has 3 heads"),
        ({"v": torch.ones(1, 2, 4, 6)}, "^v "),
        ({"v": torch.ones(1, 2, 5, 6, dtype=torch.float64)}, "^v is torch.float64"),
        ({"expiry": torch.full((1, 2, 5), 5)}, "^expiry "),
        ({"expiry": torch.full((1, 4, 5), 5, dtype=torch.int32)}, "^expiry "),
        ({"bias": torch.ones(1, 4, 5)}, "^bias "),
        ({"bias": torch.ones(1, 2, 5, device="meta")}, "^bias is on meta"),
        ({"impl": "cuda"}, "^impl='cuda'"),
    ],
)
def test_bad_input_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        interval_attention(**(N5 | change))
