"""MQAR examples against an independent reading of the definition, one example and one token at a time."""

import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch

from dma_lab.data import mqar
from dma_lab.data.module import MicroBatches
from dma_lab.data.mqar import RecallSettings, RecallSize, recall_sequences, recall_validation
from dma_lab.messages import UserError


def settings_of(length=64, pairs=8, vocab_size=256, **others) -> RecallSettings:
    return RecallSettings("mqar", "mqar", RecallSize(length, pairs), vocab_size, **others)


def draw(settings, first=0, count=200, seed=0):
    batch = recall_sequences(settings, seed=seed, first=first, count=count)
    assert batch["document_ids"] is None
    return batch["tokens"].tolist(), batch["targets"].tolist()


def read(tokens, targets, pairs):
    """What a reader finds in an example: the bindings in order, and where each key is asked for."""
    bindings = list(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
    asked = {tokens[position]: position for position, target in enumerate(targets) if target != -100}
    return bindings, asked


@pytest.mark.parametrize("filler", ["blank", "noise", "random"])
@pytest.mark.parametrize(
    ("length", "pairs", "vocab_size"), [(64, 8, 256), (20, 3, 16), (32, 8, 18), (4, 1, 4), (66, 1, 90), (128, 32, 8192)]
)
def test_an_example_is_what_the_definition_says(length, pairs, vocab_size, filler):
    settings = settings_of(length, pairs, vocab_size, filler=filler)
    for tokens, targets in zip(*draw(settings), strict=True):
        assert len(tokens) == len(targets) == length
        assert set(tokens) <= set(range(vocab_size))
        bindings, asked = read(tokens, targets, pairs)
        keys, values = zip(*bindings, strict=True)
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < vocab_size // 2 for key in keys)
        assert all(vocab_size // 2 <= value < vocab_size for value in values)
        # Every key is asked for once, behind the bindings, at the start of a slot; its value is the only right answer.
        assert asked.keys() == set(keys)
        assert sum(target != -100 for target in targets) == pairs
        for key, position in asked.items():
            assert position in range(2 * pairs, length, 2)
            assert targets[position] == dict(bindings)[key]


@pytest.mark.parametrize("filler", ["blank", "noise", "random"])
def test_filler_collides_with_keys_only_where_it_is_named_so(filler):
    settings = settings_of(64, 4, 32, filler=filler)
    collisions, filled = 0, np.zeros(32)
    for tokens, targets in zip(*draw(settings, count=2000), strict=True):
        bindings, asked = read(tokens, targets, 4)
        rest = [token for at, token in enumerate(tokens) if at >= 8 and at not in asked.values()]
        collisions += sum(token in dict(bindings) for token in rest)
        filled += np.bincount(rest, minlength=32)
    share = filled / filled.sum()
    if filler == "blank":
        assert share[0] == 1
    else:
        # 104,000 draws: a share of 1/32 has a standard deviation of 0.00054.
        expected = np.full(32, 1 / 32)
        if filler == "noise":  # 4 of 15 keys are barred each time, and 28 tokens share the rest
            expected = np.where((np.arange(32) >= 1) & (np.arange(32) < 16), 11 / 15 / 28, 1 / 28)
        assert np.abs(share - expected).max() < 5 * 0.00054
    assert (collisions > 0) == (filler == "random")


def sequential_draws(weights, n, draws, generator):
    """Which slot is the i-th drawn without replacement, by NumPy's own choice: (draws, n)."""
    return np.stack([generator.choice(len(weights), n, replace=False, p=weights) for _ in range(draws)])


@pytest.mark.parametrize("power", [0.01, 1.0, 3.0])
def test_queries_fall_into_slots_by_the_power_law(power):
    """The first slot drawn follows the law itself; later ones what is left, as another library's draws do."""
    pairs, count = 3, 20_000
    settings = settings_of(26, pairs, 64, power=power)
    slots = np.full((count, pairs), -1)
    for row, (tokens, targets) in enumerate(zip(*draw(settings, count=count), strict=True)):
        bindings, asked = read(tokens, targets, pairs)
        slots[row] = [(asked[key] - 2 * pairs) // 2 for key, _ in bindings]
    law = np.arange(1, 11) ** (power - 1.0)
    law /= law.sum()
    reference = sequential_draws(law, pairs, count, np.random.default_rng(1))
    for drawn in range(pairs):
        ours = np.bincount(slots[:, drawn], minlength=10)
        theirs = np.bincount(reference[:, drawn], minlength=10)
        if drawn == 0:
            chi_square = ((ours - count * law) ** 2 / (count * law)).sum()
        else:
            chi_square = ((ours - theirs) ** 2 / (ours + theirs)).sum()
        assert chi_square < 33.7, f"draw {drawn}: 33.7 is exceeded once in 10,000 with 9 degrees of freedom"


def test_keys_and_values_are_drawn_evenly_and_in_any_order():
    settings = settings_of(16, 4, 20)
    tokens = np.array(draw(settings, count=20_000)[0])
    for column in range(4):
        keys = np.bincount(tokens[:, 2 * column], minlength=20)[1:10]
        values = np.bincount(tokens[:, 2 * column + 1], minlength=20)[10:]
        for counts in (keys, values):
            expected = 20_000 / len(counts)
            assert ((counts - expected) ** 2 / expected).sum() < 33.7  # as above, with 8 and 9 degrees of freedom


def test_an_example_depends_on_seed_and_index_alone():
    settings = settings_of(64, [2, 8], 256, filler="noise")
    tokens, targets = draw(settings, first=0, count=40)
    for first, count in ((0, 1), (7, 3), (39, 1), (13, 20)):
        assert draw(settings, first, count) == (tokens[first : first + count], targets[first : first + count])
    others = draw(settings, count=40, seed=1)[0]
    assert all(ours != theirs for ours, theirs in zip(tokens, others, strict=True))
    assert len({tuple(example) for example in tokens}) == 40
    far = 10**12
    assert draw(settings, far, 2)[0][1] == draw(settings, far + 1, 1)[0][0]


def test_a_mixture_takes_numbers_of_pairs_in_turn():
    targets = draw(settings_of(64, [2, 16, 5], 256), first=4, count=30)[1]
    numbers = [sum(target != -100 for target in row) for row in targets]
    assert numbers == [[2, 16, 5][index % 3] for index in range(4, 34)]


def test_validation_is_one_fixed_stream_that_no_seed_trains_on():
    settings = settings_of(64, 8, 256, validation_pairs=[4, 8])
    whole = next(recall_validation(settings, examples=30, sequences=30))
    parts = list(recall_validation(settings, examples=30, sequences=7))
    assert [len(part["tokens"]) for part in parts] == [7, 7, 7, 7, 2]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([part[name] for part in parts]))
    assert whole["pairs"].tolist() == [4, 8] * 15
    trained = {tuple(row) for seed in range(20) for row in draw(settings, count=200, seed=seed)[0]}
    assert not trained & {tuple(row) for row in whole["tokens"].tolist()}


def test_a_gap_is_the_distance_from_a_keys_binding_to_its_query():
    batch = next(recall_validation(settings_of(64, 8, 256, filler="noise"), examples=50, sequences=50))
    for tokens, targets, gaps in zip(*(batch[name].tolist() for name in ("tokens", "targets", "gaps")), strict=True):
        for position, (target, gap) in enumerate(zip(targets, gaps, strict=True)):
            expected = position - tokens.index(tokens[position]) if target != -100 else 0
            assert gap == expected


def test_the_docstring_shows_a_real_example():
    rows = dict(re.findall(r"^    (tokens|targets) +(.*)$", mqar.__doc__, flags=re.MULTILINE))
    tokens, targets = draw(settings_of(20, 3, 16, filler="blank"), count=1)
    assert [0 if word == "." else int(word) for word in rows["tokens"].split()] == tokens[0]
    assert [-100 if word == "." else int(word) for word in rows["targets"].split()] == targets[0]


def test_workers_and_micro_batches_give_the_same_steps():
    sequences = partial(recall_sequences, settings_of(32, 4, 64), seed=3)
    assert pickle.loads(pickle.dumps(sequences)).keywords == {"seed": 3}  # it travels to a worker process
    whole = sequences(first=5 * 12, count=12)["tokens"]
    for ranks, accumulate in ((1, 1), (2, 1), (1, 3), (2, 2)):
        shares = [
            MicroBatches(
                sequences, sequences_per_step=12, accumulate=accumulate, first_step=5, rank=rank, ranks=ranks
            ).micro_batch(micro)["tokens"]
            for micro in range(accumulate)
            for rank in range(ranks)
        ]
        assert torch.equal(torch.cat(shares), whole)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pairs": 17}, "data.size.pairs=17 needs 68 tokens .* data.size.length=64: give at most 16 pairs"),
        ({"pairs": [4, 17]}, "data.size.pairs=17 needs 68 tokens"),
        ({"validation_pairs": [32]}, "data.validation_pairs=32 needs 128 tokens"),
        ({"length": 63}, "data.size.length=63 is odd"),
        ({"length": 2, "pairs": 1}, "data.size.length=2 is odd or less than 4"),
        ({"vocab_size": 255}, "data.vocab_size=255 is odd"),
        ({"vocab_size": 16}, "data.size.pairs=8 needs as many keys and .* has 7: set model.vocab_size to at least 18"),
        ({"pairs": 0}, "data.size.pairs=.0. *: give numbers of at least 1"),
        ({"pairs": []}, "data.size.pairs=.. *: give numbers of at least 1"),
        ({"pairs": [4, 4]}, "each once"),
        ({"power": 0.0}, "data.power=0.0 must be above 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused_in_a_sentence(wrong, said):
    with pytest.raises(UserError, match=said) as refusal:
        settings_of(**wrong)
    assert "\n" not in str(refusal.value)
    settings_of(32, 8, 18)  # as small as they may be


def test_the_fingerprint_follows_all_that_fixes_the_examples():
    changed = [
        settings_of(),
        settings_of(length=66),
        settings_of(pairs=4),
        settings_of(vocab_size=258),
        settings_of(power=0.5),
        settings_of(filler="noise"),
        settings_of(filler="blank"),
        settings_of(validation_pairs=[4]),
    ]
    assert len({settings.fingerprint for settings in changed}) == len(changed)
    assert settings_of().fingerprint == changed[0].fingerprint
