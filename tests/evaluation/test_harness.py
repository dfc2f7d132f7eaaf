"""Ours and lm-eval's own Hugging Face model answer alike: any backend, any kind of task, the exported checkpoint."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from dma_lab.evaluation.benchmarks import score_task
from dma_lab.evaluation.harness import HarnessModel
from dma_lab.evaluation.local_sets import local_benchmarks
from dma_lab.exchange import export_model
from dma_lab.messages import UserError, print_once
from dma_lab.model import ModelShape, Transformer

CONTEXT = 64
BACKENDS = {
    "Llama": ("mha", {"qk_norm": False}, "stock"),
    "Qwen3": ("mha", {}, "stock"),
    "nsa": ("nsa", {"selected_blocks": 4}, "custom"),
    "dma": ("dma", {"window": 24}, "custom"),
}


@pytest.fixture(scope="module")
def texts(run) -> list[str]:
    """Fifty texts of 5 to 60 words of the run's language, some with letters that it never saw."""
    draw = random.Random(1)
    words = run.data.load_tokenizer().decode(run.data.validation_tokens[:4000].tolist()).split()
    return [" ".join([*draw.sample(words, 5 + index), "naïve"][index % 2 :]) for index in range(50)]


@pytest.fixture(scope="module", params=BACKENDS, ids=str)
def pair(request, run, tmp_path_factory):
    """One model, twice: ours, and the exported one as lm-eval loads it."""
    attention, options, format = BACKENDS[request.param]
    shape = ModelShape(
        n_layers=2,
        d_model=32,
        n_heads=2,
        n_kv_heads=1,
        head_dim=16,
        d_ff=48,
        vocab_size=run.data.vocab_size,
        max_seq_len=CONTEXT,
    )
    model = Transformer(shape, attention, options).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(model, folder, format, data=run.data)
    with pytest.MonkeyPatch.context() as patch:
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        theirs = HFLM(str(folder), device="cpu", dtype="float32", batch_size=5, trust_remote_code=format == "custom")
    assert theirs.max_length == CONTEXT
    return adapter(run, model), theirs


def adapter(run, model, **others) -> HarnessModel:
    """Batches of 5 of the longest texts, of more of shorter ones."""
    settings = {"vocab_size": run.data.vocab_size, "max_length": CONTEXT, "batch_tokens": 5 * CONTEXT} | others
    return HarnessModel(model, run.data.load_tokenizer(), eot_id=run.data.eot_id, **settings)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def test_log_likelihoods_are_those_of_lm_evals_own_model(pair, texts):
    ours, theirs = pair
    halves = [(text[: len(text) // 2], text[len(text) // 2 :][:80]) for text in texts]
    more = [
        ("", " without any context"),
        ("ends in spaces  ", "and goes on"),
        (texts[-1] * 3, " after more than fits"),
        (texts[-1], f" {texts[1]}"),
        ("one question", " a"),
        ("one question", " b"),
        ("one question", " b c"),
        ("<|endoftext|>", "spelled, no EOT"),
    ]
    asked = requests("loglikelihood", *halves, *more)
    lengths = [len(ours.tok_encode("".join(each.args))) for each in asked]
    assert min(lengths) < CONTEXT // 2
    assert max(lengths) > 3 * CONTEXT, "some fit with room to spare and some by far not"
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in expected], rtol=0, atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert np.std([nats for nats, _ in found]) > 1


@torch.no_grad()
def test_the_greedy_answer_is_known_as_such(pair, texts):
    ours, asked = pair[0], []
    for text in texts[:6]:
        context = ours.tok_encode(text)[:20]
        tokens = list(context)
        for _ in range(3):
            tokens.append(int(ours.model(torch.tensor([tokens]))[0, -1].argmax()))
        answer = tokens[len(context) :]
        asked += [
            (None, context, answer),
            (None, context, [*answer[:2], answer[2] - 1]),
            (None, tokens[:-1], answer[2:]),
        ]
    for model in pair:
        assert [greedy for _, greedy in model._loglikelihood_tokens(asked, disable_tqdm=True)] == [
            True,
            False,
            True,
        ] * 6


def test_whole_texts_are_scored_window_by_window(pair, texts):
    ours, theirs = pair
    asked = requests("loglikelihood_rolling", *((text,) for text in (texts[0], texts[-1], " ".join(texts[:12]), "a")))
    assert len(ours.tok_encode(asked[2].args[0])) > 4 * CONTEXT
    found = ours.loglikelihood_rolling(asked)
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    # A sum over hundreds of tokens: 1e-4 in each window.
    windows = [1 + len(ours.tok_encode(each.args[0])) // CONTEXT for each in asked]
    assert (abs(np.array(found) - expected) < 1e-4 * np.array(windows)).all()


def test_whole_texts_have_no_nats_where_the_tokenizer_loses_some(pair, texts, monkeypatch, capsys):
    ours, _ = pair
    monkeypatch.setattr(ours, "loses", "accents")
    print_once.cache_clear()
    with pytest.raises(UserError, match="nats of whole texts, and this run's tokenizer loses accents"):
        ours.loglikelihood_rolling(requests("loglikelihood_rolling", (texts[0],)))
    ours.generate_until(requests("generate_until", (texts[0][:20], {"max_gen_toks": 1, "do_sample": False})))
    assert "loses accents, so it cannot write every answer to the letter" in capsys.readouterr().err


@pytest.mark.parametrize("new_tokens", [3, 40])
def test_generated_text_ends_where_lm_evals_ends(pair, texts, new_tokens):
    """3 tokens take whole passes, 40 the cache."""
    ours, theirs = pair
    free = {"max_gen_toks": new_tokens, "do_sample": False}
    contexts = [text[:60] for text in texts[:8]] + [texts[-1] * 2]
    before = theirs.generate_until(requests("generate_until", *((context, free) for context in contexts)))
    letters = re.sub("[^a-z]", "", "".join(before))  # no half of a character, which is one only until it is whole
    frequent = max(set(letters), key=letters.count)
    two = next(pair for text in before for pair in re.findall("[a-z ]{2}", text))
    stopped = {"max_gen_toks": new_tokens, "until": [frequent, "\n\n"], "temperature": 0.0}
    late = {"max_new_tokens": new_tokens, "until": two}
    asked = requests("generate_until", *((context, how) for context in contexts for how in (free, stopped, late)))
    found, expected = ours.generate_until(asked), theirs.generate_until(asked, disable_tqdm=True)
    assert found == expected
    assert len(set(found)) > 5
    assert any(len(short) < len(long) for long, short in zip(found[::3], found[1::3], strict=True)), "something stopped"


def write_sets(folder: Path, texts: list[str]) -> None:
    """A set of every kind."""
    kinds = {
        "choice": [
            {
                "query": f"Question: {text[:30]}\n",
                "choices": [text[30:41], "naïve end", "a"],
                "gold": index % 3,
                "more": 1,
            }
            for index, text in enumerate(texts[10:22])
        ],
        "plain": [{"query": text[:30], "choices": [texts[3], "b"], "gold": 1} for text in texts[20:26]],
        "schema": [
            {"context_options": [text[:25], text[3:40], text[:9]], "continuation": text[-20:], "gold": index % 3}
            for index, text in enumerate(texts[8:18])
        ],
        "cloze": [{"context": text[:-7], "continuation": text[-6:]} for text in texts[30:42]],
        "answer": [
            {"context": f"Question: {text[:20]}\nAnswer:", "answer": "a", "aliases": ["b"]} for text in texts[:5]
        ],
    }
    for name, rows in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def test_every_kind_of_task_scores_alike_question_by_question(pair, texts, tmp_path):
    ours, theirs = pair
    write_sets(tmp_path, texts)
    benchmarks = local_benchmarks(str(tmp_path), CONTEXT)
    assert [benchmark.name for benchmark in benchmarks] == ["answer", "choice", "cloze", "plain", "schema"]
    for benchmark in benchmarks:
        results = [
            evaluator.evaluate(model, {"tasks": {benchmark.name: benchmark.load()}}, bootstrap_iters=0)
            for model in (ours, theirs)
        ]
        found, expected = (result["samples"][benchmark.name] for result in results)
        for mine, other in zip(found, expected, strict=True):
            assert mine["arguments"] == other["arguments"]
            if benchmark.name == "answer":
                assert mine["resps"] == other["resps"]
                continue
            nats, as_theirs = ([resp[0][0] for resp in sample["resps"]] for sample in (mine, other))
            np.testing.assert_allclose(nats, as_theirs, rtol=0, atol=1e-4)
        scores, by_question = score_task(ours, benchmark.load())
        names = {"answer": ["exact_match"], "cloze": ["perplexity", "acc"], "schema": ["acc"]}
        for name in names.get(benchmark.name, ["acc", "acc_norm"]):
            assert scores[name] == pytest.approx(results[1]["results"][benchmark.name][f"{name},none"], rel=1e-4)
            if name != "perplexity":
                assert by_question[name].mean() == pytest.approx(scores[name])
                assert len(by_question[name]) == scores["questions"] == len(found)


def test_scores_are_what_they_say(run, tmp_path, monkeypatch):
    """Log-likelihoods of −1 per character of ``good`` and −2 of any other, so that each score is known by hand."""
    model = adapter(run, run.model())

    def answers(asked):
        return [
            (-(1.0 if "good" in answer else 2.0) * len(answer), "good" in answer)
            for _, answer in (a.args for a in asked)
        ]

    monkeypatch.setattr(model, "loglikelihood", answers)
    monkeypatch.setattr(
        model, "generate_until", lambda asked: [" The Onion! " if "vegetable" in a.args[0] else " leek" for a in asked]
    )
    rows = {
        "choice": [
            {"query": "q", "choices": ["good answer", "other one x"], "gold": 0},  # −12 and −24: right both ways
            {"query": "q", "choices": ["a very long good answer", "short"], "gold": 0},  # −24 and −12: by length alone
            {"query": "q", "choices": ["good", "no", "nil"], "gold": 2},  # −5, −6, −8: wrong
        ],
        "schema": [{"context_options": ["x", "y"], "continuation": "good", "gold": 0}],  # alike: the first one
        "cloze": [{"context": "c", "continuation": "good"}, {"context": "c", "continuation": "odd"}],  # −5 and −8
        "answer": [
            {"context": "vegetable", "answer": "shallot", "aliases": ["the onion"]},
            {"context": "other", "answer": "shallot", "aliases": []},
        ],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scores = {b.name: score_task(model, b.load())[0] for b in local_benchmarks(str(tmp_path), CONTEXT)}
    assert scores["choice"]["acc"] == pytest.approx(1 / 3)
    assert scores["choice"]["acc_norm"] == pytest.approx(2 / 3)
    assert scores["choice"]["acc_error"] == pytest.approx(np.std([1, 0, 0], ddof=1) / 3**0.5)
    assert scores["choice"]["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert scores["choice"]["questions"] == 3
    assert scores["schema"] == {"questions": 1, "acc": 1.0, "chance": 0.5}
    assert scores["cloze"]["acc"] == 0.5
    assert scores["cloze"]["perplexity"] == pytest.approx(np.exp(13 / 2))
    assert scores["answer"]["exact_match"] == 0.5


def test_what_has_no_room_is_refused(run):
    model = adapter(run, run.model())
    with pytest.raises(UserError, match=r"has an answer of \d+ tokens and the model takes suite.max_length=64"):
        model.loglikelihood(requests("loglikelihood", ("a", " b" * 200)))
    with pytest.raises(UserError, match=r"generates 64 tokens and suite.max_length=64 leaves no room"):
        model.generate_until(requests("generate_until", ("a", {"max_gen_toks": 64})))
    with pytest.raises(UserError, match="generates with num_beams"):
        model.generate_until(requests("generate_until", ("a", {"num_beams": 2})))
    with pytest.raises(UserError, match="an answer without tokens"):
        model.loglikelihood(requests("loglikelihood", ("a", "")))
