"""Block-sparse attention's Triton kernels under Triton's interpreter, on small shapes. Run by
test_triton_interpreter.py in a process whose TRITON_INTERPRET is set before Triton is imported.
"""

import pytest
import torch
from torch import Tensor

from dma_lab.attention import build_attention, moba, nsa
from dma_lab.attention.nsa_blocks import attend_compressed, block_importance, locate_blocks, select_blocks
from dma_lab.kernels import document_bounds
from dma_lab.kernels.blocks import arguments, choice
from dma_lab.kernels.blocks.attention import choose_blocks, selected_attention
from dma_lab.kernels.blocks.compressed import compressed_attention
from dma_lab.kernels.blocks.lists import build_query_lists
from tests.kernels.interpreter import quick_interpreter as quick_interpreter  # a fixture

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan", "quick_interpreter")

# (B, H, K, N, D, slots, block, documents' lengths): heads alone and in groups of 2, 3 and 6; widths and blocks that are
# no powers of two; blocks as many as slots and far more, and 32; documents of one token, and dozens of them in a
# block's room.
CASES = [
    (1, 4, 2, 60, 16, 4, 8, None),
    (2, 3, 1, 45, 12, 3, 5, [1, 20, 4, 10, 10]),
    (1, 2, 2, 24, 24, 16, 4, None),
    (1, 6, 1, 60, 16, 5, 16, [1] * 12 + [48]),
    (1, 1, 1, 1, 16, 3, 16, None),
    (1, 2, 1, 80, 16, 20, 2, [3, 64, 13]),
]
over_cases = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture
def small_pieces(monkeypatch):
    """Most blocks' queries are cut, some more than once, and heads wait their turn."""
    monkeypatch.setattr(arguments, "PIECE", 16)
    monkeypatch.setattr(arguments, "_PARTS_BYTES", 1)


def bounds_of(B: int, N: int, lengths: list[int] | None) -> tuple[Tensor | None, Tensor, Tensor]:
    """Document ids, and each position's document's start and end."""
    ids = None
    if lengths is not None:
        ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(B, -1)
    return ids, *document_bounds(ids, B, N, torch.device("cpu"))


def random_choice(B: int, K: int, N: int, slots: int, block: int, start_bn: Tensor) -> Tensor:
    """As ``selected_attention`` takes it, slots in random order."""
    generator = torch.Generator().manual_seed(N)
    chosen = torch.full((B, K, N, slots), -1, dtype=torch.int32)
    for b, head, t in torch.cartesian_prod(*(torch.arange(size) for size in (B, K, N))).tolist():
        start = int(start_bn[b, t])
        own = (t - start) // block
        always = list({0, own, max(0, own - 1)})
        others = [j for j in torch.randperm(own + 1, generator=generator).tolist() if j not in always]
        read = torch.tensor((always + others)[:slots])
        read = start + block * read[torch.randperm(len(read), generator=generator)]
        chosen[b, head, t, : len(read)] = read.to(torch.int32)
    return chosen


def literal_attention(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int, scale: float) -> Tensor:
    """A softmax a query and head over the keys of its blocks."""
    outs = []
    for b, h, t in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        head = h * k.shape[1] // q.shape[1]
        read = [j for begin in chosen[b, head, t].tolist() if begin >= 0 for j in range(begin, begin + block) if j <= t]
        outs.append((k[b, head, read] @ q[b, h, t] * scale).softmax(0) @ v[b, head, read])
    return torch.stack(outs).view_as(q)


def assert_near(found, expected, tolerance):
    for each, reference in zip(found, expected, strict=True):
        assert each.isfinite().all()
        assert (each.double() - reference).norm() <= tolerance * reference.norm()


@over_cases
def test_lists_hold_every_choice_by_block_and_by_query(case):
    B, _, K, N, _, slots, block, lengths = case
    _, start_bn, _ = bounds_of(B, N, lengths)
    chosen = random_choice(B, K, N, slots, block, start_bn)
    place_rl, length_r = build_query_lists(chosen, block)
    for row, of_row in enumerate(chosen.view(B * K, -1).tolist()):
        expected = sorted((begin, place) for place, begin in enumerate(of_row) if begin >= 0)
        assert length_r[row] == len(expected)
        assert place_rl[row, : len(expected)].tolist() == [place for _, place in expected]


@pytest.mark.parametrize("masked", [False, True], ids=["gathered", "by masks"])
@pytest.mark.parametrize(("case", "dtype"), [(case, torch.float32) for case in CASES] + [(CASES[0], torch.float16)])
def test_selected_attention_and_gradients_equal_a_literal_loop(case, dtype, masked, small_pieces, monkeypatch):
    monkeypatch.setattr("dma_lab.kernels.blocks.attention.by_masks", lambda *sizes: masked)
    B, H, K, N, D, slots, block, lengths = case
    _, start_bn, end_bn = bounds_of(B, N, lengths)
    bounds = start_bn.to(torch.int32), end_bn.to(torch.int32)
    chosen = random_choice(B, K, N, slots, block, start_bn)
    generator = torch.Generator().manual_seed(1)
    *leaves, d_out = (torch.randn(B, heads, N, D, generator=generator).to(dtype) for heads in (H, K, K, H))
    results = []
    for exact in (False, True):
        q, k, v = inputs = [leaf.to(torch.float64 if exact else dtype).requires_grad_() for leaf in leaves]
        if exact:
            out = literal_attention(q, k, v, chosen, block, 0.3)
        else:
            out = selected_attention(q, k, v, chosen, *bounds, block=block, scale=0.3)
        results.append((out, *torch.autograd.grad(out, inputs, d_out.to(out))))
    if N == 1:  # softmax over one key has no gradient
        results = [(out, d_v) for out, _, _, d_v in results]
    assert_near(*results, 2e-6 if dtype == torch.float32 else 2e-3)


# (block, stride, selected_block): the paper's ratios, and others.
SIZES = [(4, 2, 8), (6, 2, 6), (3, 3, 3), (2, 1, 5)]


def compressed_case(case, sizes):
    """q, compressed k and v, documents' bounds, the blocks' last tokens and how many there are before each document."""
    B, H, K, N, D, _, _, lengths = case
    block, stride, _ = sizes
    _, start_bn, end_bn = bounds_of(B, N, lengths)
    first_bz, before_bn = locate_blocks(start_bn, end_bn, block, stride)
    generator = torch.Generator().manual_seed(2)
    Z = first_bz.shape[1]
    q, k, v = (torch.randn(B, *shape, D, generator=generator) for shape in ((H, N), (K, Z), (K, Z)))
    return q, k, v, start_bn, end_bn, first_bz + block - 1, before_bn


def compress_exactly(q, k, v, start_bn, last_bz, block, scale):
    position = torch.arange(q.shape[2])[:, None]
    visible = (last_bz[:, None] - block + 1 >= start_bn[..., None]) & (last_bz[:, None] <= position)
    return attend_compressed(q, k, v, visible, scale)


@pytest.mark.parametrize(("case", "sizes"), [(CASES[0], SIZES[0]), (CASES[1], SIZES[1]), (CASES[4], SIZES[0])], ids=str)
def test_compressed_attention_is_attention_over_lifetimes(case, sizes):
    q, k, v, start_bn, end_bn, last_bz, _ = compressed_case(case, sizes)
    d_out = torch.randn(q.shape, generator=torch.Generator().manual_seed(3))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    out, lse = compressed_attention(*inputs, last_bz, end_bn, scale=0.4)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected, weights = compress_exactly(*exact, start_bn, last_bz, sizes[0], 0.4)
    gradients = torch.autograd.grad(out, inputs, d_out), torch.autograd.grad(expected, exact, d_out.double())
    assert_near((out, *gradients[0]), (expected, *gradients[1]), 2e-6)
    assert torch.equal(lse.isinf(), (weights.sum(-1) == 0).repeat_interleave(q.shape[1] // k.shape[1], dim=1))


@pytest.mark.parametrize(("case", "sizes"), list(zip(CASES[:4], SIZES, strict=True)), ids=str)
@pytest.mark.parametrize("alike", [False, True])
def test_the_blocks_chosen_are_those_of_the_equations(case, sizes, alike, monkeypatch):
    monkeypatch.setattr(choice, "_IMPORTANCE_BYTES", 1)  # chunks as small as can be
    (B, _, K, N, *_), (block, stride, selected) = case, sizes
    q, k, v, start_bn, end_bn, last_bz, before_bn = compressed_case(case, sizes)
    q *= 0 if alike else 1
    _, lse = compressed_attention(q, k, v, last_bz, end_bn)
    bounds = start_bn.to(torch.int32), before_bn.to(torch.int32)
    chosen = choose_blocks(q, k, lse, *bounds, 5, block=block, stride=stride, selected_block=selected)
    scale = q.shape[-1] ** -0.5
    weights = compress_exactly(q.double(), k.double(), v.double(), start_bn, last_bz, block, scale)[1]
    weights = torch.round(weights, decimals=12)  # equal ones must be
    importance = block_importance(weights, before_bn, -(-N // selected), *sizes)
    own_bn = (torch.arange(N) - start_bn) // selected
    expected = select_blocks(importance, own_bn, 5)
    for b, head, t in torch.cartesian_prod(*(torch.arange(size) for size in (B, K, N))).tolist():
        found = [begin for begin in chosen[b, head, t].tolist() if begin >= 0]
        blocks = expected[b, head, t].nonzero()[:, 0] * selected + start_bn[b, t]
        assert sorted(found) == blocks.tolist()
        assert chosen[b, head, t, : len(found)].tolist() == found  # unused slots are the last


LAYERS = [
    ((4, 2), {"block": 4, "stride": 2, "selected_block": 8, "selected_blocks": 4, "window": 7}, None),
    ((3, 1), {"block": 2, "stride": 1, "selected_block": 5, "selected_blocks": 3, "qk_norm": False}, [1, 14, 3, 12]),
    ((2, 2), {"block": 6, "stride": 2, "selected_block": 6, "selected_blocks": 4, "window": 40}, [3]),
]


def layer_of(heads, options):
    torch.manual_seed(0)
    shape = {"d_model": 20, "n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": 6, "max_seq_len": 64}
    layer = build_attention("nsa", **shape, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize(("heads", "options", "lengths"), LAYERS)
def test_a_layer_by_kernels_is_the_layer_by_masks(heads, options, lengths, monkeypatch, small_pieces):
    layer, (B, N) = layer_of(heads, options), (1, 40) if lengths is None else (2, sum(lengths))
    ids = bounds_of(B, N, lengths)[0]
    x, d_out = torch.randn(B, N, 20), torch.randn(B, N, 20)
    results = []
    for kernels in (True, False):
        monkeypatch.setattr(nsa, "choose_triton", lambda *_, kernels=kernels: kernels)
        inputs = [x.to(torch.float32 if kernels else torch.float64).requires_grad_(), *layer.to(x.dtype).parameters()]
        if not kernels:
            inputs[1:] = layer.double().parameters()
        out = layer(inputs[0], ids)
        gradients = torch.autograd.grad(out, inputs, d_out.to(out), allow_unused=True)  # N may be below a block
        results.append([out, *(gradient for gradient in gradients if gradient is not None)])
    assert_near(*results, 3e-5)


def test_later_tokens_and_other_documents_change_no_bit(monkeypatch):
    monkeypatch.setattr(nsa, "choose_triton", lambda *_: True)
    heads, options, _ = LAYERS[0]
    layer, x = layer_of(heads, options), torch.randn(1, 40, 20)
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 28, 11]))[None]
    with torch.no_grad():
        alone, packed = layer(x), layer(x, ids)
        for t in (17, 30):
            changed = x.clone()
            changed[:, t + 1 :] = 10 * torch.randn(1, 39 - t, 20)
            assert torch.equal(layer(changed)[:, : t + 1], alone[:, : t + 1])
        others_changed = -3 * x
        others_changed[:, 1:29] = x[:, 1:29]
        assert torch.equal(layer(others_changed, ids)[:, 1:29], packed[:, 1:29])
        torch.testing.assert_close(layer(x[:, 1:29]), packed[:, 1:29], rtol=1e-4, atol=1e-5)


def test_it_compiles_into_one_graph_and_operators_keep_what_that_relies_on(monkeypatch):
    monkeypatch.setattr(nsa, "choose_triton", lambda *_: True)
    heads, options, _ = LAYERS[0]
    layer, x = layer_of(heads, options), torch.randn(1, 18, 20)
    results = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        out = run(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), layer.parameters())))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    _, start_bn, end_bn = bounds_of(1, 24, None)
    chosen = random_choice(1, 1, 24, 3, 8, start_bn)
    q, k, v = (torch.randn(1, heads, 24, 16, requires_grad=True) for heads in (2, 1, 1))
    start_bn, end_bn = start_bn.to(torch.int32), end_bn.to(torch.int32)
    torch.library.opcheck(torch.ops.dma_lab.selected_attention.default, (q, k, v, chosen, end_bn, 8, 0.25))
    torch.library.opcheck(torch.ops.dma_lab.masked_attention.default, (q, k, v, chosen, start_bn, end_bn, 8, 0.25))


def test_moba_by_kernels_is_moba_by_masks(monkeypatch, small_pieces):
    """The kernels' blocks being of 8 keys at most, MoBA's of 12 are two of them."""
    monkeypatch.setattr(moba, "_KERNEL_BLOCK", 8)
    torch.manual_seed(0)
    shape = {"d_model": 20, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "max_seq_len": 64}
    layer = build_attention("moba", **shape, block=12, selected_blocks=2)
    ids, x, d_out = bounds_of(1, 40, [1, 3, 36])[0], torch.randn(1, 40, 20), torch.randn(1, 40, 20)
    results = []
    for kernels, dtype in ((True, torch.float32), (False, torch.float64)):
        monkeypatch.setattr(moba, "choose_triton", lambda *_, kernels=kernels: kernels)
        inputs = [x.to(dtype).requires_grad_(), *layer.to(dtype).parameters()]
        out = layer(inputs[0], ids)
        results.append([out, *torch.autograd.grad(out, inputs, d_out.to(out))])
    assert_near(*results, 3e-5)
