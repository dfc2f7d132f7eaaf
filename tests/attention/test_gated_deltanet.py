"""Gated DeltaNet against a literal recurrence in float64, fla-core's, and Qwen3-Next's layer in transformers."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next

from dma_lab.attention import build_attention
from dma_lab.attention.contract import Case, causality, documents
from dma_lab.attention.gated_deltanet import GatedDeltaNet
from dma_lab.kernels.delta import fla, rule
from dma_lab.kernels.delta.rule import gated_delta_rule

B, N, D, E = 2, 150, 6, 5
HEADS = {"mha": (3, 3), "gqa": (4, 2), "mqa": (3, 1)}
LENGTHS = [[1, 63, 20, 66], [60, 89, 1, 0]]  # documents that begin where a chunk does, and one around a whole chunk
IDS = torch.stack([torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)) for lengths in LENGTHS])


def inputs(H: int, K: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v, log_decay and beta; some tokens forget all, some nothing, and some write all or nothing."""
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(B, N, K, D, dtype=dtype), dim=-1) for _ in range(2))
    k[:, 30:50] = k[:, 30:31]  # what is written under one key again and again
    log_decay, beta = -0.1 * torch.rand(B, N, H, dtype=dtype), torch.rand(B, N, H, dtype=dtype)
    log_decay[:, 40], log_decay[:, 140], log_decay[:, 90:95] = -400.0, -400.0, 0.0
    beta[:, 30:45], beta[:, 100] = 1.0, 0.0
    return [q, k, torch.randn(B, N, H, E, dtype=dtype), log_decay, beta]


def literal(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, ids: Tensor | None) -> Tensor:
    """Equation 10 as it is printed, S (E, D): S (alpha (I - beta k k^T)) + beta v k^T, a token and a head at a time."""
    H, K = v.shape[2], k.shape[2]
    rows = []
    for b in range(B):
        state, outs = [torch.zeros(E, D, dtype=v.dtype)] * H, []
        for t in range(N):
            if ids is not None and t > 0 and ids[b, t] != ids[b, t - 1]:
                state = [torch.zeros(E, D, dtype=v.dtype)] * H
            for h in range(H):
                key, query = k[b, t, h * K // H], q[b, t, h * K // H]
                fades = log_decay[b, t, h].exp() * (torch.eye(D) - beta[b, t, h] * torch.outer(key, key))
                state[h] = state[h] @ fades + beta[b, t, h] * torch.outer(v[b, t, h], key)
                outs.append(state[h] @ query / D**0.5)
        rows.append(torch.stack(outs).view(N, H, E))
    return torch.stack(rows)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("ids", [None, IDS], ids=["one document", "packed"])
def test_outputs_and_gradients_are_those_of_the_literal_recurrence(heads, ids):
    given = [each.requires_grad_() for each in inputs(*heads)]
    found, expected = gated_delta_rule(*given, ids), literal(*given, ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(out, given, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_compiled_it_is_the_same_and_its_graph_does_not_grow_with_the_chunks():
    given, sizes = [each.requires_grad_() for each in inputs(4, 2)], set()

    def counted(graph, example_inputs):
        sizes.add(len(graph.graph.nodes))
        return aot_eager(graph, example_inputs)

    for tokens in (70, N):
        part = [each[:, :tokens] for each in given]
        found = torch.compile(gated_delta_rule, backend=counted, fullgraph=True, dynamic=False)(*part, IDS[:, :tokens])
        expected = gated_delta_rule(*part, IDS[:, :tokens])
        upstream = torch.randn_like(expected)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        for ours, theirs in zip(*(torch.autograd.grad(out, given, upstream) for out in (found, expected)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    assert len(sizes) == 1


def test_in_float32_it_is_flas_recurrence():
    q, k, v, log_decay, beta = inputs(3, 3, torch.float32)
    log_decay = log_decay.clamp(min=-30)  # else sums of logarithms round by more than the tolerance
    expected, _ = naive_recurrent_gated_delta_rule(q, k, v, beta, log_decay)
    torch.testing.assert_close(gated_delta_rule(q, k, v, log_decay, beta), expected, rtol=1e-5, atol=1e-5)


def test_the_layer_is_qwen3_nexts(monkeypatch):
    in_pytorch = inspect.unwrap(modeling_qwen3_next.torch_chunk_gated_delta_rule)  # else it is fla's kernels
    monkeypatch.setattr(modeling_qwen3_next, "torch_chunk_gated_delta_rule", in_pytorch)
    M, H, K, width = 24, 4, 2, 8
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        hidden_size=M, linear_num_value_heads=H, linear_num_key_heads=K, linear_key_head_dim=width,
        linear_value_head_dim=width, linear_conv_kernel_dim=4, rms_norm_eps=1e-6, hidden_act="silu",
        num_hidden_layers=1, layer_types=["linear_attention"],
    )  # fmt: skip
    theirs = modeling_qwen3_next.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        theirs.A_log.sub_(5.0)  # else states are one token's, and norms divide by what is left of a product near 0
    state, group = theirs.state_dict(), H // K
    # Theirs lie head of keys by head of keys: its q, its k, then v and the gate of the heads that it serves.
    of_heads = state["in_proj_qkvz.weight"].unflatten(0, (K, -1)).split([width, width, group * width, group * width], 1)
    beta, dt = state["in_proj_ba.weight"].unflatten(0, (K, -1)).split([group, group], 1)
    names = ("q_proj", "k_proj", "v_proj", "gate_proj", "beta_proj", "dt_proj")
    ours = build_attention("gated_deltanet", d_model=M, n_heads=H, n_kv_heads=K, head_dim=width, max_seq_len=N)
    ours.load_state_dict(
        {f"{name}.weight": part.flatten(0, 1) for name, part in zip(names, (*of_heads, beta, dt), strict=True)}
        | {"taps": state["conv1d.weight"], "o_norm.weight": state["norm.weight"]}
        | {"o_proj.weight": state["out_proj.weight"], "A_log": state["A_log"], "dt_bias": state["dt_bias"]}
    )
    x = torch.randn(2, N, M)
    upstream, results = torch.randn_like(x), []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        results.append((out, *torch.autograd.grad(out, leaf, upstream)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found / expected.std(), expected / expected.std(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check", [causality, documents], ids=lambda check: check.__name__)
def test_the_contract_holds_over_many_chunks(check, monkeypatch):
    monkeypatch.setattr(rule, "CHUNK", 8)
    check(Case("gated_deltanet"))


def build(max_seq_len: int) -> GatedDeltaNet:
    layer = build_attention("gated_deltanet", d_model=16, n_heads=4, n_kv_heads=2, head_dim=6, max_seq_len=max_seq_len)
    assert isinstance(layer, GatedDeltaNet)
    return layer


@pytest.mark.parametrize("tokens", [1, 64, 150])
def test_flops_are_those_of_a_chunks_causal_pairs_and_of_its_state(tokens):
    products = 0
    for t in range(tokens):
        before = t % 64  # tokens of its chunk
        products += 2 * (before + before + 1)  # of each head of keys: key with theirs, query with theirs and its own
        products += 4 * (2 * before + before + 1)  # of each head of values: two right sides, and values summed
        products += 4 * 3 * 6  # two reads of a state and a write
    assert build(256).flops(tokens).mixing == 2 * 6 * products


def test_the_cache_is_as_large_after_any_number_of_tokens():
    sizes = {build(10**6).cache_bytes(tokens, torch.bfloat16) for tokens in (1, 100, 10**6)}
    assert sizes == {4 * 6 * 6 * 4 + 3 * (4 + 2 + 2) * 6 * 2}


def test_a_layer_begins_without_a_convolution_and_with_the_papers_range_of_decays():
    layer, x = build(64), torch.randn(1, 20, 16)
    without = build_attention(
        "gated_deltanet", d_model=16, n_heads=4, n_kv_heads=2, head_dim=6, max_seq_len=64, convolution=1
    )
    without.load_state_dict(layer.state_dict() | {"taps": layer.taps[..., -1:]})
    assert torch.equal(layer(x), without(x))
    decay = (-layer.A_log.exp() * F.softplus(layer.dt_bias)).exp()
    torch.testing.assert_close(F.softplus(layer.dt_bias)[[0, 3]], torch.tensor([10**-2.75, 10**-1.25]))
    assert (decay.diff() < 0).all()
    assert layer.A_log.exp().tolist() == pytest.approx([2, 6, 10, 14])


def test_what_keeps_flas_kernels_away_is_a_constant_of_a_compiled_graph():
    """A GPU's choice of kernels, which imports packages: the compiler must not follow it there."""

    def chosen(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if fla._missing(9) is None else x + 2

    fla._looked_up.cache_clear()
    expected = chosen(torch.zeros(2))
    fla._looked_up.cache_clear()
    assert torch.equal(torch.compile(chosen, fullgraph=True, backend="eager")(torch.zeros(2)), expected)
