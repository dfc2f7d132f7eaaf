"""MoBA against a literal loop over the paper's equations (arXiv 2502.13189), in float64, query by query."""

import pytest
import torch
from torch import Tensor

from dma_lab.attention import build_attention
from dma_lab.attention.moba import MixtureOfBlockAttention

M, D, N = 20, 6, 41
HEADS = {"mha": (2, 2), "gqa": (4, 2), "mqa": (3, 1)}
SIZES = {"few": (4, 3), "long": (13, 2), "own alone": (7, 1), "more than there are": (10, 9)}


def build(heads: tuple[int, int], block: int, count: int, max_seq_len: int = 64) -> MixtureOfBlockAttention:
    torch.manual_seed(0)
    shape = {"d_model": M, "n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": D, "max_seq_len": max_seq_len}
    attention = build_attention("moba", **shape, block=block, selected_blocks=count).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    assert isinstance(attention, MixtureOfBlockAttention)
    return attention


def literal_moba(attention: MixtureOfBlockAttention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, int, int]:
    """One document's q (H, N, D), k and v (K, N, D) -> (N, H * D), its pairs, and its (query, block's mean) pairs."""
    H, K, size = attention.n_heads, attention.n_kv_heads, attention.block
    outs, pairs, scored = [], 0, 0
    for t in range(q.shape[1]):
        own = t // size
        for h in range(H):
            keys, values = k[h * K // H], v[h * K // H]
            score = {i: (q[h, t] @ keys[i * size : (i + 1) * size].mean(0)).item() for i in range(own)}
            best = sorted(score, key=lambda i: (score[i], i), reverse=True)[: attention.selected_blocks - 1]
            read = [s for s in range(t + 1) if s // size in {*best, own}]
            weights = torch.stack([q[h, t] @ keys[s] / D**0.5 for s in read]).softmax(0)
            outs.append(weights @ values[read])
            pairs, scored = pairs + len(read), scored + len(score)
    return torch.stack(outs).view(q.shape[1], H * D), pairs, scored


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("block", "count"), SIZES.values(), ids=SIZES)
def test_outputs_gradients_and_flops_are_those_of_the_papers_equations(heads, block, count, monkeypatch):
    monkeypatch.setattr("dma_lab.attention.moba._QUERY_CHUNK", 16)
    attention, x = build(heads, block, count), torch.randn(1, N, M, dtype=torch.float64, requires_grad=True)
    inputs, upstream = [x, *attention.parameters()], torch.randn(1, N, M, dtype=torch.float64)
    literal, pairs, scored = literal_moba(attention, *(part[0] for part in attention.heads(x)))
    found, expected = attention(x), attention.o_proj(literal)[None]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    flops = attention.flops(N)
    assert (flops.mixing, flops.selection) == (4 * D * pairs, 2 * D * scored)


def test_every_document_has_its_own_blocks():
    attention, x = build((4, 2), 5, 3), torch.randn(1, N, M, dtype=torch.float64)
    lengths = [1, 23, 4, 13]
    ids, parts, start = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None], [], 0
    q, k, v = attention.heads(x)
    for length in lengths:
        own = slice(start, start + length)
        parts.append(literal_moba(attention, q[0, :, own], k[0, :, own], v[0, :, own])[0])
        start += length
    torch.testing.assert_close(attention(x, ids)[0], attention.o_proj(torch.cat(parts)), rtol=1e-9, atol=1e-10)


def test_of_equal_blocks_the_more_recent_ones_are_read():
    attention = build((2, 1), 4, 3)
    before, own = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 5)
    chosen = attention.choose(torch.ones(1, 2, 1, D), torch.ones(1, 1, 8, D), before, own)
    assert chosen.flatten().tolist() == [3, 4, 5] * 2


def test_blocks_that_reach_everything_are_mha_and_that_is_said(capsys):
    moba, x = build((4, 2), 17, 4), torch.randn(2, 64, M, dtype=torch.float64)
    assert "4 of 17 tokens reach the whole context of 64 tokens: MoBA is then MHA" in capsys.readouterr().err
    shape = {"d_model": M, "n_heads": 4, "n_kv_heads": 2, "head_dim": D, "max_seq_len": 64}
    mha = build_attention("mha", **shape).double()
    mha.load_state_dict(moba.state_dict())  # the very same weights: none beside MHA's
    torch.testing.assert_close(moba(x), mha(x), rtol=1e-9, atol=1e-10)
    assert moba.flops(64).mixing == mha.flops(64).mixing


@pytest.mark.parametrize(("context", "block"), [(256, 16), (8192, 512), (32_768, 512), (8, 1)])
def test_blocks_are_the_papers_from_8192_tokens_on_and_in_proportion_below(context, block):
    shape = {"d_model": M, "n_heads": 2, "n_kv_heads": 1, "head_dim": D, "max_seq_len": context}
    assert build_attention("moba", **shape).options.block == block
