"""Lists and orders of keys, made by Triton kernels under Triton's interpreter, on small shapes. Run by
test_triton_interpreter.py in a process whose TRITON_INTERPRET is set before Triton is imported.
"""

import math

import pytest
import torch
import triton
import triton.language as tl

from dma_lab.kernels import prefix_topk_expiry
from dma_lab.kernels.interval.key_lists import CHUNK, KeyLists, build_key_lists
from dma_lab.kernels.interval.key_order import backward_key_order, bucket_size, group_of_program
from tests.kernels.interpreter import quick_interpreter as quick_interpreter  # a fixture

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan", "quick_interpreter")


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
            assert lists.blocks.mask_rif[of_block][: len(tiles)].tolist() == tiles


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
