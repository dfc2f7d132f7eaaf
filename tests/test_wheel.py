"""The wheel, in an environment that has nothing of this checkout, run from an empty folder."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.made_up import TINY, TINY_MODEL, write_corpus

ROOT = Path(__file__).resolve().parent.parent


def ended(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def ran(*command: str | Path, cwd: Path) -> str:
    process = ended(*command, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the wheels of dma_lab and of the backend in examples/; all they need is that of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in ("dma_lab", "conf", "examples"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    apart = ("--no-deps", "--no-index")
    sources = (source, source / "examples" / "anchored_attention")
    ran(*pip, "wheel", *apart, "--no-build-isolation", "--wheel-dir", folder / "dist", *sources, cwd=folder)
    ran(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    # Of a path named in a .pth file Python reads no .pth files: the link to this checkout stays behind.
    (packages / "needed.pth").write_text("\n".join([sysconfig.get_path("purelib"), *site.getsitepackages()]) + "\n")
    python = ("--python", folder / "env" / "bin" / "python")
    ran(*pip, *python, "install", *apart, *(folder / "dist").glob("*.whl"), cwd=folder)
    return folder / "env"


def test_a_sweep_of_a_backend_and_configs_of_ones_own(environment: Path, tmp_path: Path) -> None:
    own, empty = tmp_path / "own", tmp_path / "empty"
    for group, text in (
        ("attention/near", "defaults: [anchored]\nwindow: 8\n"),
        ("experiment/mine", "# @package _global_\nstudy: mine\nmodel: {name: tiny}\ntokens: 2048\n"),
    ):
        file = own / f"{group}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    empty.mkdir()
    corpus = [setting for setting in write_corpus(tmp_path) if not setting.startswith("data.cache_dir")]
    options = ["--config-dir", str(own), "experiment=mine", "attention=near,mha", *TINY, *corpus]
    said = ran(environment / "bin" / "dma-lab", "train", "-m", *options, cwd=empty)
    assert "anchored" in said
    assert {path.name for path in empty.iterdir()} == {"outputs", ".cache"}
    summaries = [json.loads(file.read_text()) for file in (empty / "outputs").glob("*/summary.json")]
    assert {summary["attention"] for summary in summaries} == {"anchored", "mha"}
    assert {(summary["study"], summary["status"]) for summary in summaries} == {("mine", "finished")}
    assert {summary["git_commit"] for summary in summaries} == {"v0.1.0"}  # so it is not this checkout that ran
    (config,) = (empty / "outputs").glob("mine-tiny-anchored-*/config.yaml")
    assert "package: anchored-attention 0.1.0\n  window: 8\n" in config.read_text()


def test_it_measures_and_of_no_commit_but_its_version(environment: Path, tmp_path: Path) -> None:
    repository = tmp_path / "somebody"
    ran("git", "init", "--quiet", repository, cwd=tmp_path)
    corpus = [setting for setting in write_corpus(tmp_path) if not setting.startswith("data.cache_dir")]
    quoted = ",".join(f"'{setting}'" for setting in (*TINY_MODEL, *corpus, "trainer.validation_tokens=512"))
    settings = (
        "backends=[dma]",
        "contexts=[32]",
        "rung=14k",
        "steps=4",
        "tokens_per_step=256",
        f"overrides=[{quoted}]",
    )
    said = ran(environment / "bin" / "dma-lab", "bench", "training", *settings, cwd=repository)
    (path,) = (repository / "benchmarks" / "results").glob("training-*.json")
    assert f"recorded in {path.relative_to(repository)}\n" in said
    record = json.loads(path.read_text())
    assert record["commit"] == "v0.1.0"
    assert record["command"].startswith("dma-lab bench training backends=[dma] contexts=[32] ")
    (run,) = record["runs"]
    assert (run["wrong"], len(run["loss"]), run["tokens_per_second"] > 0) == (None, 4, True)


def test_a_suite_that_runs_the_checkouts_tests_says_that_there_are_none(environment: Path, tmp_path: Path) -> None:
    process = ended(environment / "bin" / "dma-lab", "bench", "faults", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith(
        "error: This suite runs the tests in tests/faults, which dma_lab as it is installed"
    )
    assert process.stderr.count("\n") == 1
