"""Block-sparse attention on a GPU: against float64, to the bit on repetition, without waiting for the device."""

import pytest
import torch

from dma_lab.attention import build_attention
from dma_lab.attention.nsa_blocks import attend_compressed, block_importance, locate_blocks, select_blocks
from dma_lab.kernels import Documents, document_bounds
from dma_lab.kernels.blocks.attention import choose_blocks, selected_attention
from dma_lab.kernels.blocks.compressed import compressed_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("unwritten_memory_is_nan"),
]

# Relative errors allowed. Where few keys are seen, softmax passes back a difference of near equals: documents of few
# tokens err more, as they do in the flash-attn packages.
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}


def relative_error(found, expected):
    assert found.isfinite().all()
    return ((found.double() - expected).norm() / expected.norm()).item()


def ids_of(B, N, tokens_a_document):
    return None if tokens_a_document is None else (torch.arange(N, device="cuda") // tokens_a_document).expand(B, N)


def random_choice(B, K, N, slots, block, start_bn):
    """As ``selected_attention`` takes it, and bool (B, K, N, blocks of a document)."""
    own_bn = (torch.arange(N, device="cuda") - start_bn) // block
    read = select_blocks(torch.rand(B, K, N, -(-N // block), device="cuda"), own_bn, slots)
    j = read.to(torch.int64).argsort(dim=-1, descending=True, stable=True)[..., :slots]
    begin = start_bn[:, None, :, None] + j * block
    chosen = torch.where(read.gather(-1, j), begin, -1).to(torch.int32)
    return torch.nn.functional.pad(chosen, (0, slots - chosen.shape[-1]), value=-1), read


def exact_attention(q, k, v, read, start_bn, block, d_out):
    """Output and gradients in float64, by masks, a chunk of queries at a time."""
    (_, H, N, D), K = q.shape, k.shape[1]
    q, k, v = (tensor.detach().double().requires_grad_() for tensor in (q, k, v))
    position = torch.arange(N, device="cuda")
    block_bn = (position - start_bn) // block
    outs, gradients = [], [torch.zeros_like(tensor) for tensor in (q, k, v)]
    for chunk in position.split(512):
        own = (position >= start_bn[:, chunk, None]) & (position <= chunk[:, None])
        live = read[:, :, chunk].gather(-1, block_bn[:, None, None].expand(-1, K, len(chunk), -1)) & own[:, None]
        keys, values = (tensor.repeat_interleave(H // K, dim=1) for tensor in (k, v))
        logits = (q[:, :, chunk] @ keys.mT * D**-0.5).masked_fill(~live.repeat_interleave(H // K, dim=1), -torch.inf)
        outs.append(logits.softmax(-1) @ values)
        for total, part in zip(
            gradients, torch.autograd.grad(outs[-1], (q, k, v), d_out[:, :, chunk].double()), strict=True
        ):
            total += part
    return torch.cat([out.detach() for out in outs], dim=2), *gradients


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("B", "H", "K", "N", "D", "slots", "block", "tokens_a_document"),
    [
        (1, 4, 2, 3000, 128, 16, 64, None),
        (2, 6, 3, 2048, 128, 16, 64, 700),
        (1, 2, 2, 1111, 64, 16, 64, None),
        (3, 4, 1, 777, 64, 5, 32, 200),
        (1, 6, 1, 900, 96, 8, 48, None),
        (2, 4, 2, 512, 32, 16, 16, 150),
        (1, 4, 2, 500, 12, 16, 8, None),
        (1, 2, 1, 1000, 256, 4, 64, None),
        (1, 16, 1, 600, 128, 4, 64, 250),
        (1, 2, 1, 9000, 64, 3, 64, None),
    ],
)
@pytest.mark.parametrize("masked", [False, True], ids=["gathered", "by masks"])
def test_selected_attention_and_gradients_equal_float64(
    dtype, B, H, K, N, D, slots, block, tokens_a_document, masked, monkeypatch
):
    if masked and N > 32 * block:
        pytest.skip("more blocks than a mask's numbers tell apart")
    monkeypatch.setattr("dma_lab.kernels.blocks.attention.by_masks", lambda *sizes: masked)
    torch.manual_seed(N)
    start_bn, end_bn = document_bounds(ids_of(B, N, tokens_a_document), B, N, torch.device("cuda"))
    chosen, read = random_choice(B, K, N, slots, block, start_bn)
    *leaves, d_out = (torch.randn(B, N, heads, D, device="cuda").to(dtype).transpose(1, 2) for heads in (H, K, K, H))

    bounds = start_bn.to(torch.int32), end_bn.to(torch.int32)

    def attend():
        inputs = [leaf.detach().requires_grad_() for leaf in leaves]
        out = selected_attention(*inputs, chosen, *bounds, block=block)
        return out, *torch.autograd.grad(out, inputs, d_out)

    found = attend()
    for each, reference in zip(found, exact_attention(*leaves, read, start_bn, block, d_out), strict=True):
        assert relative_error(each, reference) <= TOLERANCE[dtype]
    assert all(torch.equal(first, second) for first, second in zip(found, attend(), strict=True))


@pytest.mark.parametrize("tokens_a_document", [None, 700, 40])
@pytest.mark.parametrize("D", [128, 32])
def test_compressed_branch_and_choice_are_those_of_the_equations(tokens_a_document, D):
    B, H, K, N, sizes = 2, 4, 2, 3000, (32, 16, 64)
    torch.manual_seed(0)
    start_bn, end_bn = document_bounds(ids_of(B, N, tokens_a_document), B, N, torch.device("cuda"))
    first_bz, before_bn = locate_blocks(start_bn, end_bn, *sizes[:2])
    last_bz, Z = first_bz + 31, first_bz.shape[1]
    shapes = (B, H, N, D), (B, K, Z, D), (B, K, Z, D), (B, H, N, D)
    *leaves, d_out = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    inputs = [leaf.requires_grad_() for leaf in leaves]
    out, lse = compressed_attention(*inputs, last_bz, end_bn)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    position = torch.arange(N, device="cuda")
    visible = (first_bz[:, None] >= start_bn[..., None]) & (last_bz[:, None] <= position[:, None])
    expected, weights = attend_compressed(*exact, visible, D**-0.5)
    if tokens_a_document != 40:  # where a query sees one block, softmax is flat
        gradients = torch.autograd.grad(out, inputs, d_out), torch.autograd.grad(expected, exact, d_out.double())
        for each, reference in zip((out, *gradients[0]), (expected, *gradients[1]), strict=True):
            assert relative_error(each, reference) <= 5e-3
    bounds = start_bn.to(torch.int32), before_bn.to(torch.int32)
    q, k = inputs[0].detach(), inputs[1].detach()
    chosen = choose_blocks(q, k, lse, *bounds, 16, block=sizes[0], stride=sizes[1], selected_block=sizes[2])
    # By value: what was chosen is as important as what should be. Rounding may swap blocks that are all but equal.
    importance = block_importance(weights, before_bn, -(-N // 64), *sizes)
    own_bn = (position - start_bn) // 64
    should = select_blocks(importance, own_bn, 16)
    index = ((chosen - start_bn[:, None, :, None]) // 64).clamp(min=0)
    found = torch.zeros_like(importance).scatter_add_(-1, index, (chosen >= 0).double())
    assert (found <= 1).all()
    assert torch.equal(found.sum(-1), should.sum(-1).double())
    for always in (torch.zeros_like(own_bn), own_bn, (own_bn - 1).clamp(min=0)):
        assert (found.gather(-1, always[:, None, :, None].expand(-1, K, -1, 1)) == 1).all()
    lost = ((should.double() - found) * importance).sum(-1)
    assert lost.abs().max() < 1e-4 * importance.sum(-1).max()
    assert ((found != should).sum() / should.sum()).item() < 1e-3


def test_no_square_of_memory_and_no_wait_at_65536_tokens():
    N, shape = 65_536, {"d_model": 256, "n_heads": 2, "n_kv_heads": 1, "head_dim": 128, "max_seq_len": 65_536}
    layer, x = build_attention("nsa", **shape).cuda(), torch.randn(1, N, 256, device="cuda", requires_grad=True)
    documents = Documents.of(torch.arange(N)[None] // 50_000).to(torch.device("cuda"))
    with torch.autocast("cuda", torch.bfloat16):
        layer(x, documents).sum().backward()  # what is compiled or cached, now is
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if "flash-attn" in layer.kernels(1024, packed=True, bf16=True):
            torch.cuda.set_sync_debug_mode("error")
        try:
            layer(x, documents).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    used = torch.cuda.max_memory_allocated() - before
    print(f"peak memory at N = 65,536, 2/1 heads: {used / 2**20:.0f} MiB")
    assert (
        used < 3 * 2**30
    )  # N x N / 16 compressed logits alone are 2 GiB in float32, as many again in the backward pass


def test_a_layer_is_the_same_eager_compiled_and_as_a_graph():
    torch.manual_seed(0)
    shape = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_seq_len": 4096}
    layer, x = build_attention("nsa", **shape).cuda(), torch.randn(2, 4096, 256, device="cuda", requires_grad=True)
    documents = Documents.of((torch.arange(4096) // 3000).expand(2, -1)).to(torch.device("cuda"))
    inputs = [x, *layer.parameters()]

    def step(run):
        with torch.autocast("cuda", torch.bfloat16):
            out = run(x, documents)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        eager = step(layer)
        again = step(layer)
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(eager, again, strict=True))
    graph = torch.cuda.CUDAGraph()
    torch.clear_autocast_cache()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        captured = step(layer)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(eager, captured, strict=True))
    compiled = step(torch.compile(layer, fullgraph=True))
    assert relative_error(compiled[0], eager[0].double()) < 0.05  # other rounding, and with it some other blocks


def test_float64_on_the_gpu_is_announced(capfd):
    from dma_lab.messages import print_once

    print_once.cache_clear()
    shape = {"d_model": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "max_seq_len": 128}
    build_attention("nsa", **shape).cuda().double()(torch.randn(1, 128, 32, device="cuda", dtype=torch.float64))
    assert "plain PyTorch runs instead" in capfd.readouterr().err
