"""bench.py: its records hold what was measured, on what, and the figures that need no GPU are right."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import live_share
from dma_lab.kernels import prefix_topk_expiry

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model.n_layers=1", "model.d_model=32", "model.n_heads=2", "model.n_kv_heads=1", "model.head_dim=16"]
TINY += ["model.d_ff=64", "trainer.validation_tokens=512", "trainer.log_every=2", "trainer.device=cpu"]


def bench(*arguments):
    command = [sys.executable, "bench.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_training_is_measured_for_every_backend_asked_for(tmp_path):
    corpus = tmp_path / "documents.jsonl"
    corpus.write_text("".join(f'{{"text": "{"the cat sat on the mat " * 12}{n}"}}\n' for n in range(200)))
    data = [f"data.path={corpus}", "data.validation_fraction=0.1", f"data.cache_dir={tmp_path / 'cache'}"]
    overrides = ",".join(f"'{setting}'" for setting in ["data=local", *data, "data.vocab_size=300", *TINY])
    shape = ["backends=[mha,dma]", "contexts=[32,64]", "steps=8", "tokens_per_step=256", "rung=nano"]
    result = bench("training", *shape, f"overrides=[{overrides}]", f"results_dir={tmp_path / 'results'}")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "results").iterdir()
    record = json.loads(path.read_text())
    assert record["suite"] == "training"
    assert record["packages"]["torch"] == importlib.metadata.version("torch")
    assert record["command"].startswith("python bench.py training backends=[mha,dma]")
    points = [(run["backend"], run["context"]) for run in record["runs"]]
    assert points == [("mha", 32), ("dma", 32), ("mha", 64), ("dma", 64)]
    for run in record["runs"]:
        assert list(run["loss"]) == ["2", "4", "6", "8"]
        assert 0 < run["loss"]["8"] < run["loss"]["2"]
        assert run["tokens_per_second"] > 0
        assert run["peak_memory_bytes"] > 2**20
        assert f"{run['loss']['8']:.3f}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantum"], "quantum is no benchmark"),
        (["training", "backends=[mqa]"], "attention=mqa is not known"),
        (["training", "steps=many"], "tokens"),
    ],
)
def test_what_it_cannot_measure_is_one_sentence(arguments, said):
    result = bench(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said without a GPU")
@pytest.mark.parametrize("suite", ["kernels", "decode"])
def test_kernels_are_not_timed_without_a_gpu(suite):
    result = bench(suite)
    assert result.returncode == 2
    assert "no CUDA device" in result.stderr


def test_the_floor_counts_each_live_pair_once():
    expiry = prefix_topk_expiry(torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)), 7)
    live = sum(j <= t < expiry[b, head, j] for b in range(2) for head in range(3) for t in range(50) for j in range(50))
    assert live_share(expiry) == pytest.approx(int(live) / (2 * 3 * 50 * 51 / 2))
