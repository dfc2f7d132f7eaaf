"""The transformer around the attention: counts, initial weights, decoding."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dma_lab.attention import registered_backends
from dma_lab.kernels import Documents
from dma_lab.model import Initialisation, ModelShape, Transformer, loss
from dma_lab.model.accounting import count_parameters, estimate_memory, training_flops_per_sequence
from dma_lab.model.transformer import Block

SHAPE = ModelShape(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=96, vocab_size=64, max_seq_len=48)


@pytest.mark.parametrize("tied", [True, False])
def test_parts_sum_to_the_total(tied):
    shape = ModelShape(**{**vars(SHAPE), "tie_embeddings": tied})
    model = Transformer(shape, "dma")
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.embedding == 64 * 32
    assert count.head == (0 if tied else 64 * 32)
    assert count.feed_forward == 2 * 3 * 32 * 96
    assert count.norms == 5 * 32


def test_backends_share_the_weights_that_they_share():
    mha, dma = Transformer(SHAPE, "mha", seed=3), Transformer(SHAPE, "dma", seed=3)
    ours = dict(dma.named_parameters())
    for name, weight in mha.named_parameters():
        torch.testing.assert_close(weight, ours[name], rtol=0, atol=0)
    other = Transformer(SHAPE, "mha", seed=4)
    assert not torch.equal(other.embedding.weight, mha.embedding.weight)
    layers = [block.feed_forward.up_proj.weight for block in mha.blocks]
    assert not torch.equal(layers[0], layers[1])


def test_initial_weights_have_the_stated_spread():
    model = Transformer(ModelShape(**{**vars(SHAPE), "d_model": 128, "d_ff": 384, "head_dim": 32}), "mha")
    assert model.blocks[0].feed_forward.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].feed_forward.down_proj.weight.std().item() == pytest.approx(0.02 / 4**0.5, rel=0.02)
    assert model.blocks[1].attention.o_proj.weight.std().item() == pytest.approx(0.02 / 4**0.5, rel=0.02)


@pytest.mark.parametrize("attention", sorted(registered_backends()))
def test_initial_scales_change_what_they_name_alone(attention):
    scales = Initialisation(std=0.04, output_scale=3.0, qk_gain=1.5)
    plain, scaled = Transformer(SHAPE, attention), Transformer(SHAPE, attention, init=scales)
    gains = 0
    for (name, ours), theirs in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        # MLA's q_norm and kv_norm are of latents.
        if name.endswith(("q_norm.weight", "k_norm.weight")) and attention != "mla":
            assert torch.equal(theirs, torch.full_like(ours, 1.5))
            gains += 1
        elif ours.ndim == 2 and "position" not in name:
            times = 6.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 2.0
            torch.testing.assert_close(theirs, times * ours)
        else:
            assert torch.equal(theirs, ours), name
    assert gains == {"mla": 0, "nsa": 8, "gated_deltanet": 0}.get(attention, 4)


@pytest.mark.parametrize("attention", ["mha", "dma"])
def test_a_step_at_a_time_gives_the_same_logits(attention):
    model = Transformer(SHAPE, attention).eval()
    tokens = torch.randint(64, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        cache = model.new_cache(2)
        steps = torch.cat([model.step(tokens[:, t : t + 1], cache) for t in range(48)], dim=1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-5)


class CountSearches(TorchDispatchMode):
    """How often documents are searched for, which on a GPU the host waits for."""

    searches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("nonzero", "_local_scalar_dense", "document_offsets", "cummax", "cummin")
        self.searches += any(name in func.name() for name in waits)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", sorted(registered_backends()))
def test_documents_are_found_once_for_all_layers_and_both_passes(attention):
    model = Transformer(SHAPE, attention)
    tokens = torch.randint(64, (2, 48), generator=torch.Generator().manual_seed(0))
    ids = (torch.arange(48) // 20).expand(2, -1)
    with CountSearches() as anew:
        by_ids = model(tokens, ids)
    with CountSearches() as found:
        documents = Documents.of(ids)
    with CountSearches() as given:
        by_documents = model(tokens, documents)
        by_documents.sum().backward()
    assert 0 < found.searches == anew.searches
    assert given.searches == 0
    assert torch.equal(by_documents, by_ids)


def test_flops_of_a_training_step_are_those_of_its_matrix_products():
    model = Transformer(SHAPE, "mha")
    tokens = torch.randint(64, (1, 48))
    # One document in all: the path that is plain matrix products, which the counter knows on every device.
    with FlopCounterMode(display=False) as counter:
        model(tokens, torch.zeros_like(tokens)).sum().backward()
    # The counter sees the square of scores, the formula its causal half with the diagonal.
    square = 3 * 2 * 4 * 4 * 8 * 48 * 48
    counted = training_flops_per_sequence(model, 48)
    mixing = 3 * 2 * model.blocks[0].attention.flops(48).mixing
    assert counter.get_total_flops() == counted.executed - mixing + square
    assert counted.executed == counted.dense_equivalent
    assert mixing == square * 49 // 96


@pytest.mark.parametrize("attention", sorted(registered_backends()))
def test_activation_checkpointing_computes_blocks_again_and_the_same_numbers(attention, monkeypatch):
    tokens = torch.randint(64, (2, 49), generator=torch.Generator().manual_seed(0))
    ids = (torch.arange(48) >= 20).long().expand(2, -1)
    calls, forward = [0], Block.forward

    def counted(block, *arguments):
        calls[0] += 1
        return forward(block, *arguments)

    def trained(activation_checkpointing):
        model = Transformer(SHAPE, attention, seed=1)
        model.activation_checkpointing = activation_checkpointing
        calls[0], kept = 0, {}

        def keep(x):
            kept[x.data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            value, auxiliary = model.losses(tokens[:, :-1], tokens[:, 1:], ids)
            value = value if auxiliary is None else value + auxiliary
        value.backward()
        activations = sum(x.numel() for x in kept.values() if not isinstance(x, torch.nn.Parameter))
        return [value, *(weight.grad for weight in model.parameters())], calls[0], activations

    monkeypatch.setattr(Block, "forward", counted)
    (plain, once, all_kept), (again, twice, few_kept) = trained(False), trained(True)
    assert (once, twice) == (SHAPE.n_layers, 2 * SHAPE.n_layers)
    assert few_kept < all_kept / 3
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))
    model = Transformer(SHAPE, attention)
    model.activation_checkpointing, calls[0] = True, 0
    model.nats(tokens[:, :-1], tokens[:, 1:], ids)
    assert calls[0] == SHAPE.n_layers


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that live at a time, and keeps the most."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.storages = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.storages:
                self.storages.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def gone(self, storage, size):
        self.storages.discard(storage)
        self.now -= size


def test_of_what_a_step_holds_activation_checkpointing_leaves_the_share_that_the_estimate_says():
    """Eager and in float32 it is more in all, by the same factor: the estimate is of compiled code."""
    model = Transformer(ModelShape(8, 64, 4, 2, 16, 192, vocab_size=64, max_seq_len=256), "mha")
    tokens = torch.randint(64, (4, 257), generator=torch.Generator().manual_seed(0))
    gradients = 4 * sum(weight.numel() for weight in model.parameters())
    held, estimated = [], []
    for model.activation_checkpointing in (False, True):
        with Live() as live:
            model.losses(tokens[:, :-1], tokens[:, 1:])[0].backward()
        model.zero_grad()
        held.append(live.most - gradients)
        estimated.append(estimate_memory(model, 4, 256, torch.float32).activations)
    assert held[1] / held[0] == pytest.approx(estimated[1] / estimated[0], rel=0.15)
    assert 1 < held[0] / estimated[0] < 1.7


def test_memory_counts_four_words_a_parameter_and_what_a_backward_pass_keeps(monkeypatch):
    model = Transformer(SHAPE, "mha")
    wide, half = (estimate_memory(model, 4, 48, dtype) for dtype in (torch.float32, torch.bfloat16))
    parameters = sum(p.numel() for p in model.parameters())
    assert wide.weights + wide.gradients + wide.optimizer == 16 * parameters
    tokens, logits, head = 4 * 48, 4 * 48 * 64, 64 * 32
    # Two inputs in float32; norms, queries and keys twice, values, attention's output and the feed-forward in either.
    inputs, products = 2 * 32, 2 * 32 + 2 * (4 + 2) * 8 + (2 + 4) * 8 + 3 * 96
    assert wide.activations == tokens * (2 * 4 * (inputs + products) + 4 * 32) + 8 * (logits + head)
    assert half.activations == tokens * (2 * (4 * inputs + 2 * products) + 2 * 32) + 6 * (logits + head)
    model.activation_checkpointing = True
    # A layer's own input is kept of each of the two, and all of one.
    saved = wide.activations - estimate_memory(model, 4, 48, torch.float32).activations
    assert saved == tokens * 4 * (inputs + products - 2 * 32)
    model.activation_checkpointing = False
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 48 * 64 * 4)
    assert wide.activations - estimate_memory(model, 4, 48, torch.float32).activations == 8 * logits * 3 // 4
    # Gradients of a single micro-batch come as its activations go.
    alone = estimate_memory(model, 1, 1, torch.float32, accumulates=False)
    assert alone.gradients + alone.activations == 4 * parameters
    assert estimate_memory(model, 4, 48, torch.float32, accumulates=False).gradients == 0
