"""The backends on a GPU: flash-attn says what interval attention says, and a compiled block is one graph."""

import importlib.util

import pytest
import torch

from dma_lab.attention import build_attention, registered_backends
from dma_lab.attention.operators import attention_ops
from dma_lab.kernels import document_bounds, flash_attention, flash_attention_supports, interval_attention
from dma_lab.messages import print_once
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
    assert flash_attention_supports(q, v)
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


@needs_flash_attn
@pytest.mark.parametrize(("name", "options"), [("mha", {}), ("swa", {"window": 100})])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_with_flash_attn_a_layer_gives_what_it_gives_without(name, options, head_dim, monkeypatch):
    torch.manual_seed(0)
    N, M = len(IDS), 4 * head_dim
    shape = {"d_model": M, "n_heads": 4, "n_kv_heads": 2, "head_dim": head_dim, "max_seq_len": N}
    layer = build_attention(name, **shape, **options).cuda()
    x, ids = torch.randn(2, N, M, device="cuda"), IDS.expand(2, -1).cuda()
    inputs, d_out = [x.requires_grad_(), *layer.parameters()], torch.randn(2, N, M, device="cuda")

    def run(document_ids):
        with torch.autocast("cuda", torch.bfloat16):
            ops = attention_ops(layer, x, document_ids)
            out = layer(x, document_ids)
        return ops, (out, *torch.autograd.grad(out, inputs, d_out.to(out)))

    with_it = [run(ids), run(torch.zeros_like(ids))]
    assert all(ops == ["dma_lab::flash_attention"] for ops, _ in with_it)
    monkeypatch.setattr(f"dma_lab.attention.{name}.flash_attention_supports", lambda q, v: False)
    without = [run(ids), run(None)]  # one document in all is none at all: MHA's way through SDPA
    expected_op = "aten::_scaled_dot_product" if name == "mha" else "dma_lab::interval_attention"
    assert without[0][0][0] == "dma_lab::interval_attention"
    assert without[1][0][0].startswith(expected_op)
    for (_, found), (_, expected) in zip(with_it, without, strict=True):
        for each, reference in zip(found, expected, strict=True):
            assert relative_error(each, reference.double()) < 0.02


@pytest.mark.parametrize("name", sorted(registered_backends()))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_no_backend_takes_quadratic_memory_and_quadratic_work_is_said(name, packed, precision, capfd):
    print_once.cache_clear()
    peaks = []
    for N in (8192, 16_384):
        shape = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_seq_len": N}
        layer, x = build_attention(name, **shape).cuda(), torch.randn(1, N, 256, device="cuda", requires_grad=True)
        ids = torch.arange(N, device="cuda")[None] // 3000 if packed else None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            layer(x, ids).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del layer, x
    assert peaks[1] < 2.6 * peaks[0], f"{peaks} bytes at 8,192 and 16,384 tokens"
    assert capfd.readouterr().err.count("costs what dense attention costs") == (name == "nsa")


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
