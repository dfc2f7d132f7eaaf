"""The backends on a GPU: flash-attn says what interval attention says, and a compiled block is one graph."""

import importlib.util

import pytest
import torch

from dma_lab.attention import build_attention, registered_backends
from dma_lab.kernels import document_bounds, flash_attention, flash_attention_suits, interval_attention
from dma_lab.model import ModelShape, Transformer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
needs_flash_attn = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn")
IDS = torch.repeat_interleave(torch.arange(5), torch.tensor([1, 300, 129, 500, 94]))


def relative_error(found, expected):
    assert found.isfinite().all()
    return ((found.double() - expected).norm() / expected.norm()).item()


@needs_flash_attn
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_flash_attn_gives_what_float64_gives(head_dim, window, packed):
    B, H, K, N = 2, 4, 2, len(IDS)
    torch.manual_seed(0)
    q, k, v, d_out = (
        torch.randn(B, N, heads, head_dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for heads in (H, K, K, H)
    )
    ids = torch.stack((IDS, IDS.flip(0).neg())).cuda() if packed else None
    assert flash_attention_suits(q, v)
    expiry = document_bounds(ids, B, N, q.device)[1]
    if window:
        expiry = torch.minimum(expiry, torch.arange(N, device="cuda") + window)
    expiry = expiry[:, None].expand(-1, K, -1).to(torch.int32)
    inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    out = flash_attention(*inputs, window=window, document_ids=ids)
    expected = interval_attention(*exact, expiry, impl="torch")
    found = out, *torch.autograd.grad(out, inputs, d_out)
    wanted = expected, *torch.autograd.grad(expected, exact, d_out.double())
    for each, reference in zip(found, wanted, strict=True):
        assert relative_error(each, reference) < 5e-3


@pytest.mark.parametrize("name", sorted(registered_backends()))
@pytest.mark.parametrize("packed", [False, True])
def test_a_layer_in_bf16_agrees_with_the_cpu_in_float32(name, packed):
    torch.manual_seed(0)
    N = len(IDS)
    shape = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_seq_len": N}
    layer = build_attention(name, **shape)
    x, ids = torch.randn(2, N, 256), IDS.expand(2, -1) if packed else None
    expected = layer(x, ids).detach().double()
    layer.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        found = layer(x.cuda(), None if ids is None else ids.cuda())
    # Rounding moves a score across the threshold now and then, so that a query keeps another key than on the CPU.
    assert relative_error(found.cpu(), expected) < (0.1 if name in ("dma", "nsa") else 0.02)


@pytest.mark.parametrize("compiled", [False, True])
def test_nsa_over_several_chunks_of_queries_has_the_gradients_it_has_on_the_cpu(compiled):
    torch.manual_seed(0)
    N = 4500
    shape = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_seq_len": N}
    # All blocks are selected: rounding, which may change what is selected, then changes nothing.
    layer = build_attention("nsa", **shape, selected_blocks=-(-N // 64))
    x, ids = torch.randn(1, N, 256), (torch.arange(N) // 3000)[None]
    d_out = torch.randn(1, N, 256)

    def gradients(run, device):
        inputs = [x.to(device).requires_grad_(), *layer.parameters()]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            out = run(inputs[0], ids.to(device))
        return [grad.cpu().double() for grad in torch.autograd.grad(out, inputs, d_out.to(out))]

    expected = gradients(layer, "cpu")
    layer.cuda()
    found = gradients(torch.compile(layer, fullgraph=True) if compiled else layer, "cuda")
    for each, reference in zip(found, expected, strict=True):
        assert relative_error(each, reference) < 0.03


@pytest.mark.parametrize("name", sorted(registered_backends()))
def test_a_compiled_model_is_one_graph_and_agrees_with_the_eager_one(name):
    shape = ModelShape(
        n_layers=2, d_model=256, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=512, vocab_size=512, max_seq_len=1024
    )
    model = Transformer(shape, name).cuda()
    tokens = torch.randint(0, 512, (2, 1024), device="cuda")
    ids = IDS.expand(2, -1).cuda()

    def loss_and_gradient(run):
        with torch.autocast("cuda", torch.bfloat16):
            logits = run(tokens, ids)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.roll(-1, 1).flatten())
        model.zero_grad()
        loss.backward()
        return loss.item(), model.embedding.weight.grad.double()

    eager_loss, eager_gradient = loss_and_gradient(model)
    for block in model.blocks:
        block.compile(fullgraph=True)  # as training does
    compiled_loss, compiled_gradient = loss_and_gradient(model)
    assert compiled_loss == pytest.approx(eager_loss, rel=1e-3)
    assert relative_error(compiled_gradient, eager_gradient) < 0.1
