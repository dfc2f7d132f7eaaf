"""Scores of answers are what they say: of readers whose every answer is known."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from dma_lab.data.lossy import unknown_id_of
from dma_lab.evaluation.needle import Kind
from dma_lab.evaluation.needle_scores import (
    begins_with_answer,
    given_back,
    score_samples,
    value_log_probabilities,
)
from tests import lossy
from tests.evaluation.needles import LENGTH


def test_exact_wants_the_answer_first_and_nothing_that_goes_on():
    answer = "581, 20"
    for text in (" 581, 20", ": 581, 20.", "581, 20\nand", " :\n581, 20, 7"):
        assert begins_with_answer(text, answer), text
    for text in ("", "581", " 20, 581", "the 581, 20", "581, 207", "581, 20a", "581,20", "::581, 20"):
        assert not begins_with_answer(text, answer), text


def test_an_answer_is_what_the_tokenizer_can_write_of_it(run):
    for tokenizer, text, written in (
        (lossy.bert(), "550e-8400, The CAT", "550e - 8400, the cat"),
        (lossy.bert(), "the 東", "the 東"),  # whose unknown token is no answer
        (run.data.load_tokenizer(), "550e-8400,  Thé", "550e-8400,  Thé"),
    ):
        assert given_back(tokenizer, unknown_id_of(tokenizer), text) == written


class Recites(nn.Module):
    """Gives the tokens of ``continuations[prompt]`` after each prompt a logit of 5, all others 0; 0 everywhere else."""

    def __init__(self, shape, continuations: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__()
        self.shape, self.continuations = shape, continuations
        self.embedding = nn.Embedding(1, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.shape.vocab_size)
        for row, line in enumerate(tokens.tolist()):
            for prompt, continuation in self.continuations.items():
                if tuple(line[: len(prompt)]) == prompt:
                    for offset, token in enumerate(continuation):
                        if len(prompt) - 1 + offset < len(line):
                            logits[row, len(prompt) - 1 + offset, token] = 5.0
        return logits

    def new_cache(self, batch_size: int) -> list[torch.Tensor]:
        return []

    def step(self, tokens: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        cache.append(tokens)
        if len(cache) < min(map(len, self.continuations)):
            return torch.zeros(len(tokens), 1, self.shape.vocab_size)
        return self(torch.cat(cache, dim=1))[:, -1:]


def test_scores_of_a_reader_whose_every_answer_is_known(make_task, run):
    task = make_task("multivalue")
    samples = [task.sample(LENGTH, 0.5, index) for index in range(4)]
    encode = lambda text: task.tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    ended = [run.data.eot_id]
    said = [
        samples[0].answer + ended,  # the answer, token for token
        encode(f" {samples[1].values[2]} and {samples[1].values[0]}")
        + ended,  # two of three values, in words of its own
        encode(" I do not know") + ended + encode(f" {samples[2].values[0]}"),  # no answer: the text has ended
        encode(" Well: " + task.tokenizer.decode(samples[3].answer)) + ended,  # all values, after a word
    ]
    model = Recites(run.model(LENGTH).shape, {tuple(s.prompt): words for s, words in zip(samples, said, strict=True)})
    options = {"vocab_size": run.data.vocab_size, "eot_id": run.data.eot_id}
    scores = score_samples(model, samples, task.tokenizer, batch_tokens=2 * LENGTH, **options)
    assert scores["exact"] == 1 / 4
    assert scores["substring"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert scores["substring_error"] == pytest.approx(np.std([1, 2 / 3, 0, 1], ddof=1) / 2)

    padded = model.shape.vocab_size
    known, unknown, uniform = (
        5 - math.log(math.exp(5) + padded - 1),
        -math.log(math.exp(5) + padded - 1),
        -math.log(padded),
    )
    means = []
    for sample, words in zip(samples, said, strict=True):
        nats = []
        for at, (token, value) in enumerate(zip(sample.answer, sample.is_value, strict=True)):
            if value:
                nats.append(uniform if at >= len(words) else known if words[at] == token else unknown)
        means.append(sum(nats) / len(nats))
    assert scores["log_probability"] == pytest.approx(np.mean(means), rel=1e-5)
    assert scores["log_probability_control"] == pytest.approx(uniform, rel=1e-5)
    assert scores["gain"] == pytest.approx(np.mean(means) - uniform, rel=1e-5)
    alone = score_samples(model, samples[:1], task.tokenizer, batch_tokens=1, **options)
    assert (alone["exact"], alone["gain_error"]) == (1, None)


def test_an_answer_has_rulers_128_tokens_and_no_more(make_task, run):
    task = make_task()
    sample = task.sample(LENGTH, 0.5, 0)
    (value,) = task.tokenizer.encode("~", add_special_tokens=False).ids
    spelled = task.tokenizer.encode(f" {sample.values[0]}", add_special_tokens=False).ids
    for before, found in ((128 - len(spelled), 1), (129 - len(spelled), 0)):
        model = Recites(run.model(LENGTH).shape, {tuple(sample.prompt): [value] * before + spelled})
        options = {"vocab_size": run.data.vocab_size, "eot_id": run.data.eot_id}
        assert score_samples(model, [sample], task.tokenizer, batch_tokens=1, **options)["substring"] == found


class Bigram(nn.Module):
    """Guesses from the last token, the surer the further on."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1, 1)
        self.table_vv = torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table_vv[tokens] * (1 + torch.arange(tokens.shape[1])[:, None] / 1000)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_model_that_does_not_read_needles_gains_nothing(make_task, run, kind):
    """It knows the format, and the place that an answer has, which a shorter control would change."""
    task = make_task(kind)
    samples = [task.sample(LENGTH, depth, index) for index, depth in enumerate((0.0, 0.3, 0.7, 1.0))]
    model = Bigram(run.data.vocab_size)
    given, control = (
        value_log_probabilities(model, samples, [getattr(sample, which) for sample in samples])
        for which in ("prompt", "control")
    )
    assert given == control
    assert len(set(given)) == 4


def test_log_probabilities_are_those_of_a_forward_pass_a_token(make_task, run):
    task = make_task("multiquery", samples=3)
    model = run.model(max_seq_len=700).double()
    samples = [task.sample(700, depth, index) for index, depth in enumerate((0.0, 0.4, 1.0))]
    got = value_log_probabilities(model, samples, [sample.control for sample in samples])
    for sample, mean in zip(samples, got, strict=True):
        nats, text = [], list(sample.control)
        for token, value in zip(sample.answer, sample.is_value, strict=True):
            if value:
                with torch.no_grad():
                    nats.append(float(model(torch.tensor([text]))[0, -1].log_softmax(-1)[token]))
            text.append(token)
        assert mean == pytest.approx(sum(nats) / len(nats), rel=1e-5)
