"""What a run is given where nobody gives it a learning rate or a batch: by hand, and through the entry point."""

import pytest

from dma_lab.data.tokenizer import train_tokenizer
from dma_lab.train import recipe
from dma_lab.train.recipe import Law, recipe_learning_rate, recipe_tokens_per_step


@pytest.mark.parametrize(
    ("rung", "muon", "adamw", "sequences"),
    [
        # 3e-3 (84.9M / N)^(1/6) and ^(1/20), and 128,000 (N / 84.9M)^0.6 tokens in fours of sequences.
        ("14k", 0.0128, 0.00464, 4),
        ("nano", 0.00865, 0.00412, 12),
        ("1m", 0.00631, 0.00375, 16),
        ("30m", 0.0036, 0.00317, 32),
        # arXiv 2508.02124, table 4.
        ("80m", 3e-3, 3e-3, 64),
        ("200m", 2e-3, 2e-3, 96),
        ("680m", 1e-3, 1e-3, 192),
        ("1.7b", 1e-3, 1e-3, 512),
    ],
)
def test_a_rung_is_trained_by_the_recipe(read, rung, muon, adamw, sequences):
    by_default, asked_for = read([f"model={rung}"]), read([f"model={rung}", "optimizer=adamw"])
    assert (by_default.optimizer.name, by_default.optimizer.learning_rate) == ("muon", muon)
    assert (asked_for.optimizer.name, asked_for.optimizer.learning_rate) == ("adamw", adamw)
    assert by_default.trainer.tokens_per_step == sequences * by_default.trainer.context


def test_what_is_given_is_kept(read):
    settings = read(["model=1m", "optimizer.learning_rate=0.001", "trainer.tokens_per_step=4096"])
    assert (settings.optimizer.learning_rate, settings.trainer.tokens_per_step) == (0.001, 4096)
    recall = read(["experiment=mqar"])
    assert recall.optimizer.name == "adamw", "its rates are those of the task's authors"
    assert (recall.optimizer.learning_rate, recall.trainer.tokens_per_step) == (1e-3, 16384)


@pytest.fixture
def with_exponents(monkeypatch):
    """A law in which everything counts."""
    monkeypatch.setitem(recipe.LEARNING_RATE, "muon", Law(1e-3, -0.5, -0.25, 0.5))
    monkeypatch.setattr(recipe, "TOKENS_PER_STEP", Law(128_000, 0.5, 0.5))


def test_the_law_is_that_of_size_budget_and_batch(with_exponents):
    n = 84.9e6 / 16
    assert recipe_tokens_per_step(n, 20 * n, 2000) == 32_000
    assert recipe_tokens_per_step(n, 80 * n, 2000) == 64_000
    assert recipe_learning_rate("muon", n, 20 * n, 32_000, 2000) == pytest.approx(4e-3)
    assert recipe_learning_rate("muon", n, 16 * 20 * n, 128_000, 2000) == pytest.approx(2e-3)
    assert recipe_learning_rate("muon", n, 20 * n, 8_000, 2000) == pytest.approx(2e-3), "a quarter of its batch"


@pytest.mark.parametrize(
    ("budget", "times"),
    [
        (["tokens_per_parameter=320"], 16.0),
        (["tokens=315095040"], 16.0),  # a sixteenth of rung 1m's 984,768 parameters is worth 20 tokens each
        (["schedule.branches=[1,16,4]"], 16.0),  # by the longest, for all
        (["flops=2.3596e15"], 16.0),  # 6 (984,768 + 2,048 · 128) per token
    ],
    ids=lambda value: str(value),
)
def test_the_budget_is_the_longest_however_it_is_named(read, with_exponents, budget, times):
    batch = "trainer.tokens_per_step=16384"
    plain, longer = (read(["model=1m", batch, *more]).optimizer.learning_rate for more in ([], budget))
    # The law has D once by itself and once through the batch that it would have had.
    assert longer / plain == pytest.approx(times**-0.25 * times**-0.25, rel=0.02)


def test_a_budget_of_flop_is_counted_with_the_vocabulary_that_the_text_has(read, with_exponents, tmp_path):
    """That of a tokenizer of one's own, where the rung's says 2,048."""
    tokenizer = train_tokenizer(iter(["a few words of text " * 40]), 260)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    def recipe_of(*more):
        settings = read(["model=1m", "flops=2.3596e15", *more])
        return settings.trainer.tokens_per_step, settings.optimizer.learning_rate

    theirs = recipe_of(f"data.tokenizer={tmp_path}")
    assert theirs == recipe_of("model.vocab_size=260") == recipe_of("data.vocab_size=260")
    assert theirs != recipe_of()
    # Beyond a budget of FLOP it is of no matter, and the tokenizer need not be there.
    assert read(["model=1m", "data.tokenizer=nowhere/at-all"]) is not None
