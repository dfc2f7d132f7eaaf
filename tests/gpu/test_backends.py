"""The backends on a GPU: causal attention gives what float64 gives, and a compiled block is one graph."""

import pytest
import torch

from dma_lab.attention import build_attention, registered_backends
from dma_lab.kernels import Documents, causal_attention, document_bounds, interval_attention
from dma_lab.kernels.causal.attention import IMPLEMENTATIONS, which
from dma_lab.kernels.causal.problem import Problem
from dma_lab.kernels.choice import noted_kernels
from dma_lab.model import ModelShape, Transformer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CONTROLS = [
    ("mha", {"gate": True}),
    ("swa", {"sinks": 4, "window": 100}),
    ("dma", {"scores": "random"}),
    ("dma", {"scores": "frozen", "recency": "slope"}),
]
IDS = torch.repeat_interleave(torch.arange(5), torch.tensor([1, 300, 129, 500, 94]))


def relative_error(found, expected):
    assert found.isfinite().all()
    return ((found.double() - expected).norm() / expected.norm()).item()


def exact_attention(q, k, v, window, ids, d_out):
    """Output and gradients in float64, by the definition."""
    B, _, N, _ = q.shape
    expiry = document_bounds(ids, B, N, q.device)[1]
    if window is not None:
        expiry = torch.minimum(expiry, torch.arange(N, device=q.device) + window)
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    out = interval_attention(*exact, expiry[:, None].expand(-1, k.shape[1], -1).to(torch.int32), impl="torch")
    return out, *torch.autograd.grad(out, exact, d_out.double())


def random_inputs(heads, widths, dtype, B=2, N=1024):
    """q, k, v and the output's gradient, laid out as projections write them."""
    torch.manual_seed(0)
    (H, K), (D, E) = heads, widths
    return [
        torch.randn(B, N, *shape, device="cuda", dtype=dtype).transpose(1, 2)
        for shape in ((H, D), (K, D), (K, E), (H, E))
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("heads", "widths"),
    [((4, 2), (64, 64)), ((4, 4), (128, 128)), ((6, 3), (128, 128)), ((4, 4), (192, 128)), ((4, 4), (96, 64))],
)
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_implementation_gives_what_float64_gives(implementation, heads, widths, window, packed, dtype):
    q, k, v, d_out = random_inputs(heads, widths, dtype)
    reason = implementation.supports(Problem.of(q, k, v, window=window, packed=packed))
    if reason is not None:
        pytest.skip(reason)
    ids = torch.stack((IDS, IDS.flip(0).neg())).cuda() if packed else None
    inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = implementation.attend(*inputs, window, ids if ids is None else Documents.of(ids), None)
    found = out, *torch.autograd.grad(out, inputs, d_out)
    for each, reference in zip(found, exact_attention(q, k, v, window, ids, d_out), strict=True):
        # With a window of one key softmax is flat: dq and dk are zero but for rounding.
        if reference.abs().max() < 1e-9:
            assert each.abs().max() < 0.02
        else:
            assert relative_error(each, reference) < 5e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lengths", [[1], [2], [127, 1], [1, 4000, 95], [1] * 300 + [213]])
def test_lengths_of_any_kind(implementation, packed, lengths):
    N = sum(lengths)
    q, k, v, d_out = random_inputs((4, 2), (128, 128), torch.bfloat16, B=1, N=N)
    reason = implementation.supports(Problem.of(q, k, v, packed=packed))
    if reason is not None:
        pytest.skip(reason)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].cuda() if packed else None
    inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = implementation.attend(*inputs, None, ids, None)
    found = out, *torch.autograd.grad(out, inputs, d_out)
    for each, reference in zip(found, exact_attention(q, k, v, None, ids, d_out), strict=True):
        if reference.abs().max() < 1e-9:
            assert each.abs().max() < 0.02
        else:
            assert relative_error(each, reference) < 2**-7  # of two tokens, roundings of 2^-8 do not average out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda each: each.name)
def test_asked_for_it_two_backward_passes_agree_in_every_bit(implementation):
    inputs = random_inputs((4, 2), (128, 128), torch.bfloat16)
    q, k, v = (tensor.requires_grad_() for tensor in inputs[:3])
    documents = Documents.of(IDS.expand(2, -1).cuda())
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        if (reason := implementation.supports(Problem.of(q, k, v, packed=True))) is not None:
            pytest.skip(reason)
        outs = [implementation.attend(q, k, v, None, documents, None) for _ in range(2)]
        first, second = (torch.autograd.grad(out, (q, k, v), inputs[3]) for out in outs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("widths", [(128, 128), (192, 128)])
def test_what_the_table_says_is_what_runs(window, packed, widths, capfd):
    """Seen by PyTorch's profiler, which no implementation can tell anything."""
    q, k, v, _ = random_inputs((4, 4), widths, torch.bfloat16)
    ids = IDS.expand(2, -1).cuda() if packed else None
    index, _ = which(Problem.of(q, k, v, window=window, packed=packed))
    operators = {
        "dma_lab::flash_attention": ["flash-attn 4", "flash-attn 2"],
        "aten::_scaled_dot_product_cudnn_attention": ["cuDNN"],
        "aten::_scaled_dot_product_flash_attention": ["PyTorch's SDPA"],
        "aten::_scaled_dot_product_efficient_attention": ["PyTorch's SDPA"],
        "dma_lab::interval_attention": ["interval attention"],
    }
    with torch.no_grad(), torch.profiler.profile() as profile, noted_kernels() as names:
        causal_attention(q, k, v, window=window, document_ids=ids)
    ran = {event.key for event in profile.key_averages()} & set(operators)
    name = IMPLEMENTATIONS[index].name
    assert len(ran) == 1
    assert name in operators[ran.pop()]
    assert [each.partition(" (")[0] for each in names] == [name]


def test_layers_given_documents_do_not_wait_for_the_gpu():
    """MHA and SWA over a flash-attn package: nothing is copied to the host, forward or backward."""
    N, shape = len(IDS), {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_seq_len": len(IDS)}
    documents = Documents.of(IDS.expand(2, -1)).to(torch.device("cuda"))
    for name in ("mha", "swa"):
        layer, x = build_attention(name, **shape).cuda(), torch.randn(2, N, 256, device="cuda", requires_grad=True)
        with torch.autocast("cuda", torch.bfloat16):
            if not layer.kernels(N, packed=True, bf16=True).startswith("flash-attn"):
                pytest.skip("needs a flash-attn package")
            layer(x, documents).sum().backward()  # what is compiled or cached, now is
            torch.cuda.set_sync_debug_mode("error")
            try:
                layer(x, documents).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["mha", "swa", "mla"])
def test_one_graph_serves_batches_of_any_number_of_documents(name):
    torch._dynamo.reset()
    N, shape = 1024, {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_seq_len": 1024}
    layer, x = build_attention(name, **shape).cuda(), torch.randn(2, N, 256, device="cuda", requires_grad=True)
    d_out = torch.randn(2, N, 256, device="cuda")
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, fullgraph=True)
    for length in (1024, 300, 17):
        documents = Documents.of((torch.arange(N) // length).expand(2, -1)).to(torch.device("cuda"))
        results = []
        for run in (compiled, layer):
            with torch.autocast("cuda", torch.bfloat16):
                out = run(x, documents)
            results.append([out, *torch.autograd.grad(out, [x, *layer.parameters()], d_out.to(out))])
        for each, reference in zip(*results, strict=True):
            assert relative_error(each, reference.double()) < 0.02
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", sorted(registered_backends()))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_no_backend_takes_quadratic_memory(name, packed, precision):
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


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in sorted(registered_backends())]
    + [(name, {"recency": "slope"}) for name in ("mha", "swa", "mla", "dma")]
    + CONTROLS,
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("head_dim", [12, 64])
def test_a_layer_in_bf16_agrees_with_the_cpu_in_float32(name, options, packed, head_dim):
    torch.manual_seed(0)
    N = len(IDS)
    shape = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": head_dim, "max_seq_len": N}
    layer = build_attention(name, **shape, **options)
    x, ids = torch.randn(2, N, 256), IDS.expand(2, -1) if packed else None
    expected = layer(x, ids).detach().double()
    layer.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        found = layer(x.cuda(), None if ids is None else ids.cuda())
    # Rounding moves a score across the threshold now and then, so that a query keeps another key than on the CPU.
    assert relative_error(found.cpu(), expected) < (0.1 if name in ("dma", "nsa", "moba", "dsa") else 0.02)


@pytest.mark.parametrize("compiled", [False, True])
def test_nsa_by_kernels_has_the_gradients_it_has_on_the_cpu(compiled):
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


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in sorted(registered_backends())] + CONTROLS + [("swa", {"full_every": 2, "window": 100})],
)
def test_a_compiled_model_is_one_graph_and_agrees_with_the_eager_one(name, options):
    shape = ModelShape(
        n_layers=2, d_model=256, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=512, vocab_size=512, max_seq_len=1024
    )
    model = Transformer(shape, name, options).cuda()
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
