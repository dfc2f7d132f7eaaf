"""Needles lie where they should, the text without them is the same text, and scores are what they say."""

import math
import re
import uuid

import numpy as np
import pytest
import torch
from torch import nn

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.needle import KINDS, VALUES, Haystack, NeedleTask, draw_needles
from dma_lab.evaluation.needle_scores import score_samples, value_log_probabilities
from dma_lab.messages import UserError

LENGTH = 1500


@pytest.fixture(scope="module")
def run(trained_run):
    return open_run(trained_run)


@pytest.fixture(scope="module")
def make(run):
    haystack, tokenizer = Haystack.of_validation(run.data), run.data.load_tokenizer()

    def task(kind="single", values="numbers", **options) -> NeedleTask:
        options = {"needles": 3, "samples": 4, "seed": 0, **options}
        return NeedleTask(kind, values, haystack=haystack, tokenizer=tokenizer, **options)

    return task


def needles_in(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\nOne of the special magic \w+ for (\S+) is: (\S+)\.\n", text)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_holds_its_needles_and_asks_for_the_right_ones(make, kind, values):
    task = make(kind, values)
    decode = task.tokenizer.decode
    for index in range(4):
        sample = task.sample(LENGTH, 0.5, index)
        assert len(sample.prompt) + task.new_tokens <= LENGTH
        assert len(task.sample(LENGTH, 0.0, index).prompt) == len(sample.prompt), "a length is a length at every depth"
        text = decode(sample.prompt)
        needles = needles_in(text)
        assert len(needles) == (1 if kind == "single" else 3)
        keys, held = [key for key, _ in needles], [value for _, value in needles]
        assert len(set(held)) == len(held)
        assert len(set(keys)) == (1 if kind in ("single", "multivalue") else 3)
        pattern = {"words": r"[a-z]+-[a-z]+", "numbers": r"[1-9]\d{6}", "uuids": r"[0-9a-f-]{36}"}[values]
        assert all(re.fullmatch(pattern, value) for value in held)
        if values == "uuids":
            assert {uuid.UUID(value).version for value in held} == {4}

        question = text[text.rindex("\nWhat ") :]
        asked = [needle for needle in needles if re.search(rf"\b{needle[0]}\b", question)]
        assert sample.values == [value for _, value in asked], "in the order of the text"
        assert len(asked) == (3 if kind in ("multivalue", "multiquery") else 1)
        assert decode(sample.answer) == " " + ", ".join(sample.values)
        spelled = decode([token for token, value in zip(sample.answer, sample.is_value, strict=True) if value])
        assert spelled == " " + " ".join(sample.values)
        without = text
        for key, value in needles:
            line = f"\nOne of the special magic {values} for {key} is: {value}.\n"
            assert without.count(line) == 1
            without = without.replace(line, "")
        assert decode(sample.without) == without


@pytest.mark.parametrize("depth", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_needle_lies_at_its_depth_between_lines_or_sentences(make, depth):
    task = make()
    for index in range(4):
        sample = task.sample(LENGTH, depth, index)
        before, after = task.tokenizer.decode(sample.prompt).split("\nOne of the special", 1)
        haystack = task.tokenizer.decode(sample.without)
        haystack = haystack[: haystack.rindex("\nWhat ")]
        assert len(before) / len(haystack) == pytest.approx(depth, abs=0.06)
        if 0 < depth < 1 and "." in haystack[len(before) - 50 : len(before) + 50]:
            assert before[-1] in ".\n"
        assert after


def test_needles_and_excerpts_are_the_same_at_every_depth_and_new_with_every_index_and_seed(make):
    task = make()
    shallow, deep = task.sample(LENGTH, 0.1, 0), task.sample(LENGTH, 0.9, 0)
    assert (shallow.without, shallow.answer) == (deep.without, deep.answer)
    assert shallow.prompt != deep.prompt
    assert task.sample(LENGTH, 0.1, 1).values != shallow.values
    assert task.sample(LENGTH, 0.1, 1).without != shallow.without
    assert make(seed=1).sample(LENGTH, 0.1, 0).values != shallow.values
    assert draw_needles("multikey", "words", 4, 0, 0) == draw_needles("multikey", "words", 4, 0, 0)


def test_a_haystack_has_no_separator_and_is_repeated_when_too_short(make, run):
    haystack = make().haystack
    assert not (haystack.tokens == run.data.separator_id).any()
    first = run.data.validation_tokens[1 : run.data.validation_document_starts[1]]
    np.testing.assert_array_equal(haystack.tokens[: len(first)], first)
    long = haystack.excerpt(5, 2 * len(haystack.tokens))
    np.testing.assert_array_equal(long[: len(haystack.tokens)], long[len(haystack.tokens) :])


def test_a_needle_longer_than_the_context_is_refused(make):
    task = make("multikey", "uuids")
    with pytest.raises(
        UserError, match=r"lengths holds 64, and the needles .* multikey with uuids take (\d+) tokens"
    ) as e:
        task.check_length(64)
    needed = int(re.search(r"take (\d+)", str(e.value))[1])
    task.check_length(needed)
    task.sample(needed, 0.5, 0)
    with pytest.raises(UserError):
        task.check_length(needed - 1)


def test_any_text_can_be_the_haystack_and_what_is_no_text_is_refused(run, tmp_path):
    tokenizer = run.data.load_tokenizer()
    text = tmp_path / "text.txt"
    text.write_text("Grüße aus dem Heu. " * 50, encoding="utf-8")
    assert tokenizer.decode(Haystack.of_file(text, tokenizer).tokens.tolist()) == text.read_text(encoding="utf-8")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "eins."}\n{"text": "zwei."}\n')
    assert tokenizer.decode(Haystack.of_file(lines, tokenizer).tokens.tolist()) == "eins.\n\nzwei."
    text.write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(UserError, match=r"text.txt, line 1 is not UTF-8"):
        Haystack.of_file(text, tokenizer)
    text.write_text("")
    with pytest.raises(UserError, match="has no text"):
        Haystack.of_file(text, tokenizer)
    with pytest.raises(UserError, match="is no file that can be read as text"):
        Haystack.of_file(tmp_path / "none.txt", tokenizer)


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


def test_scores_of_a_reader_whose_every_answer_is_known(make, run):
    task = make("multivalue")
    samples = [task.sample(LENGTH, 0.5, index) for index in range(4)]
    encode = lambda text: task.tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    said = [
        samples[0].answer,  # the answer, token for token
        encode(f" {samples[1].values[2]} and {samples[1].values[0]}"),  # two of three values, in words of its own
        encode(" I do not know"),
        encode("\n" + task.tokenizer.decode(samples[3].answer)),  # all values, after a line's end
    ]
    model = Recites(run.model(LENGTH).shape, {tuple(s.prompt): words for s, words in zip(samples, said, strict=True)})
    vocab_size = run.data.vocab_size
    options = {"vocab_size": vocab_size, "new_tokens": task.new_tokens}
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
    assert scores["log_probability_without"] == pytest.approx(uniform, rel=1e-5)
    assert scores["gain"] == pytest.approx(np.mean(means) - uniform, rel=1e-5)
    alone = score_samples(model, samples[:1], task.tokenizer, batch_tokens=1, **options)
    assert (alone["exact"], alone["gain_error"]) == (1, None)


def test_log_probabilities_are_those_of_a_forward_pass_a_token(make, run):
    task = make("multiquery", samples=3)
    model = run.model(max_seq_len=700).double()
    samples = [task.sample(700, depth, index) for index, depth in enumerate((0.0, 0.4, 1.0))]
    got = value_log_probabilities(model, samples, [sample.without for sample in samples])
    for sample, mean in zip(samples, got, strict=True):
        nats, text = [], list(sample.without)
        for token, value in zip(sample.answer, sample.is_value, strict=True):
            if value:
                with torch.no_grad():
                    nats.append(float(model(torch.tensor([text]))[0, -1].log_softmax(-1)[token]))
            text.append(token)
        assert mean == pytest.approx(sum(nats) / len(nats), rel=1e-5)
