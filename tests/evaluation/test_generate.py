"""Generation: what the cache gives is what the whole sequence gives, draws have the stated law, memory stays flat."""

import resource

import numpy as np
import pytest
import torch
from scipy import stats

from dma_lab.attention import registered_backends
from dma_lab.evaluation.generate import Sampling, choose, generate
from dma_lab.messages import UserError
from dma_lab.model import ModelShape, Transformer

V = 61
GREEDY = Sampling()


def random_model(attention: str, max_seq_len: int = 96, window: int | None = None) -> Transformer:
    """A model in float64 with large random parameters everywhere, so that its choices depend on what it attends to."""
    shape = ModelShape(
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=48,
        vocab_size=64,
        max_seq_len=max_seq_len,
        tie_embeddings=False,
    )
    model = Transformer(shape, attention, {"window": window} if window else None).double().eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(V, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("attention", sorted(registered_backends()))
def test_the_cache_changes_no_token_of_any_prompt_of_a_batch(attention):
    model, prompts = random_model(attention), prompts_of(1, 7, 40)
    options = {"max_new_tokens": 50, "sampling": GREEDY, "vocab_size": V}
    cached = generate(model, prompts, **options)
    assert [len(row) for row in cached] == [50, 50, 50]
    for prompt, row in zip(prompts, cached, strict=True):
        # The oracle: the whole sequence again for each token, by itself, without ``generate``.
        tokens = list(prompt)
        for _ in range(50):
            logits = model(torch.tensor([tokens]))[0, -1, :V]
            best = logits.topk(2).values
            assert best[0] - best[1] > 1e-9, "an equal pair would decide nothing"
            tokens.append(int(logits.argmax()))
        assert row == tokens[len(prompt) :]
    assert len({token for row in cached for token in row}) > 10, "a constant would show nothing"
    assert generate(model, prompts, use_cache=False, **options) == cached


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.8), (0.7, 0.3), (1e-3, 1.0)])
def test_draws_have_the_exact_probabilities(temperature, top_p):
    model = random_model("mha")
    prompt, draws = prompts_of(5)[0], 4000
    options = {"max_new_tokens": 1, "vocab_size": V, "sampling": Sampling(temperature, top_p)}
    drawn = [row[0] for row in generate(model, [prompt] * draws, **options)]

    logits = model(torch.tensor([prompt]))[0, -1, :V].detach().numpy() / temperature
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    order = sorted(range(V), key=lambda token: -probabilities[token])
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += probabilities[token]
        if total >= top_p:
            break
    exact = np.zeros(V)
    exact[kept] = probabilities[kept] / total

    counts = np.bincount(drawn, minlength=V)
    assert not counts[exact == 0].any()
    likely = exact * draws >= 5  # the rule of thumb for chi-square; what is rarer is counted together
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(exact[likely], exact[~likely].sum()) * draws
    observed, expected = observed[expected > 0], expected[expected > 0]
    if len(observed) > 1:
        assert stats.chisquare(observed, expected).pvalue > 1e-3
    else:
        assert observed[0] == draws


@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-53])
def test_a_draw_never_leaves_the_kept_tokens_at_the_edges_of_the_interval(edge):
    logits = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = torch.full((1000,), edge, dtype=torch.float64)
    chosen = choose(logits, Sampling(1.0, 0.6), uniform)
    probability = logits.softmax(-1)
    better = (probability * (probability > probability.gather(1, chosen[:, None]))).sum(-1)
    assert (better < 0.6).all()
    assert (choose(logits, Sampling(1.0, 1e-9), uniform) == logits.argmax(-1)).all()


def test_a_prompts_draws_depend_on_its_place_and_the_seed_alone():
    model, prompts = random_model("dma"), prompts_of(4, 9, 2)
    options = {"max_new_tokens": 20, "sampling": Sampling(1.0, 0.95), "vocab_size": V}
    together = generate(model, prompts, seed=3, **options)
    assert generate(model, prompts[:1], seed=3, **options) == together[:1]
    assert generate(model, prompts[1:], seed=3, first=1, **options) == together[1:]
    assert generate(model, prompts, seed=3, use_cache=False, **options) == together
    assert generate(model, prompts, seed=4, **options) != together


def test_a_sequence_ends_with_the_stop_token_and_the_others_go_on():
    model, prompts = random_model("mha"), prompts_of(3, 6)
    options = {"max_new_tokens": 30, "sampling": GREEDY, "vocab_size": V}
    free = generate(model, prompts, **options)
    stop = next(token for token in free[0] if token not in free[1])
    at = free[0].index(stop)
    assert generate(model, prompts, stop_token=stop, **options) == [free[0][:at], free[1]]


def test_filling_of_the_vocabulary_is_never_chosen():
    model, options = random_model("mha"), {"max_new_tokens": 90, "sampling": Sampling(5.0)}
    assert max(generate(model, prompts_of(3), vocab_size=64, **options)[0]) >= V, "the filling is as probable as any"
    assert max(generate(model, prompts_of(3), vocab_size=V, **options)[0]) < V


def test_what_does_not_fit_is_refused_with_the_numbers():
    model = random_model("mha", max_seq_len=32)
    options = {"sampling": GREEDY, "vocab_size": V}
    assert len(generate(model, prompts_of(30), max_new_tokens=3, **options)[0]) == 3
    with pytest.raises(UserError, match=r"prompt of 30 tokens and 4 new ones need a context of 33 .* takes 32"):
        generate(model, prompts_of(30), max_new_tokens=4, **options)
    with pytest.raises(UserError, match="temperature=-1"):
        Sampling(temperature=-1.0)
    with pytest.raises(UserError, match="top_p=0"):
        Sampling(top_p=0.0)


def cache_bytes(cache: list) -> int:
    """Bytes that the cache keeps from being freed: whole storages, so that a view of a longer tensor is seen."""
    tensors = [value for layer in cache for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.parametrize("attention", ["swa", "dma"])
def test_the_cache_of_a_window_does_not_grow(attention):
    model = random_model(attention, max_seq_len=400, window=16)
    with torch.no_grad():
        cache, held = model.new_cache(1), []
        for token in prompts_of(400)[0]:
            model.step(torch.tensor([[token]]), cache)
            held.append(cache_bytes(cache))
    assert set(held[15:]) == {model.blocks[0].attention.cache_bytes(400, torch.float64) * 2}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["swa", "dma"])
def test_memory_is_flat_over_20_000_tokens(attention):
    """At the nano rung and its windows; the process's largest memory after 2,000 tokens is its largest after all."""
    shape = ModelShape(
        n_layers=3, d_model=64, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=192, vocab_size=1024, max_seq_len=20_001
    )
    model = Transformer(shape, attention, {"window": 128}).eval()
    peak = {}

    def note(done: int, steps: int) -> None:
        peak[done] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    (row,) = generate(model, [[0]], max_new_tokens=20_000, sampling=Sampling(1.0), vocab_size=1024, on_step=note)
    assert len(row) == 20_000
    print(f"{attention}: {peak[2_000]:.1f} MiB after 2,000 tokens, {peak[20_000]:.1f} MiB after 20,000")
    # MHA's cache would grow by 18,000 x 3 layers x 2 x 32 float32 = 13.2 MiB, and its copy by as much again.
    assert peak[20_000] - peak[2_000] < 2
