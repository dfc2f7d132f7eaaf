"""The Triton kernels under Triton's interpreter, on small shapes. Run by test_triton_interpreter.py in a process whose
TRITON_INTERPRET is set before Triton is imported.
"""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

from dma_lab.attention.chance import ChanceScores
from dma_lab.kernels import interval_attention, prefix_topk_expiry
from dma_lab.kernels.interval.key_lists import CHUNK, KeyLists, build_key_lists
from dma_lab.kernels.interval.key_order import backward_key_order, bucket_size, group_of_program
from dma_lab.kernels.interval.triton import delta
from dma_lab.kernels.selection.ranks import rank_scores

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan", "language_patched_once")

# (B, H, K, N, D, D_v, window): more than one list, span and tile; lists with whole, partial and empty tiles; groups of
# 1, 2, 3 and 4 query heads; widths that are no power of two; window 1 and beyond N; N = 1.
SHAPES = [
    (1, 2, 2, 290, 32, 32, 150),
    (2, 4, 1, 131, 40, 24, 20),
    (1, 4, 2, 70, 16, 48, 1),
    (1, 3, 1, 65, 32, 32, 1000),
    (1, 1, 1, 1, 32, 32, 1),
]


# Two rows each, and no two alike: one taken for the other shows.
KINDS = [("random", "tied"), ("constant", "rising"), ("falling", "drifting"), ("fading", "not finite")]


@pytest.fixture
def make_rows(make_scores):
    """``make_rows(kinds, N)``: float32 (1, K, N), a row of each kind."""
    return lambda kinds, N: torch.cat([make_scores(kind, 1, 1, N) for kind in kinds], dim=1)


@pytest.mark.parametrize(
    ("N", "window", "recent"), [(1, 1, 0), (150, 1, 2), (300, 40, 0), (300, 129, 3), (520, 256, 0), (140, 1000, 0)]
)
@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_expiry_equals_the_reference(N, window, recent, kinds, make_rows):
    scores = make_rows(kinds, N)
    expected = prefix_topk_expiry(scores, window, recent=recent, impl="torch")
    assert torch.equal(prefix_topk_expiry(scores, window, recent=recent, impl="triton"), expected)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_expiry_equals_the_reference_with_documents(kinds, make_rows):
    scores = make_rows(kinds, 300).transpose(0, 1)
    ids = torch.stack([torch.arange(300) // 130, (torch.arange(300) > 17).long() * 7])
    for window, recent in ((30, 0), (200, 5)):
        arguments = {"recent": recent, "document_ids": ids}
        expected = prefix_topk_expiry(scores, window, **arguments, impl="torch")
        assert torch.equal(prefix_topk_expiry(scores, window, **arguments, impl="triton"), expected)


def order_by_sorting(scores, ids=None):
    """Positions in order of (document, score, position), as Python sorts them; NaN is above every number."""
    ids = torch.zeros(scores.shape, dtype=torch.int64) if ids is None else ids
    rows = []
    for row, documents in zip(scores.double().tolist(), ids.tolist(), strict=True):
        ranked = [(documents[j], math.isnan(x), 0.0 if math.isnan(x) else x, j) for j, x in enumerate(row)]
        rows.append([j for *_, j in sorted(ranked)])
    return torch.tensor(rows)


def assert_ranks(scores, ids=None):
    starts = None
    if ids is not None:
        starts = torch.stack([torch.searchsorted(row, row) for row in ids.contiguous()]).to(torch.int32)
    rank, position = rank_scores(scores, starts)
    expected = order_by_sorting(scores, ids)
    assert torch.equal(position.long(), expected)
    assert torch.equal(rank.long(), expected.argsort(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("N", [1, 130])
def test_ranks_are_places_in_a_sorted_row(N, dtype):
    scores = torch.randn(2, N, generator=torch.Generator().manual_seed(N)).to(dtype)
    scores[:, ::7] = 0.0
    scores[:, 3::11] = -0.0
    scores[1, 5::13] = float("nan")
    scores[1, 6::17] = -float("nan")
    scores[0, 2::19], scores[0, 4::23] = float("inf"), -float("inf")
    assert_ranks(scores)
    scores[0, 0] = float("nan")
    assert_ranks(scores, torch.stack([torch.arange(N) > 0, torch.arange(N) // 40]).long())


def test_runs_are_merged_and_rows_too_long_for_them_are_ranked():
    generator = torch.Generator().manual_seed(0)
    tied = torch.randn(1, 1100, generator=generator).round(decimals=2)
    assert_ranks(torch.cat((tied, torch.arange(1100.0)[None])))
    assert_ranks(tied, torch.arange(1100)[None] // 900)
    tied = torch.randn(1, 32_769, generator=generator).round(decimals=3)
    assert_ranks(tied, torch.arange(32_769)[None] // 10_000)


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


@pytest.mark.parametrize(("window", "recent", "N"), [(9, 0, 24), (1, 2, 8), (300, 3, 6)])
@pytest.mark.parametrize("kind", ["tied", "rising", "not finite"])
def test_decoding_equals_the_whole_sequence(kind, window, recent, N, make_scores, decode_and_compare):
    decode_and_compare(make_scores(kind, 1, 2, N), window, recent, "triton")


@pytest.mark.parametrize(
    ("N", "window", "recent"), [(1, 1, 0), (290, 150, 0), (300, 5, 0), (200, 1000, 0), (1100, 300, 3), (300, 128, 0)]
)
@pytest.mark.parametrize("kind", ["random", "constant", "rising", "falling"])
def test_lists_hold_every_blocks_live_keys_and_what_to_ask_of_them(N, window, recent, kind, make_scores):
    block, tile, span = 128, 64, 1024
    scores = make_scores(kind, 1, 2, N)
    expiry = prefix_topk_expiry(scores, window, recent=recent)
    lists = build_key_lists(expiry, block, window + recent, scores)
    log2_e = 1 / math.log(2)
    for row, (lifetimes, biases) in enumerate(zip(expiry[0].tolist(), scores[0].tolist(), strict=True)):
        for t0 in range(0, N, block):
            t1, opens = min(t0 + block, N), t0 // span * span
            keys = [j for j in range(t1) if lifetimes[j] > max(t0, j)]
            alive_then = [j for j in range(opens + 1) if lifetimes[j] > opens]
            came_since = [j for j in range(opens + 1, t0 + 1) if lifetimes[j] > t0]
            reference = max((biases[j] for j in alive_then + came_since), default=0.0)
            ends = [block if lifetimes[j] >= t1 else lifetimes[j] - t0 for j in keys]
            asks = [2 if j > t0 else 1 if end < block else 0 for j, end in zip(keys, ends, strict=True)]
            filler = -len(keys) % tile if keys else tile
            of_block = row, t0 // block
            assert lists.blocks.length_ri[of_block] == len(keys)
            filled = slice(0, len(keys) + filler)
            assert lists.blocks.index_ris[of_block][filled].tolist() == keys + [0] * filler
            spans = [max(j - t0, 0) | end << 16 for j, end in zip(keys, ends, strict=True)]
            assert lists.blocks.span_ris[of_block][filled].tolist() == spans + [0] * filler
            expected = torch.tensor([(biases[j] - reference) * log2_e for j in keys])
            assert torch.allclose(lists.blocks.bias_ris[of_block][: len(keys)], expected, rtol=1e-5, atol=1e-5)
            asks += [2] * filler
            tiles = [max(asks[start : start + tile]) for start in range(0, len(asks), tile)]
            assert lists.blocks.mask_rit[of_block][: len(tiles)].tolist() == tiles


@pytest.mark.parametrize(("block", "slope"), [(128, 0.33), (64, 0.68), (32, 1.4)])
def test_sums_of_biases_that_grow_with_place_stay_within_the_references_range(block, slope):
    """``block``: 128 rows by the query heads that share keys. Beyond 2^64 a row would be computed a second time."""
    N, window = 700, 400
    place = torch.arange(N)
    bias = (slope * place).float().expand(1, 1, N).contiguous()
    for most in (N, window):
        expiry = (place + most).clamp(max=N).to(torch.int32).expand(1, 1, N).contiguous()
        lists = build_key_lists(expiry, block, most, bias)
        seen = (place[:, None] >= place) & (place[:, None] < expiry[0])
        sums = torch.where(seen, bias[0].double(), -torch.inf).logsumexp(-1) / math.log(2)
        room = sums - lists.blocks.reference_ri[0].double().repeat_interleave(block)[:N]
        assert room.max() < 64
        assert room.min() > -1


@pytest.mark.parametrize(("N", "window", "buckets"), [(1, 40, 1), (300, 40, 1), (1300, 900, 3)])
def test_the_order_of_keys_is_by_arrival_in_buckets_and_by_expiry_within(N, window, buckets, make_scores):
    expiry = prefix_topk_expiry(make_scores("random", 1, 2, N), window)
    order = backward_key_order(expiry, build_key_lists(expiry, 128, window))
    for row, lifetimes in zip(order.tolist(), expiry[0].tolist(), strict=True):
        ever = [j for j in range(N) if lifetimes[j] > j]
        never = [j for j in range(N) if lifetimes[j] == j]
        expected = [
            sorted(ever[start : start + bucket_size(N)], key=lambda j: lifetimes[j], reverse=True)
            for start in range(0, len(ever), bucket_size(N))
        ]
        assert len(expected) == buckets
        assert [lifetimes[j] for j in row[: len(ever)]] == [lifetimes[j] for bucket in expected for j in bucket]
        assert sorted(row[: len(ever)]) == ever
        assert sorted(row[len(ever) :]) == never


def test_expiries_past_two_million_are_ordered_in_64_bits():
    N, ever = 2**21 + 5, torch.arange(0, 2000, 2)
    expiry = torch.arange(N, dtype=torch.int32)  # no key lives
    expiry[ever] = N - 1000 + torch.randperm(1000, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    never = (expiry == torch.arange(N)).nonzero().flatten()
    by_arrival = torch.cat((ever, never)).to(torch.int32)
    counts = torch.zeros(-(-N // CHUNK), dtype=torch.int32)
    counts[0] = 1000
    order = backward_key_order(expiry[None, None], KeyLists(by_arrival[None], counts[None], None))[0]
    assert expiry[order[:1000]].tolist() == list(range(N - 1, N - 1001, -1))
    assert torch.equal(order[1000:].sort().values.long(), never)


@triton.jit
def _write_groups(row_ptr, group_ptr, rows, GROUPS: tl.constexpr, ABREAST: tl.constexpr):
    row, group = group_of_program(tl.program_id(0), rows, GROUPS, ABREAST)
    tl.store(row_ptr + tl.program_id(0), row)
    tl.store(group_ptr + tl.program_id(0), group)


@pytest.mark.parametrize(("rows", "abreast"), [(1, 16), (16, 16), (37, 16), (5, 1)])
def test_every_group_of_every_row_is_taken_once(rows, abreast):
    buckets, groups = 3, 4
    row, group = (torch.empty(buckets * groups * rows, dtype=torch.int32) for _ in range(2))
    _write_groups[(buckets * groups * rows,)](row, group, rows, groups, abreast)
    assert sorted(zip(row.tolist(), group.tolist(), strict=True)) == [
        (r, g) for r in range(rows) for g in range(buckets * groups)
    ]
