"""Attention over lifetimes by the Triton kernels under Triton's interpreter, on small shapes. Run by
test_triton_interpreter.py in a process whose TRITON_INTERPRET is set before Triton is imported.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dma_lab.attention.chance import ChanceScores
from dma_lab.kernels import interval_attention, prefix_topk_expiry
from dma_lab.kernels.interval.triton import delta
from tests.kernels.interpreter import quick_interpreter as quick_interpreter  # a fixture

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan", "quick_interpreter")


# (B, H, K, N, D, D_v, window): more than one list, span and tile; lists with whole, partial and empty tiles; groups of
# 1, 2, 3 and 4 query heads; widths that are no power of two; window 1 and beyond N; N = 1.
SHAPES = [
    (1, 2, 2, 290, 32, 32, 150),
    (2, 4, 1, 131, 40, 24, 20),
    (1, 4, 2, 70, 16, 48, 1),
    (1, 3, 1, 65, 32, 32, 1000),
    (1, 1, 1, 1, 32, 32, 1),
]


def input_of(B, H, K, N, D, D_v, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(N)
    shapes = {"q": (B, H, N, D), "k": (B, K, N, D), "v": (B, K, N, D_v), "d_out": (B, H, N, D_v)}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return tensors | {"bias": bias}


def attend(tensors, expiry, dtype, **options):
    """Output and gradients."""
    inputs = [tensors[name].to(dtype).requires_grad_() for name in ("q", "k", "v")]
    if tensors["bias"] is not None:
        inputs.append(tensors["bias"].to(torch.promote_types(dtype, torch.float32)).requires_grad_())
    bias = inputs[3] if len(inputs) > 3 else None
    out = interval_attention(*inputs[:3], expiry, bias=bias, **options)
    return out, *torch.autograd.grad(out, inputs, tensors["d_out"].to(dtype))


def assert_near(found, expected, tolerance):
    # Where every query sees one key, gradients of logits are zero: errors are then measured against the output's size.
    least = expected[0].norm() if (expected[1] == 0).all() else 0.0
    for each, reference in zip(found, expected, strict=True):
        assert each.isfinite().all()
        assert (each.double() - reference).norm() <= tolerance * max(reference.norm(), least)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kinds", [("random", "constant"), ("rising", "random")], ids=str)
def test_attention_and_gradients_equal_float64(shape, kinds, make_rows):
    B, H, K, N, D, D_v, window = shape
    scores = make_rows(kinds, N).view(-1)[: B * K * N].view(B, K, N)
    tensors = input_of(B, H, K, N, D, D_v, scores)
    expiry = prefix_topk_expiry(scores, window)
    found = attend(tensors, expiry, torch.float32, impl="triton", max_live=window)
    assert_near(found, attend(tensors, expiry, torch.float64, impl="torch"), 2e-6)


@pytest.mark.parametrize("control", ["chance", "sinks"])
def test_lifetimes_of_controls_equal_float64(control):
    N, tensors = 150, input_of(1, 2, 1, 150, 32, 32, None)
    j = torch.arange(N)
    if control == "chance":  # chosen without content: nothing is added to logits
        expiry, most = prefix_topk_expiry(ChanceScores(1)(j[None, None]), 40, impl="triton"), 40
    else:
        expiry, most = torch.where(j < 3, N, (j + 40).clamp(max=N)).to(torch.int32).expand(1, 1, N).contiguous(), 43
    found = attend(tensors, expiry, torch.float32, impl="triton", max_live=most)
    assert_near(found, attend(tensors, expiry, torch.float64, impl="torch"), 2e-6)


def test_half_precision_without_bias_and_with_a_scale():
    tensors = input_of(1, 2, 2, 200, 32, 32, None, torch.float16)
    expiry = prefix_topk_expiry(torch.randn(1, 2, 200), 90)
    found = attend(tensors, expiry, torch.float16, impl="triton", scale=0.3)
    assert_near(found, attend(tensors, expiry, torch.float64, impl="torch", scale=0.3), 1e-3)


@pytest.mark.parametrize(
    ("N", "window", "recent", "tokens_a_document"), [(130, 1, 3, 130), (10, 1000, 0, 10), (150, 1000, 0, 20)]
)
def test_rounding_of_the_output_reaches_no_gradient_where_few_keys_live(N, window, recent, tokens_a_document):
    scores = torch.randn(1, 1, N, generator=torch.Generator().manual_seed(0))
    tensors = input_of(1, 2, 1, N, 16, 32, scores, torch.float16)
    ids = (torch.arange(N) // tokens_a_document)[None]
    expiry = prefix_topk_expiry(scores, window, recent=recent, document_ids=ids)
    found = attend(tensors, expiry, torch.float16, impl="triton", max_live=window + recent)
    expected = attend(tensors, expiry, torch.float64, impl="torch")
    assert_near(found[:4], expected[:4], 5e-4)
    # Biases' gradients are sums of float32, in which delta of the rounded output would be off by 1.5e-4 and more.
    assert (found[4].double() - expected[4]).norm() <= 2e-6 * expected[4].norm()


def test_few_programs_take_all_short_lists_in_turns(monkeypatch):
    monkeypatch.setattr(delta, "_PROGRAMS", 2)  # of the one group of heads
    monkeypatch.setattr(delta, "_LOOK", 2)
    scores = torch.randn(1, 1, 420, generator=torch.Generator().manual_seed(0))
    tensors = input_of(1, 2, 1, 420, 16, 16, scores, torch.float16)
    ids = (torch.arange(420) // 11).clamp(max=20)[None]  # and a last one of 200 tokens
    expiry = prefix_topk_expiry(scores, 1000, document_ids=ids)
    found = attend(tensors, expiry, torch.float16, impl="triton", max_live=1000)
    expected = attend(tensors, expiry, torch.float64, impl="torch")
    assert (found[4].double() - expected[4]).norm() <= 2e-6 * expected[4].norm()


def test_queries_without_keys_and_rows_apart_in_memory():
    tensors = input_of(1, 2, 1, 150, 16, 16, torch.randn(1, 1, 150))
    # Every third key lives for five queries: most lists have gaps, and the first queries see nothing.
    position = torch.arange(150)
    expiry = torch.where((position % 9 == 5) & (position > 40), position + 5, position).clamp(max=150)
    expiry = expiry.to(torch.int32).view(1, 1, -1)
    tensors["q"] = tensors["q"].mT.contiguous().mT  # the last dimension is not contiguous
    found = attend(tensors, expiry, torch.float32, impl="triton")
    expected = attend(tensors, expiry, torch.float64, impl="torch")
    assert_near(found, expected, 2e-6)
    assert (found[0][:, :, :41] == 0).all()
    assert (expected[0][:, :, :41] == 0).all()


@pytest.mark.parametrize("size", [1, 60])  # 60: sums of some queries leave the range that a fixed reference bears
def test_later_tokens_change_no_earlier_output(size):
    N, t = 200, 140
    tensors = input_of(1, 1, 1, N, 16, 16, torch.randn(1, 1, N))
    outputs = []
    for _ in range(2):
        expiry = prefix_topk_expiry(tensors["bias"], 50, impl="triton")
        arguments = {"bias": tensors["bias"], "impl": "triton"}
        outputs.append(interval_attention(tensors["q"], tensors["k"], tensors["v"], expiry, **arguments))
        for name in ("q", "k", "v"):
            tensors[name][:, :, t + 1 :] = size * torch.randn(1, 1, N - t - 1, 16)
        tensors["bias"][..., t + 1 :] += torch.randn(N - t - 1)
    assert torch.equal(outputs[0][:, :, : t + 1], outputs[1][:, :, : t + 1])
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize(
    ("logit_size", "bias"),
    [
        (1, lambda noise: noise + 300),  # all alike: the block's reference takes it up
        (1, lambda noise: noise * 100),  # some sums leave the range that a fixed reference bears
        (40, lambda noise: noise),
    ],
    ids=["shifted biases", "wide biases", "large products"],
)
def test_logits_in_the_hundreds_equal_float64(logit_size, bias):
    scores = bias(torch.randn(1, 1, 270, generator=torch.Generator().manual_seed(1)))
    tensors = input_of(1, 2, 1, 270, 32, 32, scores)
    tensors["q"] *= logit_size
    expiry = prefix_topk_expiry(scores, 60, document_ids=(torch.arange(270) // 100)[None])
    found = attend(tensors, expiry, torch.float32, impl="triton")
    assert_near(found, attend(tensors, expiry, torch.float64, impl="torch"), 5e-5)  # float32's steps at 400 are 3e-5


def test_too_small_a_bound_gives_nan_and_not_a_wrong_number():
    tensors = input_of(1, 1, 1, 300, 16, 16, None)
    expiry = torch.full((1, 1, 300), 300, dtype=torch.int32)
    out = interval_attention(tensors["q"], tensors["k"], tensors["v"], expiry, max_live=40, impl="triton")
    assert out[:, :, 256:].isnan().all()


@pytest.mark.parametrize("bias", [True, False])
def test_operators_keep_what_torch_compile_relies_on(bias):
    tensors = input_of(1, 2, 1, 40, 16, 16, torch.randn(1, 1, 40) if bias else None)
    leaves = [tensors[name].requires_grad_() for name in ("q", "k", "v")]
    expiry = prefix_topk_expiry(torch.randn(1, 1, 40), 9)
    interval_attention(*leaves, expiry, bias=tensors["bias"], impl="triton")  # registers the operator
    torch.library.opcheck(torch.ops.dma_lab.interval_attention.default, (*leaves, expiry, tensors["bias"], 0.25, 9))


class Recorded(TorchDispatchMode):
    """Names of the operators that PyTorch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_the_backward_pass_makes_no_zeros_for_what_has_no_gradient():
    tensors = input_of(1, 2, 1, 40, 16, 16, None)
    leaves = [tensors[name].requires_grad_() for name in ("q", "k", "v")]
    out = interval_attention(*leaves, prefix_topk_expiry(torch.randn(1, 1, 40), 9), max_live=9, impl="triton")
    with Recorded() as asked:
        torch.autograd.grad(out, leaves, tensors["d_out"])
    assert "dma_lab.interval_attention_backward.default" in asked.names
    assert not [name for name in asked.names if "zero" in name or "fill" in name]
