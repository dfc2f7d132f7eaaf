"""bench.py: its records hold what was measured, on what, and the figures that need no GPU are right."""

import importlib
import importlib.metadata
import json
import re
from pathlib import Path

import pytest
import torch

import dma_lab.benchmarks.outcomes
from dma_lab.benchmarks.kernel_cases import live_share
from dma_lab.benchmarks.outcomes import Outcomes
from dma_lab.benchmarks.packages import differences, lifetimes_mask
from dma_lab.kernels import prefix_topk_expiry
from dma_lab.messages import UserError
from tests.made_up import TINY_MODEL, write_corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(scripts):
    return lambda *arguments: scripts.run("bench.py", list(arguments))


def bench_training(bench, tmp_path, *arguments, overrides=()):
    """With a tiny model and fewer than 8,192 tokens; returns the process, the record and its points."""
    settings = [*TINY_MODEL, *write_corpus(tmp_path, documents=25), "trainer.validation_tokens=512"]
    quoted = ",".join(f"'{setting}'" for setting in [*settings, "trainer.device=cpu", *overrides])
    result = bench("training", *arguments, "rung=nano", f"overrides=[{quoted}]", f"results_dir={tmp_path / 'results'}")
    (path,) = (tmp_path / "results").glob("*.json")
    record = json.loads(path.read_text())
    return result, record, {(run["backend"], run["context"]): run for run in record["runs"]}


def test_training_is_measured_for_every_backend_asked_for_and_a_stock_model_beside_them(bench, tmp_path):
    result, record, runs = bench_training(
        bench, tmp_path, "backends=[dma]", "stock=true", "contexts=[32,64]", "steps=8", "tokens_per_step=256"
    )
    llama = "transformers' Llama"
    said = {"dma": ("attention=dma", "interval attention (PyTorch)"), llama: (llama, "PyTorch's SDPA")}
    assert result.returncode == 0, result.stderr
    assert record["suite"] == "training"
    assert record["packages"]["torch"] == importlib.metadata.version("torch")
    assert record["command"].startswith("python bench.py training backends=[dma] stock=true")
    assert list(runs) == [("dma", 32), (llama, 32), ("dma", 64), (llama, 64)]
    for number, run in enumerate(runs.values(), 1):
        name, kernels = said[run["backend"]]
        assert f"[{number}/4] {name}, {run['context']} tokens" in result.stderr
        assert list(run["loss"]) == [str(step) for step in range(1, 9)]
        assert 0 < run["loss"]["8"] < run["loss"]["1"]
        assert (run["wrong"], run["not_finite"], run["kernels"]) == (None, 0, kernels)
        assert (run["compiled"], run["graphs"], run["graph_breaks"]) == (False, 0, 0)
        assert (run["tokens_per_step"], run["tokens_per_second"] > 0) == (256, True)
        assert run["seconds"] > 0
        assert run["peak_memory_bytes"] > 2**20
        assert f"{run['loss']['8']:.3f}" in result.stdout
        assert f"{run['params_non_embedding']:,}" in result.stdout


def test_what_goes_wrong_is_recorded_in_its_place_and_the_others_go_on(bench, tmp_path):
    # Sequences of 8,192 tokens are longer than the corpus, and at this learning rate the loss is soon infinite.
    result, _, runs = bench_training(
        bench,
        tmp_path,
        *("backends=[mha]", "contexts=[8192,32]", "steps=4", "tokens_per_step=8192"),
        overrides=["optimizer.learning_rate=1e30", "optimizer.gradient_clip=1e30"],
    )
    assert result.returncode == 1
    assert re.search(r"UserError: The corpus has [\d,]+ training tokens, fewer", runs["mha", 8192]["wrong"])
    assert re.search(r"DivergedError: .* of steps 2 to 4 was not finite", runs["mha", 32]["wrong"])
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert failed == [f"failed: attention=mha, {n:,} tokens: {runs['mha', n]['wrong']}" for n in (8192, 32)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantum"], "quantum is no benchmark"),
        (["training", "backends=[mqa]"], "attention=mqa is not known"),
        (
            ["training", "overrides=['trainer.device=cpu']"],
            "10 points of 5e+16 executed FLOP in all are hours on a CPU",
        ),
    ],
)
def test_what_it_cannot_measure_is_one_sentence(bench, arguments, said):
    result = bench(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said without a GPU")
@pytest.mark.parametrize("suite", ["kernels", "nsa", "decode", "gpu_tests"])
def test_what_needs_a_gpu_says_so_without_one(bench, suite):
    result = bench(suite)
    assert result.returncode == 2
    assert "no CUDA device" in result.stderr


@pytest.mark.parametrize(("suite", "room"), [("gpu_tests", "gpu"), ("faults", "faults")])
def test_what_runs_tests_of_the_checkout_has_none_outside_it(monkeypatch, tmp_path, suite, room):
    monkeypatch.setattr(dma_lab.benchmarks.outcomes, "_ROOT", tmp_path)
    module = importlib.import_module(f"dma_lab.benchmarks.{suite}")
    with pytest.raises(UserError, match=f"runs the tests in tests/{room}, which .* has not: clone"):
        getattr(module, f"bench_{suite}")(None)


def test_the_floor_counts_each_live_pair_once_and_the_mask_given_to_others_shows_it():
    expiry = prefix_topk_expiry(torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)), 7)
    live = [[[[j <= t < end for j, end in enumerate(ends)] for t in range(50)] for ends in K] for K in expiry.tolist()]
    assert lifetimes_mask(expiry).tolist() == live
    assert live_share(expiry) == pytest.approx(torch.tensor(live).sum().item() / (2 * 3 * 50 * 51 / 2))


def test_what_another_package_computes_is_held_against_ours():
    inputs = [torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    d_out = torch.ones(1, 2, 8, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert differences(attend, attend, inputs, d_out) == {"out": 0, "dq": 0, "dk": 0, "dv": 0}
    doubled = differences(lambda q, k, v: 2 * attend(q, k, v), attend, inputs, d_out)
    assert doubled == pytest.approx({"out": 1, "dq": 1, "dk": 1, "dv": 1})
    broken = differences(lambda q, k, v: attend(q, k, v) + (q * 0).sqrt(), attend, inputs, d_out)
    assert broken == {"out": 0, "dq": None, "dk": 0, "dv": 0}  # the square root's slope at 0 is infinite


def test_the_record_of_tests_says_how_each_ended_and_why(tmp_path, monkeypatch):
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "def test_right(request): request.node.user_properties.append(('trials', {'tried': 3, 'survived': 3}))\n"
        "def test_wrong(): assert 1 + 1 == 3\n"
        "@pytest.mark.skip(reason='not here')\n"
        "def test_left_out(): pass\n"
    )
    (tmp_path / "test_broken.py").write_text("import there_is_no_such_module\n")
    (tmp_path / "test_stopped.py").write_text("def test_stopped(): raise KeyboardInterrupt\n")
    outcomes = Outcomes()
    monkeypatch.chdir(tmp_path)
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    files = "test_three.py", "test_broken.py", "test_stopped.py"
    assert pytest.main([*options, *files], plugins=[outcomes]) == pytest.ExitCode.INTERRUPTED
    ended = {name.split("::")[-1]: test for name, test in outcomes.tests.items()}
    assert {name: test["outcome"] for name, test in ended.items()} == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_left_out": "skipped",
        "test_broken.py": "not collected",
        "test_stopped": "not finished",
    }
    assert ended["test_right"]["trials"] == {"tried": 3, "survived": 3}
    assert "there_is_no_such_module" in ended["test_broken.py"]["reason"]
    assert "assert (1 + 1) == 3" in ended["test_wrong"]["reason"]
    assert "not here" in ended["test_left_out"]["reason"]
