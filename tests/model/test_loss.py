"""Head and cross-entropy in chunks against the plain ones in float64."""

import pytest
import torch
import torch.nn.functional as F

from dma_lab.model import ModelShape, Transformer, loss
from dma_lab.model.loss import LinearCrossEntropy, chunks, target_nats

ROWS, WIDTH, VOCAB = 37, 24, 50


@pytest.fixture(params=[None, 16, 5], ids=lambda rows: f"chunks of {rows or 'all'}")
def chunked(request, monkeypatch):
    """At most so many rows at a time, of ``VOCAB`` logits."""
    if request.param:
        monkeypatch.setattr(loss, "_CHUNK_BYTES", request.param * 4 * VOCAB)


def drawn(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCAB, (ROWS,), generator=generator)
    targets[::4] = -100
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def oracle(x, weight, targets):
    """Loss and gradients in float64, from the very numbers given."""
    x, weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    value = F.cross_entropy(x @ weight.T, targets)
    return value.detach(), *torch.autograd.grad(3 * value, (x, weight))


def errors(found, exact):
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)]


@pytest.mark.parametrize("way", ["eager", "compiled", "within a compiled function"])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(chunked, way):
    x, weight, targets = drawn()
    criterion = LinearCrossEntropy()
    if way == "compiled":
        criterion.compile(fullgraph=True, backend="aot_eager")
    value_of = (
        torch.compile(criterion.forward, fullgraph=True, backend="aot_eager") if "within" in way else criterion.forward
    )
    value = value_of(x, weight, targets)
    found = [value.detach(), *torch.autograd.grad(3 * value, (x, weight))]
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert max(errors(found, oracle(x, weight, targets))) < 1e-6
    again = torch.autograd.grad(3 * value_of(x, weight, targets), (x, weight))
    assert all(map(torch.equal, found[1:], again)), "deterministic"


def test_float64_is_kept(chunked):
    x, weight, targets = drawn(torch.float64)
    value = LinearCrossEntropy()(x, weight, targets)
    found = [value.detach(), *torch.autograd.grad(3 * value, (x, weight))]
    assert max(errors(found, oracle(x, weight, targets))) < 1e-14


def test_in_bf16_it_is_as_near_as_the_plain_one(chunked):
    x, weight, targets = drawn()
    exact = oracle(x, weight, targets)

    def found(value_of):
        with torch.autocast("cpu", torch.bfloat16):
            value = value_of()
        assert value.dtype == torch.float32
        return [value.detach(), *torch.autograd.grad(3 * value, (x, weight))]

    plain = errors(found(lambda: F.cross_entropy(F.linear(x, weight).float(), targets)), exact)
    ours = errors(found(lambda: LinearCrossEntropy()(x, weight, targets)), exact)
    assert all(error < 1.2 * other + 1e-7 for error, other in zip(ours, plain, strict=True)), (ours, plain)
    assert max(plain) > 1e-3, "which was in bf16"


def test_rows_that_are_not_scored_count_nowhere(chunked):
    x, weight, targets = drawn()
    value = LinearCrossEntropy()(x, weight, targets)
    gradients = torch.autograd.grad(value, (x, weight))
    with torch.no_grad():
        x[::4] = torch.randn(ROWS, WIDTH)[::4] * 1e3
    other = LinearCrossEntropy()(x, weight, targets)
    assert torch.equal(value, other)
    assert all(map(torch.equal, gradients, torch.autograd.grad(other, (x, weight))))
    assert LinearCrossEntropy()(x, weight, torch.full_like(targets, -100)).isnan(), "as PyTorch's mean of none"


def test_nats_of_every_target_are_the_plain_ones(chunked):
    x, weight, targets = drawn()
    head = torch.nn.Linear(WIDTH, VOCAB, bias=False)
    head.weight.data = weight.data
    nats = target_nats(x.view(1, ROWS, WIDTH), head, targets[None])
    exact = F.cross_entropy(x.double() @ weight.double().T, targets, reduction="none")
    torch.testing.assert_close(nats[0].double(), exact, rtol=1e-5, atol=1e-6)
    assert nats.shape == (1, ROWS)
    assert not nats[0, ::4].any()


@pytest.mark.parametrize("rows", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("vocab_size", [7, 2**14, 2**29])
def test_chunks_are_few_and_hold_every_row_once(rows, vocab_size):
    parts = list(chunks(rows, vocab_size))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.stop - part.start <= max(1, 2**30 // (4 * vocab_size)) for part in parts)
    if rows * vocab_size * 4 <= 2**30:
        assert len(parts) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_trained_by_the_loss_of_its_logits(tied, monkeypatch):
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 10 * 4 * VOCAB)
    model = Transformer(ModelShape(1, 16, 2, 1, 8, 32, VOCAB, 24, tie_embeddings=tied), "mha")
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(VOCAB, (2, 2, 24), generator=generator)
    ids = (torch.arange(24) // 10).expand(2, -1)
    targets[:, :5] = -100
    model.losses(tokens, targets, ids)[0].backward()
    gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
    exact = model.double()
    exact.zero_grad()
    plain = F.cross_entropy(exact(tokens, ids).flatten(0, 1), targets.flatten())
    plain.backward()
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)
    nats = exact.nats(tokens, targets, ids)
    assert float(nats.sum() / (targets != -100).sum()) == pytest.approx(plain.item(), rel=1e-12)


def test_logits_of_a_whole_batch_are_never_held(monkeypatch):
    """The largest tensor that autograd keeps, and that is made on the way, has a chunk's rows."""
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 5 * 4 * VOCAB)
    x, weight, targets = drawn()
    kept, made = [], []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.extend(one.numel() for one in torch.utils._pytree.tree_leaves(result) if isinstance(one, torch.Tensor))
            return result

    watched = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with watched, Sizes():
        value = LinearCrossEntropy()(x, weight, targets)
    with Sizes():
        value.backward()
    assert sorted(kept) == [ROWS * WIDTH, VOCAB * WIDTH]
    assert max(made) == max(ROWS * WIDTH, VOCAB * WIDTH) < ROWS * VOCAB
