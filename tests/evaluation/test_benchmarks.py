"""suite=paper and suite=local as a user runs them: names that lm-eval knows, no network said, killed and continued."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import dma_lab.evaluation.benchmarks
from dma_lab.evaluation.benchmarks import Mean, mean_scores
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.hub_tasks import HubTasks
from dma_lab.evaluation.local_sets import local_benchmarks
from dma_lab.evaluation.settings import EvaluateSettings
from dma_lab.evaluation.suites.paper import PaperSuite
from dma_lab.messages import UserError
from dma_lab.settings import read_settings
from tests.evaluation.killed import kill_and_continue

ROOT = Path(__file__).resolve().parents[2]
QUESTION = {"query": "Question: q", "choices": ["one", "two"], "gold": 0}


def hub_tasks(run: Path, *overrides: str) -> HubTasks:
    """As suite=paper has them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        suite = read_settings(
            EvaluateSettings, compose("evaluate", ["suite=paper", "checkpoint=run", *overrides])
        ).suite
    assert isinstance(suite, PaperSuite)
    return suite.hub_tasks(open_run(run))


def write_sets(folder: Path, questions: int) -> Path:
    folder.mkdir()
    for number in range(6):
        rows = [{**QUESTION, "query": f"Question: {number}, {index}?"} for index in range(questions)]
        (folder / f"set{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_the_papers_tasks_are_known_to_lm_eval_by_these_names(trained_run):
    tasks = hub_tasks(trained_run, "suite.max_length=512")
    benchmarks = {benchmark.name: benchmark for benchmark in tasks.benchmarks()}
    assert len(benchmarks) == 57 + 8 + 16 + 13, "MMLU's subjects, eight single ones, LongBench in English, RULER"
    assert all(benchmark.identity["version"] is not None for benchmark in benchmarks.values())
    assert benchmarks["arc_easy"].max_length == 512
    assert benchmarks["niah_single_1"].max_length == benchmarks["ruler_vt"].max_length == 4096
    means = {mean.name: mean for mean in tasks.means()}
    assert {name: len(mean.members) for name, mean in means.items()} == {"mmlu": 57, "ruler": 13}
    assert means["mmlu"].by_questions
    assert not means["ruler"].by_questions


def test_a_name_that_lm_eval_does_not_know_is_refused(trained_run, monkeypatch):
    known = hub_tasks(trained_run)._manager
    monkeypatch.setattr("dma_lab.evaluation.hub_tasks.TaskManager", lambda **_: known)  # all of them take half a minute
    with pytest.raises(UserError, match=r"suite.tasks holds hellaswug, .*did you mean hellaswag"):
        hub_tasks(trained_run, "suite.tasks=[hellaswug]")


def test_without_a_network_the_tasks_that_need_it_are_named(run_copy, monkeypatch):
    command = [sys.executable, "evaluate.py", "suite=paper", f"checkpoint={run_copy}", "device=cpu"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = subprocess.run(
        [*command, "suite.tasks=[mmlu,piqa,ruler]"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2
    (said,) = (line for line in result.stderr.splitlines() if not line.startswith("dma_lab: "))  # how far it is
    assert said.startswith("error: suite.tasks=mmlu,piqa,ruler needs the Hugging Face hub, which cannot be")
    assert "(HF_HUB_OFFLINE is set)" in result.stderr
    assert "suite=local" in result.stderr


def test_local_scores_lie_in_the_run_by_question_too_and_a_killed_evaluation_goes_on(scripts, run_copy, tmp_path):
    sets = write_sets(tmp_path / "sets", 60)
    file = run_copy / "evaluation" / "local.json"
    command = ["suite=local", f"checkpoint={run_copy}", f"suite.path={sets}", "device=cpu"]
    kept, done = kill_and_continue(scripts, command, file, 6, "acc")
    cells = json.loads(file.read_text())["cells"]
    assert [entry["cell"]["task"] for entry in cells] == [f"set{number}" for number in range(6)]
    assert cells[0] == kept[0]
    assert "1234" in done.stdout
    scores = cells[-1]["scores"]
    with np.load(file.parent / scores["by_question"]) as by_question:
        assert by_question["acc"].mean() == pytest.approx(scores["acc"])
        assert by_question["acc"].shape == (60,)
    assert (scores["questions"], scores["chance"]) == (60, 0.5)


def test_scores_of_another_version_of_lm_eval_are_no_scores_of_this_one(run_suite, run_copy, tmp_path, monkeypatch):
    path = f"suite.path={write_sets(tmp_path / 'sets', 3)}"
    monkeypatch.setattr(dma_lab.evaluation.benchmarks, "version", lambda package: f"{package} of before")
    before = run_suite("local", path)
    monkeypatch.undo()
    after = run_suite("local", path)
    assert (len(before), len(after)) == (6, 12), "each version's beside the other's"
    assert after[:6] == before
    said = [{entry["cell"].pop("lm_eval") for entry in cells} for cells in (before, after[6:])]
    assert said == [{"lm_eval of before"}, {importlib.metadata.version("lm_eval")}]
    assert [entry["cell"] for entry in before] == [entry["cell"] for entry in after[6:]], "nothing else differs"
    assert len(run_suite("local", path)) == 12, "and neither is computed twice"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"query": "a", "choices": ["b", "c"], "gold": 2}', r"line 1: gold=2 of 2 options; gold counts from 0"),
        (
            b'{"query": "a", "choices": ["b"], "gold": 0}',
            "line 1: gold=0 of 1 options; gold counts from 0, and two options are the least",
        ),
        (b'{"query": "a", "choices": ["b", ""], "gold": 0}', "line 1 has an empty answer"),
        (b'{"query": "a", "choices": "bc", "gold": 0}', "line 1: choices input should be a valid list"),
        (b'{"query": "a"}', "line 1 is no question: it has query, and a question has choices"),
        (b'{"context": "a", "continuation": "b"}\n{"context": "a"}', "line 2: continuation field required"),
        (b"[1]", "line 1 is a list"),
        (b"{", "line 1 is not valid JSON"),
        (b'{"query": "gr\xfc\xdfe"}', "line 1 is not UTF-8 text"),
        (b"\n", "has no question"),
    ],
)
def test_what_is_no_question_set_is_refused(tmp_path, content, sentence):
    (tmp_path / "set.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        local_benchmarks(str(tmp_path / "set.jsonl"), 64)


@pytest.mark.parametrize(("longest", "tokens"), [("Zürich", 7 + 8), ("x" * 247, 255), ("x" * 400, 256)])
def test_an_answer_has_as_many_tokens_as_lm_evals_where_a_right_one_may(tmp_path, longest, tokens):
    """With a vocabulary of bytes 32 tokens, say, would cut off what lm-eval's 256 let end."""
    questions = [
        {"context": "a", "answer": "b", "aliases": ["c", longest]},
        {"context": "d", "answer": "e", "aliases": []},
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    (benchmark,) = local_benchmarks(str(tmp_path / "set.jsonl"), 64)
    kwargs = benchmark.load().config.generation_kwargs
    assert kwargs["max_gen_toks"] == tokens
    theirs = (Path(lm_eval.tasks.__file__).parent / "triviaqa/default.yaml").read_text()
    assert kwargs["until"] == yaml.safe_load(theirs)["generation_kwargs"]["until"]


def test_a_path_without_question_sets_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl", tmp_path / "set.txt"):
        with pytest.raises(UserError, match=r"suite.path=.* is neither a file of JSON lines"):
            local_benchmarks(str(path), 64)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "set.jsonl").write_text(json.dumps(QUESTION))
    with pytest.raises(UserError, match="two sets named set"):
        local_benchmarks([str(tmp_path / "a"), str(tmp_path / "b")], 64)


@pytest.mark.parametrize(("by_questions", "share", "acc"), [(True, 0.25, 0.35), (False, 0.5, 0.5)])
def test_a_group_is_the_mean_of_its_tasks(by_questions, share, acc):
    scores = {
        "small": {"questions": 10, "acc": 0.8, "acc_error": 0.04, "f1": 1.0, "by_question": "a.npz"},
        "large": {"questions": 30, "acc": 0.2, "acc_error": 0.092, "by_question": "b.npz"},
    }
    error = float(np.hypot(share * 0.04, (1 - share) * 0.092))
    found = mean_scores(Mean("both", ["small", "large"], by_questions), scores)
    assert found == {"questions": 40, "acc": pytest.approx(acc), "acc_error": pytest.approx(error)}
