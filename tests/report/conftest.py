"""Run directories as train.py writes them, made in a moment: their losses follow a law that a test can work out."""

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dma_lab.report.cohorts import name_runs
from dma_lab.report.collect import Run, read_runs
from dma_lab.run_summary import Summary
from tests.made_up import summary_of, write_summary

CONF = Path(__file__).resolve().parents[2] / "conf"
RUNGS = {"nano": 150_000, "1m": 1_100_000, "3m": 3_200_000}
OFFSETS = {"mha": 0.0, "swa": 0.03, "mla": 0.01, "nsa": -0.01, "dma": -0.02}
OFFSETS |= {"dma_random": 0.04, "dma_frozen": 0.03, "hybrid": 0.015, "gated_mha": -0.05, "swa_sinks": 0.0, "moba": 0.02}
DOCUMENTS, CONTEXT = 40, 64


def attention_node(name: str) -> dict[str, Any]:
    """conf/attention/NAME.yaml and what it is made of."""
    node = yaml.safe_load((CONF / "attention" / f"{name}.yaml").read_text())
    return {key: value for base in node.pop("defaults", []) for key, value in attention_node(base).items()} | node


def law(attention: str, params: int, tokens: int) -> float:
    """Nats per token."""
    return 1.7 + OFFSETS[attention] + 40 * params**-0.3 + 60 * tokens**-0.32


def write_run(
    root: Path,
    attention: str = "mha",
    model: str = "nano",
    tokens: int = 1_000_000,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    **summary: Any,
) -> Path:
    """One run directory; ``settings`` go into config.yaml, further keywords into summary.json."""
    settings = settings or {}
    params = summary.get("params_non_embedding", RUNGS.get(model, 0))
    loss = law(attention, params, tokens)
    # All runs score the same documents.
    generator = np.random.default_rng(0)
    counts = generator.integers(20, 200, DOCUMENTS)
    # What makes a document hard is the same for all backends; each adds a little of its own.
    hardness = generator.normal(0, 0.5, DOCUMENTS)
    noise = np.random.default_rng([seed, tokens, params, *attention.encode()]).normal(0, 0.01, DOCUMENTS)
    nats = counts * (loss + hardness - np.average(hardness, weights=counts) + noise)
    loss = float(nats.sum() / counts.sum())
    flops = 6 * params * tokens
    positions = np.full(CONTEXT, counts.sum() / CONTEXT)
    own = {
        "model": model,
        "attention": attention,
        "seed": seed,
        "rung": model,
        "params_total": params + 65_536,
        "params_non_embedding": params,
        "context": CONTEXT,
        "tokens": tokens,
        "flops": flops,
        "flops_executed": flops if attention == "mha" else int(0.9 * flops),
        "val_loss": loss,
        "val_perplexity": float(np.exp(loss)),
        "val_bits_per_byte": loss / 2,
        "val_text_bits_per_byte": loss / 2.1,
    }
    values = summary_of(root, **own | summary)
    name = f"study-{model}-{attention}-s{seed}-{tokens}"
    number = sum(1 for path in root.glob("*") if path.name == name or path.name.startswith(f"{name}-"))
    if number:  # a training once more, which is no copy: it took another time
        name, values["tokens_per_second"] = f"{name}-{number}", 1234.5 + number
    rung = CONF / "model" / f"{model}.yaml"
    config = {
        "study": values["study"],
        "seed": seed,
        "match": values["match"],
        "tokens_per_parameter": 20.0,
        "tokens": None,
        "flops": None,
        "window": None,
        "output_dir": str(root),
        "model": yaml.safe_load(rung.read_text()) if rung.exists() else {"name": model, "d_model": params},
        "attention": attention_node(attention),
        "data": {"name": "local", "source": "local", "path": str(root), "cache_dir": "cache", "mask_documents": True},
        "optimizer": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "betas": [0.9, 0.95]},
        "schedule": {
            "name": "wsd",
            "warmup_fraction": 0.05,
            "warmup_steps": None,
            "decay_fraction": 0.2,
            "final_fraction": 0.0,
            "branches": None,
        },
        "trainer": {
            "context": values["context"],
            "tokens_per_step": 640,
            "validation_tokens": 4096,
            "device": "auto",
            "devices": 1,
            "log_every": 10,
            "loader_workers": 0,
        },
        "logger": {"name": "local"},
    }
    for node, changed in settings.items():
        config[node] = config[node] | changed if isinstance(changed, dict) else changed
    path = root / name
    path.mkdir(parents=True)
    values["run"] = str(path)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = [{"step": step, "tokens": step * tokens // 4, "loss": loss + 1 / step} for step in (1, 2, 3, 4)]
    lines[-1]["val_loss"] = loss
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(
        path / "validation.npz",
        document_nats=nats,
        document_tokens=counts,
        document_bytes=counts * 3,
        position_nats=positions * (loss + 1 / np.arange(1, CONTEXT + 1)),
        position_tokens=positions,
    )
    write_summary(path, {name: value for name, value in values.items() if value is not None})
    return path


def vouch(run: Path) -> None:
    """Make what now lies in ``run`` what its summary vouches for."""
    Summary.read(run, beside=()).write(run)


def mean_difference(ours: Path, theirs: Path) -> float:
    """By hand, from the two runs' files."""
    one, two = (np.load(path / "validation.npz") for path in (ours, theirs))
    return (one["document_nats"] - two["document_nats"]).sum() / one["document_tokens"].sum()


@pytest.fixture
def add_run(tmp_path: Path) -> Callable[..., Path]:
    """Adds a run under ``tmp_path / "runs"``, and returns its directory."""
    return lambda *arguments, **keywords: write_run(tmp_path / "runs", *arguments, **keywords)


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], list[Run]]:
    """``runs()``: all that were added, named as a sweep names them."""
    return lambda: name_runs(read_runs(tmp_path / "runs")[0])


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """The figures of the page under ``tmp_path / "report"``, unpacked as page.js does."""

    def read() -> dict[str, Any]:
        page = (tmp_path / "report" / "index.html").read_text()
        packed = page.split('id="figures">')[1].split("</script>")[0]
        return json.loads(gzip.decompress(base64.b64decode(packed)))

    return read


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_run
