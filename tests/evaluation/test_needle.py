"""Needles lie where they should, and the text without them is the same text."""

import re
import uuid
from types import SimpleNamespace
from typing import get_args

import pytest

from dma_lab.evaluation.needle import Kind, ValueKind
from dma_lab.evaluation.suites.needle import _lengths
from dma_lab.messages import UserError
from tests.evaluation.needles import LENGTH, needles_in, said_of


@pytest.mark.parametrize("values", get_args(ValueKind))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_sample_holds_its_needles_and_asks_for_the_right_ones(make_task, run, kind, values):
    task = make_task(kind, values)
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
def test_a_control_differs_in_the_values_asked_for_alone_and_has_others_of_as_many_tokens(make_task, kind, values):
    task = make_task(kind, values)
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
def test_the_needle_lies_at_its_depth_between_lines_or_sentences(make_task, depth):
    task = make_task()
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


def test_needles_and_excerpts_are_the_same_at_every_depth_and_new_with_every_index_and_seed(make_task):
    task = make_task()

    def hay(sample) -> str:
        return re.sub(r" One of the special .*? is: .*?\.", "", said_of(task, sample.prompt))

    shallow, deep = task.sample(LENGTH, 0.1, 0), task.sample(LENGTH, 0.9, 0)
    assert (hay(shallow), shallow.answer) == (hay(deep), deep.answer)
    assert shallow.prompt != deep.prompt
    assert task.sample(LENGTH, 0.1, 1).values != shallow.values
    assert hay(task.sample(LENGTH, 0.1, 1)) != hay(shallow)
    assert make_task(seed=1).sample(LENGTH, 0.1, 0).values != shallow.values
    assert make_task("multikey", "words").needles == make_task("multikey", "words").needles


def test_a_needle_longer_than_the_context_is_refused(make_task):
    task = make_task("multikey", "uuids")
    with pytest.raises(
        UserError, match=r"lengths holds 64, .* multikey with uuids and 128 new tokens take (\d+) tokens"
    ) as e:
        task.check_length(64)
    needed = int(re.search(r"take (\d+)", str(e.value))[1])
    task.check_length(needed)
    task.sample(needed, 0.5, 0)
    with pytest.raises(UserError):
        task.check_length(needed - 1)


def test_lengths_begin_where_needles_have_room(make_task, capfd):
    """By doubling from the context that the run was trained on, so that the suite's defaults do for every rung."""
    task, larger = make_task(), make_task("multiquery", "uuids")
    assert 256 < task.shortest <= 512 < larger.shortest <= 1024
    assert _lengths(SimpleNamespace(context=64), None, [task]) == [512, 1024, 2048]
    assert "the run was trained on 64: lengths begin at 512" in capfd.readouterr().err
    assert _lengths(SimpleNamespace(context=96), None, [task, larger])[0] in (768, 1536)
    assert _lengths(SimpleNamespace(context=2048), None, [task]) == [2048, 4096, 8192]
    with pytest.raises(UserError, match=r"suite\.lengths holds 64"):
        _lengths(SimpleNamespace(context=64), [1024, 64], [task])
