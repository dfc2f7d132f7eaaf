"""Bands against each drawn law, one by one; laws on a page only where the runs fix them."""

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.report.collect import read_runs
from dma_lab.report.laws import band, fit_laws
from dma_lab.scaling.noise_by_size import NO_SEEDS
from dma_lab.scaling.trainings import TrainingsFit


def test_the_band_is_the_quantiles_of_the_drawn_laws():
    generator = np.random.default_rng(0)
    samples = np.array([1.7, 40, 60, 0.3, 0.32]) * generator.uniform(0.9, 1.1, (50, 5))
    fit = TrainingsFit(1.7, 40.0, 60.0, 0.3, 0.32, objective=0.0, samples=samples)
    tokens = np.array([1e5, 1e6])
    low, high = band(fit, 1e6, tokens)
    for index, D in enumerate(tokens):
        losses = [E + A / 1e6**alpha + B / D**beta for E, A, B, alpha, beta in samples]
        assert [low[index], high[index]] == pytest.approx(np.quantile(losses, (0.025, 0.975)))


def test_an_a_too_large_for_its_product_to_be_taken_first_still_has_a_band():
    samples = np.array([[1.7, 1e308, 60, 55.0, 0.32]])
    fit = TrainingsFit(1.7, 1e308, 60.0, 55.0, 0.32, objective=0.0, samples=samples)
    low, high = band(fit, 1e6, np.array([1e6]))
    assert low == high == pytest.approx([1.7 + 60 * 1e6**-0.32])


def test_runs_that_follow_a_law_give_it_back_and_runs_that_follow_none_are_refused(add_run, tmp_path):
    noise = np.random.default_rng(3)
    for model, params in (("nano", 150_000), ("1m", 1_100_000), ("3m", 3_200_000), ("10m", 9_000_000)):
        for tokens in (500_000, 2_000_000, 8_000_000):
            loss = 1.7 + 40 * params**-0.3 + 60 * tokens**-0.32
            add_run("mha", model, tokens, val_loss=loss, params_non_embedding=params)
            add_run("dma", model, tokens, val_loss=float(noise.uniform(4, 5)), params_non_embedding=params)
    runs, _ = read_runs(tmp_path / "runs")
    laws = fit_laws(runs, lambda step: None)
    mha = laws["mha"]
    assert isinstance(mha, TrainingsFit)
    found = (mha.E, mha.A, mha.B, mha.alpha, mha.beta)
    assert found == pytest.approx((1.7, 40, 60, 0.3, 0.32), rel=1e-3)
    assert isinstance(laws["dma"], str)
    assert "these runs follow no power of numbers of tokens" in laws["dma"]


def test_each_law_is_told_what_the_other_backends_seeds_say_of_noise(add_run, tmp_path, monkeypatch):
    """mha's noise falls with size; dma's sizes have a seed each, and say nothing."""
    told = []

    def refuse(*runs, elsewhere):
        told.append(elsewhere)
        raise UserError("no law")

    monkeypatch.setattr("dma_lab.report.laws.fit_trainings", refuse)
    for params, luck in ((150_000, 0.1), (1_500_000, 0.01), (15_000_000, 0.001)):
        for seed, sign in enumerate((-1, 0, 1)):
            add_run("mha", f"{params}", seed=seed, val_loss=3 + sign * luck, params_non_embedding=params)
        add_run("dma", f"{params}", val_loss=3 + luck, params_non_embedding=params)
    assert fit_laws(read_runs(tmp_path / "runs")[0], lambda step: None) == {"mha": "no law", "dma": "no law"}
    of = dict(zip(("mha", "dma"), told, strict=True))
    assert (of["mha"].mean, of["mha"].deviation) == pytest.approx((NO_SEEDS.mean, NO_SEEDS.deviation), abs=5e-3)
    # Standard deviations of 1 over size.
    assert of["dma"].mean == pytest.approx(-2, abs=0.1)
