"""Selection and decoding by the Triton kernels under Triton's interpreter, on small shapes. Run by
test_triton_interpreter.py in a process whose TRITON_INTERPRET is set before Triton is imported.
"""

import math

import pytest
import torch

from dma_lab.kernels import prefix_topk_expiry
from dma_lab.kernels.selection.ranks import rank_scores
from tests.kernels.interpreter import quick_interpreter as quick_interpreter  # a fixture

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan", "quick_interpreter")


# Two rows each, and no two alike: one taken for the other shows.
KINDS = [("random", "tied"), ("constant", "rising"), ("falling", "drifting"), ("fading", "not finite")]


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


@pytest.mark.parametrize(("window", "recent", "N"), [(9, 0, 24), (1, 2, 8), (300, 3, 6)])
@pytest.mark.parametrize("kind", ["tied", "rising", "not finite"])
def test_decoding_equals_the_whole_sequence(kind, window, recent, N, make_scores, decode_and_compare):
    decode_and_compare(make_scores(kind, 1, 2, N), window, recent, "triton")
