"""Prompts are RULER's own, letter by letter, and answers are as long and scored as RULER's."""

import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import yaml

from dma_lab.evaluation import ruler
from dma_lab.evaluation.needle import Needle, ValueKind
from tests.evaluation.needles import needles_in


@pytest.fixture(scope="module")
def niah():
    """lm-eval's own generator of RULER's needles; the splitter of sentences that it would fetch is not needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.data.find", lambda *_: None)
        from lm_eval.tasks.ruler import niah_utils, prepare_niah
    return niah_utils, prepare_niah


@pytest.mark.parametrize(("kind", "counts"), [("single", {}), ("multikey", {"num_needle_k": 4})])
@pytest.mark.parametrize("values", get_args(ValueKind))
def test_a_prompt_with_one_answer_is_rulers_own_letter_by_letter(make_task, niah, monkeypatch, kind, counts, values):
    assert_same_words(make_task, niah, monkeypatch, kind, values, {"num_needle_k": 1, "num_needle_v": 1} | counts)


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
def test_a_prompt_with_several_answers_is_rulers_own_letter_by_letter(
    make_task, niah, monkeypatch, kind, counts, values
):
    assert_same_words(make_task, niah, monkeypatch, kind, values, counts)


def assert_same_words(make_task, niah, monkeypatch, kind, values, counts):
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
    task = make_task(kind, values, needles=max(2, len(placed)), samples=1)
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
