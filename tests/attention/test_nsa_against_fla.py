"""NSA's branches against fla-core's naive functions, float32 on the CPU, where their assumptions allow: compressed
blocks that are the selection blocks (theirs do not overlap), and keys and values handed over (theirs are pooled by
mean). Their sliding branch is flash-attn's; ours is SWA, which is held to Mistral's elsewhere.
"""

import pytest
import torch
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
from torch import Tensor

from dma_lab.attention.nsa_blocks import attend_compressed, attend_selected, block_importance, select_blocks

B, N, D, BLOCK, COUNT = 2, 96, 16, 8, 5
HEADS = {"mha": (3, 3), "gqa": (4, 2), "mqa": (4, 1)}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def time_first(x_bhnd: Tensor) -> Tensor:
    return x_bhnd.transpose(1, 2)


@pytest.fixture(params=HEADS.values(), ids=HEADS)
def branch(request: pytest.FixtureRequest):
    """q, the keys and values of blocks, what each query sees of them, and the blocks that it then selects."""
    torch.manual_seed(0)
    H, K = request.param
    q, k_cmp, v_cmp = noise(B, H, N, D), noise(B, K, N // BLOCK, D), noise(B, K, N // BLOCK, D)
    position_n, own_bn = torch.arange(N), (torch.arange(N) // BLOCK).expand(B, N)
    last_c = torch.arange(BLOCK - 1, N, BLOCK)
    visible_bnc = (last_c <= position_n[:, None]).expand(B, N, -1)
    out, weights = attend_compressed(q, k_cmp, v_cmp, visible_bnc, D**-0.5)
    importance = block_importance(weights, torch.zeros(B, N, dtype=torch.int64), N // BLOCK, BLOCK, BLOCK, BLOCK)
    return q, k_cmp, v_cmp, out, select_blocks(importance, own_bn, COUNT), own_bn


def test_the_compressed_branch_and_the_choice_of_blocks_are_theirs(branch) -> None:
    q, k_cmp, v_cmp, out, selected_bknj, _ = branch
    expected, _ = naive_nsa_compression(time_first(q), time_first(k_cmp), time_first(v_cmp), BLOCK, D**-0.5)
    torch.testing.assert_close(time_first(out), expected, rtol=1e-5, atol=1e-5)
    chosen_bnks = naive_nsa_topk(time_first(q), time_first(k_cmp), COUNT, BLOCK, D**-0.5)
    theirs_bnkj = (chosen_bnks[..., None] == torch.arange(N // BLOCK)).any(-2)  # where few can be chosen, -1 fills up
    assert torch.equal(time_first(selected_bknj), theirs_bnkj)


def test_attention_to_selected_blocks_is_theirs(branch) -> None:
    q, k_cmp, _, _, selected_bknj, own_bn = branch
    K = k_cmp.shape[1]
    k, v = noise(B, K, N, D), noise(B, K, N, D)
    seen = torch.ones(N, N, dtype=torch.bool).tril().expand(B, N, N)
    out = attend_selected(q, k, v, selected_bknj, own_bn, seen, D**-0.5)
    j = torch.arange(N // BLOCK)
    indices = torch.where(selected_bknj, j, -1).sort(-1, descending=True).values[..., :COUNT]
    expected = naive_nsa_selection(time_first(q), time_first(k), time_first(v), time_first(indices), BLOCK)
    torch.testing.assert_close(time_first(out), expected, rtol=1e-5, atol=1e-5)
