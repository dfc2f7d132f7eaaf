"""The Triton kernels on a GPU: against float64, bit for bit on repetition, and inside what training puts around."""

import pytest
import torch

from dma_lab.kernels import admit_key, interval_attention, interval_attention_decode, prefix_topk_expiry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("unwritten_memory_is_nan"),
]

# Relative errors allowed: (out, dq, dk, dv, dbias).
TOLERANCE = {
    torch.bfloat16: (4e-3, 4e-3, 4e-3, 4e-3, 2e-3),
    torch.float16: (1e-3, 1e-3, 1e-3, 1e-3, 1e-3),
    torch.float32: (1e-5, 1e-5, 1e-5, 1e-5, 1e-5),
}


def scores_of(kind, B, K, N):
    noise = torch.randn(B, K, N, device="cuda")
    trend = torch.linspace(-2, 2, N, device="cuda")
    sinks = torch.where(torch.arange(N, device="cuda") < 64, 9.0, 0.0)
    outsized = noise.clone()
    outsized[-1, 0, N // 3 : N // 3 + 10] = 120.0  # a row whose later queries' sums leave float32, among others
    return {
        "random": noise,
        "constant": torch.ones_like(noise),
        "rising": trend.expand(B, K, N).contiguous(),
        "drifting": noise + trend,
        "sinks": noise + sinks,
        "outsized": outsized,
    }[kind]


def relative_error(found, expected):
    assert found.isfinite().all()
    return ((found.double() - expected).norm() / expected.norm()).item()


def attend(tensors, scores, expiry, dtype, **options):
    """Output and gradients in q, k, v and the bias."""
    inputs = [tensor.to(dtype).requires_grad_() for tensor in tensors[:3]]
    bias = scores.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    out = interval_attention(*inputs, expiry, bias=bias, **options)
    return out, *torch.autograd.grad(out, [*inputs, bias], tensors[3].to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("B", "H", "K", "N", "D", "D_v", "window", "recent", "kind"),
    [
        (1, 4, 4, 1500, 128, 128, 400, 0, "random"),
        (1, 4, 2, 1400, 128, 64, 400, 0, "random"),
        (2, 4, 2, 1111, 64, 64, 300, 3, "drifting"),
        (1, 8, 1, 900, 128, 64, 256, 3, "constant"),
        (1, 6, 2, 777, 96, 80, 100, 3, "rising"),
        (1, 2, 1, 513, 256, 256, 128, 3, "sinks"),
        (3, 2, 2, 257, 32, 32, 1, 3, "random"),
        (1, 2, 2, 300, 64, 64, 1000, 3, "random"),
        (2, 6, 3, 2048, 128, 128, 1024, 3, "outsized"),
        (5, 4, 4, 700, 64, 128, 200, 0, "random"),
        (1, 1, 1, 20, 64, 64, 8, 3, "random"),
        (1, 4, 2, 640, 128, 128, 1, 3, "random"),
        (1, 1, 1, 20_000, 64, 64, 700, 0, "random"),
    ],
)
def test_output_and_gradients_equal_float64(dtype, B, H, K, N, D, D_v, window, recent, kind):
    torch.manual_seed(N)
    scores = scores_of(kind, B, K, N)
    shapes = [(B, H, N, D), (B, K, N, D), (B, K, N, D_v), (B, H, N, D_v)]
    tensors = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    expiry = prefix_topk_expiry(scores, window, recent=recent)
    assert torch.equal(expiry, prefix_topk_expiry(scores, window, recent=recent, impl="torch"))
    never_live = (expiry == torch.arange(N, device="cuda")).sum(-1)
    assert (never_live > 128).all() if recent == 0 else (never_live == 0).all()  # 128: a program of dK and dV on Hopper
    found = attend(tensors, scores, expiry, dtype, impl="triton", max_live=window + recent)
    expected = attend(tensors, scores, expiry, torch.float64, impl="torch")
    for each, reference, allowed in zip(found, expected, TOLERANCE[dtype], strict=True):
        assert relative_error(each, reference) <= allowed
    again = attend(tensors, scores, expiry, dtype, impl="triton", max_live=window + recent)
    assert all(torch.equal(first, second) for first, second in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [128, 64, 32])
@pytest.mark.parametrize(("N", "tokens_a_document"), [(2, 2), (10, 10), (250, 250), (1500, 2), (1500, 20), (1500, 128)])
def test_rounding_of_the_output_reaches_no_gradient_where_few_keys_live(dtype, D, N, tokens_a_document):
    torch.manual_seed(N)
    scores = torch.randn(2, 2, N, device="cuda")
    tensors = [torch.randn(2, heads, N, D, device="cuda").to(dtype) for heads in (4, 2, 2, 4)]
    ids = (torch.arange(N, device="cuda") // tokens_a_document).expand(2, N).contiguous()
    expiry = prefix_topk_expiry(scores, 1000, document_ids=ids)
    found = attend(tensors, scores, expiry, dtype, impl="triton", max_live=1000)
    expected = attend(tensors, scores, expiry, torch.float64, impl="torch")
    for each, reference, allowed in zip(found, expected, TOLERANCE[dtype], strict=True):
        assert relative_error(each, reference) <= allowed
    # Biases' gradients are sums of float32, in which delta of the rounded output would be 1e-4 to 7e-3 off.
    assert relative_error(found[4], expected[4]) <= 1e-5


def test_a_gradient_that_all_heads_share():
    """One tensor in memory for all batch entries and heads, as sums over them pass back."""
    tensors = [torch.randn(2, 4, 500, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    scores = torch.randn(2, 4, 500, device="cuda")
    expiry = prefix_topk_expiry(scores, 100)
    shared = torch.randn(1, 1, 500, 64, device="cuda", dtype=torch.bfloat16).expand(2, 4, 500, 64)
    found = attend([*tensors, shared], scores, expiry, torch.bfloat16, max_live=100)
    expected = attend([*tensors, shared.contiguous()], scores, expiry, torch.bfloat16, max_live=100)
    assert all(torch.equal(first, second) for first, second in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["random", "constant", "rising", "drifting", "sinks"])
@pytest.mark.parametrize(("N", "window"), [(32768, 2048), (131072, 1024), (5000, 4999)])
def test_expiry_equals_the_reference_at_length(kind, N, window):
    scores = scores_of(kind, 1, 2, N)
    assert torch.equal(prefix_topk_expiry(scores, window), prefix_topk_expiry(scores, window, impl="torch"))
    if N == 5000:
        ids = (torch.arange(N, device="cuda") // 1234)[None]
        arguments = {"recent": 9, "document_ids": ids}
        expected = prefix_topk_expiry(scores, 300, **arguments, impl="torch")
        assert torch.equal(prefix_topk_expiry(scores, 300, **arguments), expected)


def test_later_tokens_change_no_earlier_output():
    N, t = 3000, 2000
    torch.manual_seed(0)
    tensors = [torch.randn(1, 4, N, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    scores = torch.randn(1, 4, N, device="cuda")
    outputs = []
    for _ in range(2):
        outputs.append(interval_attention(*tensors, prefix_topk_expiry(scores, 500), bias=scores))
        for tensor in tensors:
            tensor[:, :, t + 1 :] = torch.randn_like(tensor[:, :, t + 1 :])
        scores[..., t + 1 :] += 3 * torch.randn_like(scores[..., t + 1 :])
    assert torch.equal(outputs[0][:, :, : t + 1], outputs[1][:, :, : t + 1])
    assert not torch.equal(outputs[0], outputs[1])


def test_no_square_of_memory_at_131072_tokens():
    N, window = 131_072, 2048
    q, k, v = (torch.randn(1, 1, N, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    scores = torch.randn(1, 1, N, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    expiry = prefix_topk_expiry(scores, window)
    interval_attention(q, k, v, expiry, bias=scores, max_live=window).sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    print(f"peak memory at N = 131,072, a head: {used / 2**20:.0f} MiB beside {before / 2**20:.0f} MiB of inputs")
    assert used < 2**29  # a square of one byte per entry is 16 GiB


def test_long_sequences_equal_the_reference_row_by_row():
    N, window = 131_072, 2048
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 2, N, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    scores = torch.randn(1, 2, N, device="cuda")
    expiry = prefix_topk_expiry(scores, window)
    out = interval_attention(q, k, v, expiry, bias=scores, max_live=window)
    for t in (0, 2047, 2048, 77_777, N - 1):
        live = (torch.arange(N, device="cuda") <= t) & (t < expiry[0, 1])
        logits = k[0, 1, live].double() @ q[0, 1, t].double() / 128**0.5 + scores[0, 1, live].double()
        assert relative_error(out[0, 1, t], logits.softmax(0) @ v[0, 1, live].double()) < 4e-3


def test_a_compiled_and_checkpointed_dma_layer_equals_the_eager_one():
    from dma_lab.attention import build_attention

    torch.manual_seed(0)
    shape = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_seq_len": 1024}
    layer = build_attention("dma", **shape, window=256).cuda()
    with torch.no_grad():
        layer.A.fill_(0.3)
    x = torch.randn(2, 1000, 256, device="cuda", requires_grad=True)

    def gradients(run):
        out = run(x)
        return out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])

    eager = gradients(layer)
    compiled = gradients(torch.compile(layer, fullgraph=True))
    checkpointed = gradients(lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False))
    for first, second, third in zip(eager, compiled, checkpointed, strict=True):
        assert torch.equal(first, third)
        # The compiler fuses and rounds otherwise: in float32 too little to change which keys are kept.
        assert relative_error(second, first.double()) < 1e-4


@pytest.mark.parametrize("recent", [0, 5])
def test_decoding_equals_the_whole_sequence(recent):
    B, H, K, N, D, window = 2, 4, 2, 600, 64, 128
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, heads, N, D, device="cuda", dtype=torch.bfloat16) for heads in (H, K, K))
    scores = torch.randn(B, K, N, device="cuda").mul(4).round()
    expiry = prefix_topk_expiry(scores, window, recent=recent)
    expected = interval_attention(q.double(), k.double(), v.double(), expiry, bias=scores.double(), impl="torch")
    S = window + recent
    k_cache, v_cache = (torch.full((B, K, S, D), torch.nan, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    score_cache = torch.full((B, K, S), torch.nan, device="cuda")
    arrived = torch.full((B, K, S), -1, dtype=torch.int32, device="cuda")
    for t in range(N):
        new = k[:, :, t], v[:, :, t], scores[:, :, t]
        admit_key(k_cache, v_cache, score_cache, arrived, *new, t, window, recent=recent)
        out = interval_attention_decode(q[:, :, t : t + 1], k_cache, v_cache, arrived, bias=score_cache)
        assert relative_error(out, expected[:, :, t : t + 1]) < 4e-3


def test_a_fall_back_on_the_gpu_is_announced(capsys):
    from dma_lab.messages import print_once

    print_once.cache_clear()
    x = torch.randn(1, 1, 8, 16, device="cuda", dtype=torch.float64)
    interval_attention(x, x, x, torch.full((1, 1, 8), 8, dtype=torch.int32, device="cuda"))
    assert "plain PyTorch runs instead" in capsys.readouterr().err
