"""evaluate.py as a user runs it: scores in the run's directory and in the report, mistakes said in a sentence."""

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dma_lab import threads
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.evaluate import evaluate
from dma_lab.evaluation.settings import EvaluateSettings
from dma_lab.evaluation.suite import Job, Suite, registered_suites
from dma_lab.messages import UserError
from dma_lab.model import Transformer
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.evaluations import evaluations
from tests.evaluation.needles import NEEDLE

ROOT = Path(__file__).resolve().parents[2]


def test_context_scores_lie_in_the_run_and_agree_with_training(run_suite, run_copy):
    cells = run_suite("context", "suite.lengths=[32,64,160]", "suite.stride=32")
    assert [entry["cell"]["context"] for entry in cells] == [32, 64, 160]
    starts = open_run(run_copy).data.validation_document_starts
    tokens = int(starts[starts <= 2048].max())  # whole documents
    assert {(entry["cell"]["tokens"], entry["cell"]["step"]) for entry in cells} == {(tokens, 40)}
    summary = json.loads((run_copy / "summary.json").read_text())
    for entry in cells:
        scores = entry["scores"]
        assert scores["loss"] == pytest.approx(summary["val_loss"], abs=0.2), "the same text, other contexts"
        with np.load(run_copy / "evaluation" / scores["sums"]) as sums:
            assert sums["document_nats"].sum() / tokens == pytest.approx(scores["loss"])
            assert len(sums["position_nats"]) == entry["cell"]["context"]
    (whole,) = [
        entry
        for entry in run_suite("context", "suite.lengths=[64]", "suite.stride=64")
        if entry["cell"]["stride"] == 64
    ]
    trained = np.load(run_copy / "validation.npz")["document_nats"]
    scored = np.load(run_copy / "evaluation" / whole["scores"]["sums"])["document_nats"]
    alike = int(
        (starts[1:] <= tokens // 64 * 64).sum()
    )  # the last window, which is not whole, sees more than in training
    assert 0 < alike < (trained > 0).sum()
    np.testing.assert_allclose(scored[:alike], trained[:alike], rtol=1e-5)
    assert len(run_suite("context", "suite.lengths=[32]", "suite.stride=32")) == 4, "every cell ever finished is kept"
    other_base = run_suite("context", "suite.lengths=[160]", "suite.stride=32", "suite.rope_base=40000")[-1]
    assert other_base["cell"]["rope_base"] == 40_000
    assert other_base["scores"]["loss"] != cells[2]["scores"]["loss"]


def test_texts_do_not_depend_on_the_batches_they_are_made_in(run_suite, run_copy):
    prompts = ["suite.prompts=[abc,'de fg','']", "suite.max_new_tokens=12", "suite.temperature=1.0"]
    together = [entry["scores"] for entry in run_suite("generate", *prompts)]
    (run_copy / "evaluation" / "generate.json").unlink()
    assert [entry["scores"] for entry in run_suite("generate", *prompts, "batch_tokens=1")] == together
    assert len({scores["text"] for scores in together}) == 3


def test_needles_are_scored_by_length_and_depth_and_drawn(run_suite, run_copy):
    cells = run_suite("needle", *NEEDLE, "suite.lengths=[700]", "suite.kinds=[single,multivalue]", "suite.needles=2")
    where = [(e["cell"]["kind"], e["cell"]["length"], e["cell"]["depth"]) for e in cells]
    assert where == [(k, 700, d) for k in ("single", "multivalue") for d in (0.0, 1.0)]
    for entry in cells:
        scores = entry["scores"]
        assert scores["gain"] == pytest.approx(scores["log_probability"] - scores["log_probability_control"])
    for kind in ("single", "multivalue"):
        png = (run_copy / "evaluation" / f"needle-{kind}-numbers.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert "beyond the 64 trained on" in (run_copy / "evaluation" / f"needle-{kind}-numbers.svg").read_text()


def test_the_report_shows_what_was_written(run_suite, run_copy, tmp_path):
    needles = run_suite("needle", *NEEDLE)
    contexts = run_suite("context", "suite.lengths=[32,64]")
    (tmp_path / "set.jsonl").write_text('{"query": "abc", "choices": ["de", "fg"], "gold": 0}\n' * 2)
    (score,) = (entry["scores"] for entry in run_suite("local", f"suite.path={tmp_path / 'set.jsonl'}"))
    (runs,) = cohorts(read_runs(run_copy)[0]).values()
    exact, gain, perplexity, table = evaluations(runs).blocks
    assert gain.rows == ["dma 0%", "dma 100%"]
    for column, length in enumerate((700, 900)):
        own = [entry["scores"] for entry in needles if entry["cell"]["length"] == length]
        assert [row[column] for row in exact.values] == [scores["exact"] for scores in own]
        assert [row[column] for row in gain.values] == [scores["gain"] for scores in own]
    assert perplexity.series[-1].x == [32, 64]
    assert perplexity.series[-1].y == [entry["scores"]["perplexity"] for entry in contexts]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["task"], row["score"], row["chance"]) == ("set", "acc", "0.500")
    assert row["dma"] == f"{score['acc']:.3f} ± 0.000"


def test_the_entry_point_refuses_in_one_sentence_with_status_2(run_copy, evaluate, tmp_path):
    result = evaluate("suite=needle", f"checkpoint={run_copy}", "device=cpu", "suite.lengths=[64]")
    assert result.returncode == 2
    assert result.stderr.startswith("error: suite.lengths holds 64, and the needles and question of kind single")
    assert len(result.stderr.splitlines()) == 1
    result = evaluate("suite=context", f"checkpoint={tmp_path / 'nowhere'}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "no such directory" in result.stderr


@pytest.mark.parametrize(
    ("suite", "overrides", "sentence"),
    [
        ("context", ["suite.lengths=[0]"], r"^suite.lengths.0=0: input should be greater than 0\.$"),
        ("context", ["suite.stride=65", "suite.lengths=[64]"], "suite.stride=65 is longer than the shortest context"),
        ("context", ["suite.lengths=[16777217]"], "suite.lengths.0=16777217: input should be less than or equal to"),
        ("needle", ["suite.lengths=[2147483647]"], "suite.lengths.0=2147483647: input should be less than or equal to"),
        ("needle", ["suite.depths=[nan]"], "suite.depths.0=nan: input should be a finite number"),
        ("generate", ["suite.max_new_tokens=100000000"], "suite.max_new_tokens=100000000: input should be less"),
        ("context", ["+suite.size=3"], "suite.size is no setting here"),
        ("local", [], r"^suite\.path must be given, as suite\.path=…"),
        ("needle", ["suite.kinds=[double]"], "suite.kinds.0=double: input should be 'single', 'multikey'"),
        ("needle", ["suite.depths=[1.5]"], "suite.depths.0=1.5"),
        ("needle", ["suite.haystack=nowhere.txt"], "haystack=nowhere.txt is not a file"),
        ("generate", ["suite.temperature=-1.0"], "suite.temperature=-1.0"),
        ("generate", ["suite.prompts=[]"], "suite.prompts is empty"),
        ("generate", ["suite.prompts=['a\udcffb']"], "text that is not UTF-8"),
    ],
)
def test_settings_that_cannot_be_are_refused(run_suite, suite, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        run_suite(suite, *overrides)


@pytest.mark.parametrize("setting", ["haystack", "prompts_file", "path"])
def test_a_pipe_is_refused_and_not_waited_for(run_suite, tmp_path, setting):
    os.mkfifo(tmp_path / "pipe.jsonl")
    suite = {"haystack": "needle", "prompts_file": "generate", "path": "local"}[setting]
    for place in (tmp_path / "pipe.jsonl", *([tmp_path] if suite == "local" else [])):
        with pytest.raises(UserError, match=rf"^suite\.{setting}=.* is (not a|neither a) file"):
            run_suite(suite, f"suite.{setting}={place}")


def test_small_models_score_and_generate_with_one_thread_unless_batches_are_large(
    run_suite, run_copy, three_threads, monkeypatch
):
    shared, seen = threads.SHARED_FLOPS, []
    step = Transformer.step
    monkeypatch.setattr(Transformer, "step", lambda *given: seen.append(torch.get_num_threads()) or step(*given))
    prompt = ["suite.prompts=[abc]", "suite.max_new_tokens=2"]
    run_suite("generate", *prompt, "batch_tokens=1024")
    assert torch.get_num_threads() == 1, "1,024 tokens of 35,000 parameters: 0.2 GFLOP"
    monkeypatch.setattr(threads, "SHARED_FLOPS", shared / 100)
    run_suite("generate", *prompt, "suite.seed=1", "batch_tokens=1024")
    assert torch.get_num_threads() == 3, "as though it were larger"
    assert set(seen) == {1}, "of which a step computes one token"


def test_a_suite_is_one_file_and_one_yaml():
    rooms = "dma_lab.evaluation.suites."
    suites = [suite for suite in registered_suites() if suite.__module__.startswith(rooms)]
    ours = {suite.__module__.removeprefix(rooms): suite for suite in suites}
    assert len(ours) == len(suites)
    assert set(ours) == {file.stem for file in (ROOT / "conf" / "suite").glob("*.yaml")}
    for name, suite in ours.items():
        settings = OmegaConf.load(ROOT / "conf" / "suite" / f"{name}.yaml")
        assert settings.name == name
        assert list(settings) == [field.name for field in fields(suite)]


@dataclass(frozen=True)
class LetterSuite(Suite):
    """A suite that somebody adds: how probable letters are at the beginning of a text."""

    name: str
    letters: list[str]
    rope_base: float | None = None

    def jobs(self, run, machine, record):
        def score(model, advance):
            seen.append(model.shape.max_seq_len)
            logits = model(torch.tensor([[run.data.eot_id]]))[0, 0].detach().log_softmax(-1)
            ids = [run.data.load_tokenizer().token_to_id(letter) for letter in self.letters]
            return [{"nats": float(logits[token])} for token in ids]

        seen = self.__dict__.setdefault("seen", [])
        return [Job([{"letter": letter} for letter in self.letters], 100, score)]

    def show(self, run, found, folder):
        print({cell["letter"]: scores["nats"] for cell, scores in found})


def test_a_new_suite_is_driven_kept_and_shown_as_the_others_are(run_copy, capsys):
    settings = EvaluateSettings(str(run_copy), "cpu", "fp32", 64, LetterSuite("letters", ["a", "b"]))
    cells = json.loads(evaluate(settings).read_text())["cells"]
    shown = capsys.readouterr().out
    assert [entry["cell"]["letter"] for entry in cells] == ["a", "b"]
    assert all(str(entry["scores"]["nats"]) in shown for entry in cells)
    wider = replace(settings, suite=LetterSuite("letters", ["b", "c"]))
    again = json.loads(evaluate(wider).read_text())["cells"]
    assert [entry["cell"]["letter"] for entry in again] == ["a", "b", "c"]
    assert again[:2] == cells
    evaluate(wider)
    assert (settings.suite.seen, wider.suite.seen) == ([100], [100]), "what is kept is not scored again"
