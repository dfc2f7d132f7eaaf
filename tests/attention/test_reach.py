"""Options that change nothing, or with which nothing is dropped, are said; and what is said is so."""

import pytest
import torch

from dma_lab.attention import build_attention
from dma_lab.messages import print_once

N = 24
SHAPE = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "max_seq_len": N}
CASES = [
    {"window": N},
    {"window": 3, "sinks": N},
    {"window": 20, "sinks": 4},
    {"window": 20, "sinks": 3},
    {"window": 23},
    {"window": 3, "recent": N},
    {"window": 3, "recent": 30},
    {"window": 3, "recent": 20, "sinks": 4},
    {"window": 3, "recent": 20, "sinks": 3},
    {"window": 12, "recent": 12},  # which may be the same twelve
    {},
]
CONTROLS = {"swa": [{}], "dma": [{"scores": "frozen"}, {"scores": "random"}]}


def built(name, options, capsys):
    """The layer, as far from its start as any weights are, and what it said."""
    print_once.cache_clear()
    torch.manual_seed(0)
    attention = build_attention(name, **SHAPE, **options).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    return attention, capsys.readouterr().err


def keys_left(attention):
    """Whether what a query sees of any key before it, by the gradient of outputs in inputs, is of every key."""
    x = torch.randn(1, N, 16, dtype=torch.float64)
    heard = torch.autograd.functional.jacobian(lambda x: attention(x).sum(2)[0], x)[:, 0].abs().sum(2)
    return bool((heard.tril() > 0).sum() == N * (N + 1) // 2)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in CONTROLS for options in CASES if name == "dma" or "recent" not in options],
    ids=str,
)
def test_that_nothing_is_dropped_is_said_where_it_is_so(name, options, capsys):
    # Of frozen scores the window is the recent keys; of random ones it may be any.
    layers = [built(name, options | more, capsys) for more in CONTROLS[name]]
    for _, said in layers:
        assert (f"the whole context of {N} tokens: {name.upper()} " in said) == all(keys_left(own) for own, _ in layers)
    if len(options) == 1 or N in options.values():
        assert said.count("attention.") <= 1, "one option is enough"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "DMA drops no key and differs from MHA by its bias alone."),
        ({"scores": "frozen", "recency": "slope"}, "DMA drops no key and differs from MHA by its bias alone."),
        ({"scores": "random"}, "DMA drops no key and is then MHA."),
        ({"scores": "frozen"}, "DMA drops no key and is then MHA."),
    ],
)
def test_dma_without_a_key_dropped_is_mha_but_for_a_bias(options, said, capsys):
    attention, found = built("dma", {"window": 3, "recent": N} | options, capsys)
    assert found == f"dma_lab: attention.recent={N} reaches the whole context of {N} tokens: {said}\n"
    mha = build_attention("mha", **SHAPE).double()
    mha.load_state_dict(attention.state_dict(), strict=False)
    x = torch.randn(1, N, 16, dtype=torch.float64)
    assert torch.allclose(attention(x), mha(x), rtol=1e-9, atol=1e-9) == ("is then MHA" in said)


@pytest.mark.parametrize(("window", "reaches"), [(N, True), (N - 1, False)])
def test_nsas_window_that_reaches_everything_is_said(window, reaches, capsys):
    _, said = built("nsa", {"window": window, "selected_blocks": 3}, capsys)
    assert (
        f"attention.window={window} reaches the whole context of {N} tokens: NSA's sliding branch" in said
    ) == reaches


@pytest.mark.parametrize(
    ("scores", "unheeded"),
    [("learned", []), ("random", ["score", "score_rate", "score_scale"]), ("frozen", ["score_rate", "score_scale"])],
)
def test_options_of_learned_scores_are_said_to_change_nothing_beside_a_control(scores, unheeded, capsys):
    x = torch.randn(1, N, 16, dtype=torch.float64)
    plain, said = built("dma", {"window": 5, "scores": scores}, capsys)
    assert not said
    for option, value in {"score": "linear", "score_rate": 4.0, "score_scale": 0.5}.items():
        other, said = built("dma", {"window": 5, "scores": scores, option: value}, capsys)
        assert said == (
            f"dma_lab: attention.{option}={value} changes nothing: it is of learned scores, not {scores} ones.\n"
            if option in unheeded
            else ""
        )
        if option in unheeded:
            assert torch.equal(other(x), plain(x))
        elif scores == "learned":
            assert not torch.allclose(other(x), plain(x))
