"""NSA against a literal loop over the paper's equations (arXiv 2502.11089), and its blocks against counting by hand."""

import itertools

import pytest
import torch
from torch import Tensor

from dma_lab.attention import build_attention, nsa
from dma_lab.attention.nsa_blocks import block_importance, count_blocks, gather_blocks, locate_blocks, select_blocks
from dma_lab.kernels import document_bounds
from dma_lab.messages import UserError, warn_once

M, D = 20, 6
HEADS = {"mha": (2, 2), "gqa": (4, 2), "mqa": (3, 1)}
SIZES = {
    "the paper's ratios": {"block": 4, "stride": 2, "selected_block": 8, "selected_blocks": 3, "window": 7},
    "no overlap": {"block": 3, "stride": 3, "selected_block": 3, "selected_blocks": 5, "window": 1},
    "much overlap": {"block": 6, "stride": 2, "selected_block": 6, "selected_blocks": 4, "window": 40},
    "uneven, no norms": {"block": 2, "stride": 1, "selected_block": 5, "selected_blocks": 3, "qk_norm": False},
    "a slope": {"block": 4, "stride": 2, "selected_block": 8, "selected_blocks": 3, "window": 7, "recency": "slope"},
}


def build(heads: tuple[int, int], max_seq_len: int = 64, **options) -> nsa.NativeSparseAttention:
    torch.manual_seed(0)
    shape = {"d_model": M, "n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": D, "max_seq_len": max_seq_len}
    attention = build_attention("nsa", **shape, **options).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    assert isinstance(attention, nsa.NativeSparseAttention)
    return attention


def rms_norm(vector: Tensor, norm: torch.nn.Module) -> Tensor:
    return vector / (vector.pow(2).mean() + 1e-6).sqrt() * norm.weight if hasattr(norm, "weight") else vector


def rotate(vector: Tensor, position: int) -> Tensor:
    rotated = list(vector)
    for i in range(D // 2):
        angle = torch.tensor(position * 10_000.0 ** (-2 * i / D), dtype=torch.float64)
        cos, sin = angle.cos().float().double(), angle.sin().float().double()  # the tables are float32
        a, b = vector[i], vector[i + D // 2]
        rotated[i], rotated[i + D // 2] = a * cos - b * sin, a * sin + b * cos
    return torch.stack(rotated)


def softmax_attention(query: Tensor, keys: list[Tensor], values: list[Tensor], behind: Tensor) -> tuple[Tensor, Tensor]:
    """``behind``: what a key's logit loses, by how far the key lies behind the query."""
    weights = (torch.stack([query @ key for key in keys]) / D**0.5 - behind).softmax(0)
    return weights @ torch.stack(values), weights


def literal_nsa(attention: nsa.NativeSparseAttention, x: Tensor) -> Tensor:
    """x (N, M) -> (N, M), a query and a head at a time."""
    length, d, size, n = attention.block, attention.stride, attention.selected_block, attention.selected_blocks
    H, K, N = attention.n_heads, attention.n_kv_heads, len(x)

    def by_head(projection: torch.nn.Linear, t: int, head: int) -> Tensor:
        return projection.weight[head * D : (head + 1) * D] @ x[t]

    def keys_values(branch: torch.nn.Module, head: int) -> tuple[list[Tensor], list[Tensor]]:
        keys = [rotate(rms_norm(by_head(branch.k_proj, t, head), branch.k_norm), t) for t in range(N)]
        return keys, [by_head(branch.v_proj, t, head) for t in range(N)]

    def phi(mlp: torch.nn.Module, projection: torch.nn.Linear, head: int, i: int) -> Tensor:
        block = [by_head(projection, i * d + m, head) + mlp.position_ld[m] for m in range(length)]
        hidden = mlp.hidden.weight @ torch.cat(block)
        return mlp.output.weight @ (hidden * torch.sigmoid(hidden))

    outs: list[list[Tensor]] = [[torch.zeros(0)] * H for _ in range(N)]
    for group in range(K):
        heads = range(group * H // K, (group + 1) * H // K)
        branch = attention.compressed
        wholes = [i for i in range(N) if i * d + length <= N]
        k_cmp = [
            rotate(rms_norm(phi(attention.compress_k, branch.k_proj, group, i), branch.k_norm), i * d + length - 1)
            for i in wholes
        ]
        v_cmp = [phi(attention.compress_v, branch.v_proj, group, i) for i in wholes]
        k_slc, v_slc = keys_values(attention.heads, group)
        k_win, v_win = keys_values(attention.sliding, group)
        for t in range(N):

            def behind(places: list[int]) -> Tensor:
                slope = torch.zeros(K) if attention.recency is None else attention.recency.slope_k
                return slope[group] * (t - torch.tensor(places))  # noqa: B023 - called within the loop

            queries = {
                h: rotate(rms_norm(by_head(attention.heads.q_proj, t, h), attention.heads.q_norm), t) for h in heads
            }
            seen = [i for i in wholes if i * d + length - 1 <= t]
            compressed = {h: torch.zeros(D, dtype=torch.float64) for h in heads}
            importance = dict.fromkeys(range(t // size + 1), 0.0)
            for h in heads if seen else []:
                ends = behind([i * d + length - 1 for i in seen])
                kv_seen = [k_cmp[i] for i in seen], [v_cmp[i] for i in seen]
                compressed[h], p_cmp = softmax_attention(queries[h], *kv_seen, ends)
                for i, j in itertools.product(seen, importance):
                    shared = set(range(i * d, i * d + length)) & set(range(j * size, (j + 1) * size))
                    importance[j] += p_cmp[i].item() * len(shared) / d
            own = t // size
            always = {0, own, max(0, own - 1)}
            others = sorted(set(importance) - always, key=lambda j: (importance[j], j), reverse=True)
            chosen = always | set(others[: n - len(always)])
            read = [s for s in range(t + 1) if s // size in chosen]
            window = list(range(max(0, t - attention.window + 1), t + 1))
            for h in heads:
                branches = (
                    compressed[h],
                    softmax_attention(queries[h], [k_slc[s] for s in read], [v_slc[s] for s in read], behind(read))[0],
                    softmax_attention(
                        queries[h], [k_win[s] for s in window], [v_win[s] for s in window], behind(window)
                    )[0],
                )
                gates = torch.sigmoid(attention.gate_proj.weight @ x[t]).view(3, H)[:, h]
                outs[t][h] = sum(gate * out for gate, out in zip(gates, branches, strict=True))
    return torch.stack([attention.o_proj.weight @ torch.cat(out) for out in outs])


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_outputs_and_gradients_are_those_of_the_papers_equations(heads: tuple[int, int], sizes: dict) -> None:
    attention, x = build(heads, **sizes), torch.randn(34, M, dtype=torch.float64, requires_grad=True)
    inputs, upstream = [x, *attention.parameters()], torch.randn(34, M, dtype=torch.float64)
    found, expected = attention(x[None])[0], literal_nsa(attention, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_a_text_shorter_than_a_block_has_no_compressed_branch() -> None:
    attention, x = build((4, 2), **SIZES["the paper's ratios"]), torch.randn(3, M, dtype=torch.float64)
    torch.testing.assert_close(attention(x[None])[0], literal_nsa(attention, x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("block", "stride", "selected_block"), [(32, 16, 64), (6, 2, 6), (4, 4, 12), (5, 5, 5)])
def test_importance_is_equation_9_counted_from_one(block: int, stride: int, selected_block: int) -> None:
    r, J = selected_block // stride, 5
    C = r * J - block // stride + 1
    p_cmp = torch.rand(1, 1, 1, C, dtype=torch.float64)
    expected = []
    for j in range(1, J + 1):
        indices = [r * j - m - n for m in range(r) for n in range(block // stride)]
        expected.append(sum(p_cmp[0, 0, 0, i - 1].item() for i in indices if 1 <= i <= C))
    before = torch.zeros(1, 1, dtype=torch.int64)
    found = block_importance(p_cmp, before, J, block, stride, selected_block)
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_of_equally_important_blocks_the_recent_are_read() -> None:
    importance = torch.zeros(1, 1, 1, 12)
    importance[..., 3] = 0.1
    own = torch.tensor([[9]])
    assert select_blocks(importance, own, 5)[0, 0, 0].nonzero().flatten().tolist() == [0, 3, 7, 8, 9]
    assert select_blocks(importance, torch.tensor([[2]]), 5)[0, 0, 0].nonzero().flatten().tolist() == [0, 1, 2]


def test_blocks_begin_at_their_documents_and_are_whole() -> None:
    lengths = [7, 3, 12, 1, 4]
    ids = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))[None]
    first, before = locate_blocks(*document_bounds(ids, 1, 27, ids.device), block=4, stride=2)
    # The documents at 0, 7, 10, 22 and 23 have two blocks, none, five, none and one; 27 tokens have at most 12.
    assert first[0].tolist() == [0, 2, 10, 12, 14, 16, 18, 23, *[27] * 4]
    assert before[0].tolist() == [0] * 7 + [2] * 3 + [2] * 12 + [7] + [7] * 4


@pytest.mark.parametrize(("block", "stride"), [(4, 2), (6, 1), (3, 3)])
def test_blocks_hold_their_tokens_and_pass_back_the_sum_over_blocks(block: int, stride: int) -> None:
    lengths = [7, 3, 12, 1, 4]
    ids = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)).expand(2, -1)
    first, _ = locate_blocks(*document_bounds(ids, 2, 27, ids.device), block=block, stride=stride)
    x = torch.randn(2, 3, 27, 5, dtype=torch.float64, requires_grad=True)
    blocks = gather_blocks(x, first, block, stride)
    d_blocks, expected = torch.randn_like(blocks), torch.zeros_like(x)
    for b, c in itertools.product(range(2), range(first.shape[1])):
        if (t := int(first[b, c])) < 27:
            assert torch.equal(blocks[b, :, c], x[b, :, t : t + block])
            expected[b, :, t : t + block] += d_blocks[b, :, c]
    torch.testing.assert_close(torch.autograd.grad(blocks, x, d_blocks)[0], expected)


@pytest.mark.parametrize("packed", [False, True])
def test_chunks_of_queries_change_nothing(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, x = build((4, 2), **SIZES["the paper's ratios"]), torch.randn(2, 64, M, dtype=torch.float64)
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 11, 33])).expand(2, -1) if packed else None
    results = []
    for chunk in (64, 24):
        monkeypatch.setattr(nsa, "_QUERY_CHUNK", chunk)
        out = attention(x, ids)
        results.append((out, *torch.autograd.grad(out.square().sum(), attention.parameters())))
    for chunked, whole in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("seq_len", [1, 31, 64])
def test_pairs_counted_are_the_pairs_that_live(sizes: dict, seq_len: int) -> None:
    attention = build((4, 2), **sizes)
    length, d, size = attention.block, attention.stride, attention.selected_block
    compressed = sum(i * d + length - 1 <= t for t in range(seq_len) for i in range(count_blocks(seq_len, length, d)))
    own = torch.arange(seq_len)[None] // size
    selected = select_blocks(torch.rand(1, 1, seq_len, 64 // size + 1), own, attention.selected_blocks)[0, 0]
    mixed = sum(bool(selected[t, s // size]) + (t - s < attention.window) for t in range(seq_len) for s in range(t + 1))
    flops = attention.flops(seq_len)
    assert (flops.selection, flops.mixing) == (0, 4 * 4 * D * (compressed + mixed))


def test_sizes_are_the_papers_from_2048_tokens_on_and_in_proportion_below() -> None:
    for context, expected in (
        (8192, (512, 32, 16, 64)),
        (2048, (512, 32, 16, 64)),
        (1024, (256, 16, 8, 32)),
        (256, (64, 4, 2, 8)),
        (64, (16, 2, 1, 4)),
    ):
        a = build((2, 1), max_seq_len=context)
        assert (a.window, a.block, a.stride, a.selected_block) == expected
        assert a.selected_blocks == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window=0"),
        ({"block": 0}, "block=0"),
        ({"stride": 0}, "stride=0"),
        ({"block": 6, "stride": 4, "selected_block": 8}, "block=6 is not a multiple of attention.stride=4"),
        ({"block": 4, "stride": 4, "selected_block": 6}, "selected_block=6 is not a multiple of attention.stride=4"),
        ({"block": 7}, "block=7 is not a multiple of attention.stride=3"),
        ({"block": 8, "selected_block": 4}, "selected_block=4 is shorter than attention.block=8"),
        ({"block": 48}, "max_seq_len=64 is shorter than attention.selected_block=96"),
        ({"block": 96}, "max_seq_len=64 is shorter than attention.selected_block=192"),
        ({"selected_blocks": 2}, "selected_blocks=2: choose at least 3"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_their_numbers(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build((2, 1), **options)


def test_it_compiles_into_one_graph_that_warns_once(capfd: pytest.CaptureFixture[str]) -> None:
    attention, x = build((4, 2), **SIZES["the paper's ratios"]), torch.randn(2, 64, M, dtype=torch.float64)

    def warning(x: Tensor) -> Tensor:
        warn_once(f"a query selects {attention.selected_blocks * 12_345 // attention.selected_blocks} keys")
        return attention(x)

    results = []
    for run in (attention, torch.compile(warning, backend="aot_eager", fullgraph=True)):
        out = run(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), attention.parameters())))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-10)
    assert capfd.readouterr().err.count("12345") == 1
