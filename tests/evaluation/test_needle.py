"""Needles lie where they should, the text without them is the same text, and scores are what they say."""

import math
import random
import re
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from dma_lab.evaluation import ruler
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.haystack import Haystack
from dma_lab.evaluation.needle import Kind, Needle, NeedleTask, ValueKind
from dma_lab.evaluation.needle_scores import begins_with_answer, score_samples, value_log_probabilities
from dma_lab.evaluation.suites.needle import _lengths
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
    return re.findall(r" One of the special magic \w+ for (\S+) is: (\S+)\.", text)


def said_of(task: NeedleTask, tokens: list[int]) -> str:
    """Without the EOT in front."""
    return task.tokenizer.decode(tokens[1:], skip_special_tokens=False)


@pytest.mark.parametrize("values", get_args(ValueKind))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_sample_holds_its_needles_and_asks_for_the_right_ones(make, run, kind, values):
    task = make(kind, values)
    for index in range(4):
        sample = task.sample(LENGTH, 0.5, index)
        assert sample.prompt[0] == sample.control[0] == run.data.eot_id
        assert len(sample.prompt) + max(128, len(sample.answer)) <= LENGTH
        assert len(task.sample(LENGTH, 0.0, index).prompt) == len(sample.prompt), "a length is a length at every depth"
        text = said_of(task, sample.prompt)
        needles = needles_in(text)
        assert len(needles) == (1 if kind == "single" else 3)
        keys, held = [key for key, _ in needles], [value for _, value in needles]
        assert len(set(held)) == len(held)
        assert len(set(keys)) == (1 if kind in ("single", "multivalue") else 3)
        pattern = {"words": r"[a-z]+-[a-z]+", "numbers": r"[1-9]\d{6}", "uuids": r"[0-9a-f-]{36}"}[values]
        assert all(re.fullmatch(pattern, value) for value in held)
        if values == "uuids":
            assert {uuid.UUID(value).version for value in held} == {4}

        named = re.search(r"\nWhat .* for (.*) mentioned in the provided text\?", text)[1]
        asked = re.findall(r"[a-z]+-[a-z]+", named)
        assert sample.values == [value for key in asked for k, value in needles if k == key]
        assert len(sample.values) == (3 if kind in ("multivalue", "multiquery") else 1)
        assert task.tokenizer.decode(sample.answer) == ": " + ", ".join(sample.values)
        spelled = task.tokenizer.decode([t for t, value in zip(sample.answer, sample.is_value, strict=True) if value])
        assert spelled == " " + " ".join(sample.values)


@pytest.mark.parametrize("values", get_args(ValueKind))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_control_differs_in_the_values_asked_for_alone_and_has_others_of_as_many_tokens(make, kind, values):
    task = make(kind, values)
    for index in range(4):
        sample = task.sample(LENGTH, 0.3, index)
        assert len(sample.control) == len(sample.prompt)
        text, control = said_of(task, sample.prompt), said_of(task, sample.control)
        for (key, value), (same_key, other) in zip(needles_in(text), needles_in(control), strict=True):
            assert same_key == key
            assert (other == value) == (value not in sample.values)
            assert value not in control or value not in sample.values
            text = text.replace(f" for {key} is: {value}.", f" for {key} is: {other}.")
        assert control == text


@pytest.mark.parametrize("depth", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_needle_lies_at_its_depth_between_lines_or_sentences(make, depth):
    task = make()
    for index in range(4):
        text = said_of(task, task.sample(LENGTH, depth, index).prompt)
        text = text[text.index("afterwards.\n") + 12 : text.rindex("\nWhat is")]
        before, after = text.split(" One of the special", 1)
        after = after[after.index(".") + 1 :]
        assert len(before) / len(before + after) == pytest.approx(depth, abs=0.06)
        assert (before + after)[:1].isspace(), "an excerpt does not begin within a word"
        assert not after or after[0].isspace(), "nor does what follows a needle"
        if 0 < depth < 1 and re.search(r"[.]\s", (before[-50:] + after[:50])):
            assert before[-1] in ".\n"


@pytest.fixture(scope="module")
def niah():
    """lm-eval's own generator of RULER's needles; the splitter of sentences that it would fetch is not needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.data.find", lambda *_: None)
        from lm_eval.tasks.ruler import niah_utils, prepare_niah
    return niah_utils, prepare_niah


@pytest.mark.parametrize(("kind", "counts"), [("single", {}), ("multikey", {"num_needle_k": 4})])
@pytest.mark.parametrize("values", get_args(ValueKind))
def test_a_prompt_with_one_answer_is_rulers_own_letter_by_letter(make, niah, monkeypatch, kind, counts, values):
    assert_same_words(make, niah, monkeypatch, kind, values, {"num_needle_k": 1, "num_needle_v": 1} | counts)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("multivalue", {"num_needle_k": 1, "num_needle_v": 4}),
        ("multivalue", {"num_needle_k": 1, "num_needle_v": 2}),
        ("multiquery", {"num_needle_k": 4, "num_needle_v": 1, "num_needle_q": 4}),
        ("multiquery", {"num_needle_k": 2, "num_needle_v": 1, "num_needle_q": 2}),
    ],
)
@pytest.mark.parametrize("values", get_args(ValueKind))
def test_a_prompt_with_several_answers_is_rulers_own_letter_by_letter(make, niah, monkeypatch, kind, counts, values):
    assert_same_words(make, niah, monkeypatch, kind, values, counts)


def assert_same_words(make, niah, monkeypatch, kind, values, counts):
    """RULER's text with RULER's needles, and ours with the same ones, hidden where RULER has them."""
    niah_utils, prepare_niah = niah
    monkeypatch.setattr(prepare_niah, "cached_sent_tokenize", lambda text: re.split(r"(?<=\.) ", text))
    before = random.getstate()
    random.seed(7)  # what RULER draws from
    essay = [f"Sentence {number} says little." for number in range(60)]
    (doc,) = prepare_niah.generate_samples(
        " ".join(essay).split(" "),
        lambda text: SimpleNamespace(input_ids=text.split()),
        max_seq_length=600,
        template=niah_utils.TEMPLATE,
        type_haystack="essay",
        type_needle_k="words",
        type_needle_v=values,
        num_samples=1,
        **counts,
    )
    random.setstate(before)
    theirs = f"{doc['input']} {doc['gen_prefix']}"  # as lm-eval joins them
    placed = needles_in(theirs)
    keys = re.findall(r"[\w-]+", doc["input"].rsplit(" for ", 1)[1].rsplit(" mentioned", 1)[0].replace(" and ", " "))
    task = make(kind, values, needles=max(2, len(placed)), samples=1)
    needles = sorted(
        (Needle(key, value, value) for key, value in placed),
        key=lambda needle: keys.index(needle.key) if needle.key in keys else len(keys),
    )
    asked = task._asked(needles)
    assert [needle.value for needle in asked] == doc["outputs"] or kind == "multivalue"
    ours = task.tokenizer.decode(task._introduction(asked))
    for piece in re.split(r"( One of the special magic .*? is: .*?\.)", theirs[len(ours) : theirs.rindex("\nWhat ")]):
        found = needles_in(piece)
        ours += task.tokenizer.decode(task._line(*found[0])) if found else piece
    ours += task.tokenizer.decode(task._question(asked))
    assert ours == theirs


def test_answers_are_as_long_and_scored_as_rulers(niah):
    from lm_eval.tasks.ruler.common_utils import process_results

    config = yaml.safe_load(
        re.sub(r"!function \S+", "x", (Path(niah[0].__file__).parent / "niah_single_1.yaml").read_text())
    )
    assert ruler.NEW_TOKENS == config["generation_kwargs"]["max_gen_toks"]
    assert config["generation_kwargs"]["until"] == []
    values = ["5812046", "quiet-River"]
    for text in ("", " 5812046", ": QUIET-RIVER\n\x00 and 5812046.", "58120460", "581204", "quiet\n-river"):
        theirs = process_results({"max_length": 4096, "outputs": values}, [text])["4096"]
        assert ruler.string_match(text, values) == theirs, text


def test_exact_wants_the_answer_first_and_nothing_that_goes_on():
    values = ["581", "20"]
    for text in (" 581, 20", ": 581, 20.", "581, 20\nand", " :\n581, 20, 7"):
        assert begins_with_answer(text, values), text
    for text in ("", "581", " 20, 581", "the 581, 20", "581, 207", "581, 20a", "581,20", "::581, 20"):
        assert not begins_with_answer(text, values), text


def test_needles_and_excerpts_are_the_same_at_every_depth_and_new_with_every_index_and_seed(make):
    task = make()

    def hay(sample) -> str:
        return re.sub(r" One of the special .*? is: .*?\.", "", said_of(task, sample.prompt))

    shallow, deep = task.sample(LENGTH, 0.1, 0), task.sample(LENGTH, 0.9, 0)
    assert (hay(shallow), shallow.answer) == (hay(deep), deep.answer)
    assert shallow.prompt != deep.prompt
    assert task.sample(LENGTH, 0.1, 1).values != shallow.values
    assert hay(task.sample(LENGTH, 0.1, 1)) != hay(shallow)
    assert make(seed=1).sample(LENGTH, 0.1, 0).values != shallow.values
    assert make("multikey", "words").needles == make("multikey", "words").needles


def test_a_haystack_has_no_eot_and_is_repeated_when_too_short(make, run):
    haystack = make().haystack
    assert not (haystack.tokens == run.data.eot_id).any()
    first = run.data.validation_tokens[1 : run.data.validation_document_starts[1]]
    np.testing.assert_array_equal(haystack.tokens[: len(first)], first)
    long = haystack.excerpt(5, 2 * len(haystack.tokens))
    np.testing.assert_array_equal(long[: len(haystack.tokens)], long[len(haystack.tokens) :])


def test_a_needle_longer_than_the_context_is_refused(make):
    task = make("multikey", "uuids")
    with pytest.raises(
        UserError, match=r"lengths holds 64, .* multikey with uuids and 128 new tokens take (\d+) tokens"
    ) as e:
        task.check_length(64)
    needed = int(re.search(r"take (\d+)", str(e.value))[1])
    task.check_length(needed)
    task.sample(needed, 0.5, 0)
    with pytest.raises(UserError):
        task.check_length(needed - 1)


def test_lengths_begin_where_needles_have_room(make, capfd):
    """By doubling from the context that the run was trained on, so that the suite's defaults do for every rung."""
    task, larger = make(), make("multiquery", "uuids")
    assert 256 < task.shortest <= 512 < larger.shortest <= 1024
    assert _lengths(SimpleNamespace(context=64), None, [task]) == [512, 1024, 2048]
    assert "the run was trained on 64: lengths begin at 512" in capfd.readouterr().err
    assert _lengths(SimpleNamespace(context=96), None, [task, larger])[0] in (768, 1536)
    assert _lengths(SimpleNamespace(context=2048), None, [task]) == [2048, 4096, 8192]
    with pytest.raises(UserError, match=r"suite\.lengths holds 64"):
        _lengths(SimpleNamespace(context=64), [1024, 64], [task])


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
    with pytest.raises(UserError, match="is not a file that can be read as text"):
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

    def new_cache(self, batch_size: int) -> list[torch.Tensor]:
        return []

    def step(self, tokens: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        cache.append(tokens)
        if len(cache) < min(map(len, self.continuations)):
            return torch.zeros(len(tokens), 1, self.shape.vocab_size)
        return self(torch.cat(cache, dim=1))[:, -1:]


def test_scores_of_a_reader_whose_every_answer_is_known(make, run):
    task = make("multivalue")
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


def test_an_answer_has_rulers_128_tokens_and_no_more(make, run):
    task = make()
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
def test_a_model_that_does_not_read_needles_gains_nothing(make, run, kind):
    """It knows the format, and the place that an answer has, which a shorter control would change."""
    task = make(kind)
    samples = [task.sample(LENGTH, depth, index) for index, depth in enumerate((0.0, 0.3, 0.7, 1.0))]
    model = Bigram(run.data.vocab_size)
    given, control = (
        value_log_probabilities(model, samples, [getattr(sample, which) for sample in samples])
        for which in ("prompt", "control")
    )
    assert given == control
    assert len(set(given)) == 4


def test_log_probabilities_are_those_of_a_forward_pass_a_token(make, run):
    task = make("multiquery", samples=3)
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
