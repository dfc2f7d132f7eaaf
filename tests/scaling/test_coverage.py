"""Every interval over trainings that the report takes from laws, at its stated rate in studies of known truth."""

import contextlib
from collections import Counter, defaultdict

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.report.laws import band, vagueness
from dma_lab.scaling.difference import weigh_for_difference
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.held_out import hold_out_largest
from dma_lab.scaling.interval import percentile_interval
from dma_lab.scaling.noise_by_size import powers_elsewhere
from dma_lab.scaling.optimum import compute_multiplier, compute_optimal
from dma_lab.scaling.shared_floor import share_floor
from dma_lab.scaling.trainings import fit_trainings
from tests.scaling.studies import BACKENDS, LADDER, STUDY, STUDY_FLAT, STUDY_GPU, Design, make_study


def held_by_law(study, own, law, generator) -> dict[str, bool]:
    """Whether each interval of one backend's law holds what it is of."""
    truth, sizes = truth_of(study, own), study.design.sizes
    held = {name: low <= getattr(truth, name) <= high for name, (low, high) in law.intervals.items()}
    low, high = percentile_interval(law.samples[:, 4] / (law.samples[:, 3] + law.samples[:, 4]))
    held["exponent"] = low <= truth.beta / (truth.alpha + truth.beta) <= high
    for at, flops in budgets_of(study.design).items():
        found, right = (compute_optimal(of, flops) for of in (law, truth))
        for name in ("params", "tokens", "loss"):
            low, high = getattr(found, f"{name}_interval")
            held[f"best {name} at {at}"] = low <= getattr(right, name) <= high
    # The shaded bands of a figure.
    for place, rung in (("smallest", 0), ("middle", len(sizes) // 2), ("largest", len(sizes) - 1)):
        size, tokens = sizes[rung], study.design.tokens[rung, 1]
        low, high = band(law, size, np.array([tokens]))
        held[f"law at the {place} size"] = low[0] <= truth.predict(size, tokens) <= high[0]
    # A training to come, five times the largest size.
    size, tokens = 5 * sizes[-1], 4 * study.design.tokens[-1, -1]
    low, high = law.predicted_interval(size, tokens)
    loss = float(truth.predict(size, tokens)) + study.noise_at(own, size) * generator.normal()
    held["forecast"] = low <= loss <= high
    return held


def held_by_both(study, backend, laws) -> dict[str, bool]:
    """Likewise of what the law of ``backend`` and mha's say together."""
    ours, theirs = share_floor(laws[backend], laws[0])
    low, high = ours.intervals["E"]
    held = {"E of both": low <= truth_of(study, 0).E <= high}
    ours, theirs = weigh_for_difference(ours, theirs)
    for at, flops in budgets_of(study.design).items():
        low, high = compute_multiplier(ours, theirs, flops).interval
        right = compute_multiplier(truth_of(study, backend), truth_of(study, 0), flops).multiplier
        held[f"multiplier at {at}"] = low <= right <= high
    return held


def truth_of(study, own) -> ParametricFit:
    return ParametricFit(*study.laws[own], objective=0.0)


def budgets_of(design: Design) -> dict[str, float]:
    """FLOP: the tables show the middle of the runs', the largest, and 10 and 100 times it, the first figure all."""
    smallest, largest = design.smallest, design.largest
    within = {"the smallest": smallest, "the middle": np.sqrt(smallest * largest), "the largest": largest}
    return within | {f"{ahead} times it": ahead * largest for ahead in (10, 100)}


def is_floor_drawn(law) -> bool:
    """Whether the runs did not show E, which is then the middle of what it may be."""
    return bool(law.E == np.median(law.samples[:, 0]))


def coverage(
    studies, first=0, *, held_out=False, apart=False, **settings
) -> tuple[dict[str, float], dict[str, int], Counter]:
    """By interval: the share that holds the truth, and their number; and the refusals.

    ``apart``: laws whose E is drawn, and pairs with such a law, are counted by themselves, too.
    """
    held, refused = defaultdict(list), Counter()

    def count(values, *laws) -> None:
        for kind in ("", ", E drawn") if apart and any(map(is_floor_drawn, laws)) else ("",):
            for name, value in values.items():
                held[name + kind].append(value)

    for number in range(first, first + studies):
        study, backend, generator = make_study(number, **settings), 1 + number % 4, np.random.default_rng(number)
        elsewhere = powers_elsewhere({own: study.points(own) for own in range(len(BACKENDS))})
        laws = {}
        for own in (0, backend):
            try:
                law = fit_trainings(*study.points(own), elsewhere=elsewhere[own])
                if (vague := vagueness(law)) is not None:  # the report prints no such law
                    raise UserError(vague)
            except UserError as error:
                refused[str(error)[:40]] += 1
                continue
            laws[own] = law
            count(held_by_law(study, own, law, generator), law)
        if len(laws) == 2:
            try:
                count(held_by_both(study, backend, laws), *laws.values())
            except UserError as error:
                refused[str(error)[:40]] += 1
        if held_out and backend in laws:
            # Of laws that do go on to the largest size.
            with contextlib.suppress(UserError):  # four sizes may not suffice where five do
                found = hold_out_largest(*study.points(backend), elsewhere=elsewhere[backend])
                low, high = found.mean_error_interval
                count({"held out": low <= 0 <= high}, found.law)
    return (
        {name: float(np.mean(values)) for name, values in held.items()},
        {name: len(values) for name, values in held.items()},
        refused,
    )


def test_intervals_of_laws_hold_the_truth_at_their_rate():
    """The short form: 8 studies, 16 laws."""
    found, _, refused = coverage(8, seeds=2)
    assert not refused
    assert 0.90 <= np.mean(list(found.values())) <= 1.0, found
    assert min(found.values()) >= 0.75, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "seeds", "shared", "fall"),
    [
        (STUDY, 5, 0.9, 1),
        (LADDER, 1, 0.9, 1),
        (LADDER, 2, 0.99, 1),
        (LADDER, 3, 0.5, 1),
        (LADDER, 2, 0.9, 10),
        (LADDER, 3, 0.9, 10),
        (STUDY_GPU, (5, 5, 2), 0.9, 1),
        (STUDY_GPU, (5, 5, 2), 0.9, 3),
    ],
    ids=lambda value: value.name if isinstance(value, Design) else str(value),
)
def test_every_interval_of_laws_holds_the_truth_at_its_rate(design, seeds, shared, fall):
    """The long form: 400 studies, noise of 0.005 to 0.05 nats; one standard error of 800 intervals is 0.008.

    With one training per size five trainings tell their noise, on two or three degrees of freedom: intervals are then
    wider than they need be, of multipliers most. Where noise falls tenfold and sizes have two seeds, the band is held
    too seldom at the smallest: they leave part of the prior, which has noise alike at all sizes.
    """
    found = long_form(design=design, seeds=seeds, shared=shared, fall=fall)
    most = 0.985 if seeds == 1 else 0.97
    for name, share in found.items():
        least = 0.90 if (seeds, fall, name) == (2, 10, "law at the smallest size") else 0.93
        assert least - 0.016 <= share <= most + 0.016, (name, share)


@pytest.mark.slow
def test_they_do_where_the_runs_do_not_show_where_the_loss_would_end():
    """The long form, of laws a third of which have an E that is drawn.

    These are chosen by what their runs say, and E lies between 0 and the least loss whatever they say: their intervals
    of E and of what hangs on it hold the truth too often, others of theirs by luck a little less. Of 240 laws one
    standard error is 0.016.
    """
    found = long_form(design=STUDY_FLAT, seeds=8, noise=(0.037, 0.037), shared=0.19, apart=True)
    for name, share in found.items():
        if name.endswith("E drawn"):
            assert share >= 0.93 - 0.032, (name, share)
        else:
            assert 0.93 - 0.016 <= share <= 0.97 + 0.016, (name, share)


def long_form(**settings) -> dict[str, float]:
    """Of 400 studies, as ``coverage``, and in print."""
    found, number, refused = coverage(400, held_out=True, **settings)
    for name, share in found.items():
        print(f"{name}: {share:.3f} ± {np.sqrt(share * (1 - share) / number[name]):.3f} of {number[name]}")
    print(refused)
    return found
