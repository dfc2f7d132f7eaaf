"""Controls are what they say: the same sparsity by chance, a window, sinks, a gate."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from dma_lab.attention import AttentionConfig, build_attention
from dma_lab.attention.chance import ChanceScores
from dma_lab.attention.controls import CONTROLS
from dma_lab.kernels import prefix_topk_expiry
from dma_lab.model import ModelShape, Transformer

M, H, K, D, N = 32, 4, 2, 8, 40
SHAPE = {"d_model": M, "n_heads": H, "n_kv_heads": K, "head_dim": D, "max_seq_len": 64}
CONF = Path(__file__).resolve().parents[2] / "conf"


def build(name, **options):
    torch.manual_seed(0)
    return build_attention(name, **SHAPE, **options).double()


def noise(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attended(layer, x, kept):
    """The definition, a query at a time; ``kept(h, t)`` lists the keys that query t of key/value head h sees."""
    q, k, v = (tensor[0] for tensor in layer.heads(x))
    out = torch.zeros(x.shape[1], H, D, dtype=x.dtype)
    for h in range(H):
        for t in range(x.shape[1]):
            keys = kept(h // (H // K), t)
            out[t, h] = (k[h // (H // K), keys] @ q[h, t] * D**-0.5).softmax(0) @ v[h // (H // K), keys]
    return out.flatten(1)


@pytest.mark.parametrize("packed", [False, True])
def test_sinks_are_seen_by_their_whole_document(packed):
    layer, x = build("swa", window=5, sinks=3), noise(1, N, M)
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor([2, 25, 13]))[None] if packed else None
    first = [0] * N if ids is None else [0] * 2 + [2] * 25 + [27] * 13

    def kept(head, t):
        return [j for j in range(first[t], t + 1) if j > t - 5 or j < first[t] + 3]

    torch.testing.assert_close(layer(x, ids)[0], layer.o_proj(attended(layer, x, kept)), rtol=1e-9, atol=1e-11)
    pairs = sum(len(kept(0, t)) for t in range(N))
    if not packed:
        assert layer.flops(N).mixing == 4 * H * D * pairs


def test_a_gate_multiplies_every_channel_of_the_heads_outputs():
    layer, x = build("mha", gate=True), noise(1, N, M)
    plain = attended(layer, x, lambda head, t: list(range(t + 1)))
    gates = 1 / (1 + torch.exp(-x[0] @ layer.gate_proj.weight.T))
    torch.testing.assert_close(layer(x)[0], layer.o_proj(gates * plain), rtol=1e-9, atol=1e-11)


def test_chance_keeps_as_many_keys_and_adds_nothing_to_logits():
    layer, x = build("dma", scores="random", window=6), noise(1, N, M)
    numbers = layer.chance(torch.arange(N)[None, None])[0].tolist()

    def kept(head, t):
        return sorted(range(t + 1), key=lambda j: (numbers[head][j], j))[-6:]

    torch.testing.assert_close(layer(x)[0], layer.o_proj(attended(layer, x, kept)), rtol=1e-9, atol=1e-11)
    assert not {name for name, _ in layer.named_parameters()} & {"A", "dt_proj.weight"}
    assert layer.flops(N).mixing == build("dma", window=6).flops(N).mixing


def test_chance_knows_place_head_layer_and_seed_and_nothing_else():
    shape = ModelShape(2, M, H, K, D, 96, 64, 64)
    models = [Transformer(shape, "dma", {"scores": "random"}, seed=seed) for seed in (0, 0, 1)]
    place = torch.arange(64)[None, None]
    first, again, other = ([block.attention.chance(place)[0] for block in model.blocks] for model in models)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
    rows = torch.cat((*first, *other))
    ranks = rows.argsort(-1).argsort(-1).double()
    assert (torch.corrcoef(ranks) - torch.eye(8, dtype=torch.float64)).abs().max() < 0.5  # 4 standard deviations
    layer, ids = models[0].blocks[0].attention, torch.repeat_interleave(torch.arange(3), torch.tensor([20, 4, 8]))[None]
    contents = [layer.scores(noise(1, K, 32, D, seed=seed).float(), ids) for seed in (1, 2)]
    assert torch.equal(*contents)
    expected = torch.cat([first[0][:, :length] for length in (20, 4, 8)], dim=-1)
    assert torch.equal(contents[0][0], expected)  # a document's keys score as they would alone
    assert "layers.0.attention.chance.stream_k" in models[0].state_dict()


def test_numbers_by_chance_are_uniform_and_independent_of_place():
    chance = ChanceScores(8)
    chance.draw(torch.Generator().manual_seed(3))
    numbers = chance(torch.arange(65_536)[None, None])[0].double()
    assert 0 <= numbers.min() < numbers.max() < 1
    counts = torch.stack([torch.histc(row, 64, 0, 1) for row in numbers])
    chi_squared = ((counts - 1024) ** 2 / 1024).sum(-1)
    assert (chi_squared < 63 + 4 * 126**0.5).all()
    centred = (numbers - 0.5) * 12**0.5
    for lag in (1, 2, 3, 64, 1024):
        assert ((centred[:, lag:] * centred[:, :-lag]).mean(-1).abs() < 5 / 256).all()
    assert (torch.corrcoef(numbers) - torch.eye(8, dtype=torch.float64)).abs().max() < 5 / 256
    # As many live as by any scores, and they are not the recent ones.
    expiry = prefix_topk_expiry(numbers[None, :, :2048].float(), 64)
    lived = (expiry - torch.arange(2048))[0, :, 64:1024].double()
    assert 64 / 4 < lived.mean() < 64 * 4
    assert (lived == 64).double().mean() < 0.05


@pytest.mark.parametrize("score", ["exp", "linear"])
def test_frozen_scores_are_those_that_dma_begins_with_and_make_a_sliding_window(score):
    x = noise(2, N, M)
    frozen, dma, swa = (
        build(name, window=6, **options)
        for name, options in (("dma", {"scores": "frozen", "score": score}), ("dma", {"score": score}), ("swa", {}))
    )
    for layer in (dma, swa):
        layer.load_state_dict(frozen.state_dict(), strict=False)
    assert torch.equal(frozen(x), dma(x))
    torch.testing.assert_close(frozen(x), swa(x), rtol=1e-9, atol=1e-11)
    frozen(x).sum().backward()
    assert {name for name, _ in frozen.named_parameters()} == {name for name, _ in swa.named_parameters()}


@pytest.mark.parametrize("control", sorted(CONTROLS))
def test_a_control_is_typed_like_a_backend_and_goes_by_its_name(control):
    backend, option, value = CONTROLS[control]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ours, plain = (compose("train", [f"attention={name}"]).attention for name in (control, backend))
    config = AttentionConfig.read(dict(ours))
    assert (config.name, config.label) == (backend, control)
    assert {name for name in ours if ours[name] != plain[name]} == {option}
    assert value is None or ours[option] == value
    assert AttentionConfig.read(dict(plain)).label == backend
    assert option in config.defining()
    assert option not in AttentionConfig.read(dict(plain)).defining()  # runs of the backend keep their names
