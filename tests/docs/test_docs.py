"""What docs/ shows is what happens: blocks are taken out of the pages and run."""

import json
import random
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from dma_lab.train.reading import read_settings
from tests.made_up import configuration
from tests.plugins import EXAMPLE, install, look_again

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str) -> list[tuple[str, str]]:
    """Of docs/PAGE: what stands after the three backticks, and the text."""
    return re.findall(r"^```(\w[^\n]*)\n(.*?)^```$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_kernels_in_a_plain_model_are_the_definition(tmp_path: Path) -> None:
    (code,) = [text for kind, text in blocks("kernels.md") if kind == "python"]
    made: dict = {}
    exec(code, made)
    torch.manual_seed(0)
    model, x = made["TopKeys"](32, 4, 5).double(), torch.randn(2, 40, 32, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in model.qkv(x).chunk(3, dim=-1))
    score = model.score(x).transpose(1, 2)
    attended = torch.zeros_like(q)
    for t in range(40):
        best = score[..., : t + 1].topk(min(5, t + 1), dim=-1).indices  # (B, heads, kept)
        kept = torch.zeros_like(score[..., : t + 1]).scatter(-1, best, 1.0).bool()
        logits = (q[:, :, t, None] * k[:, :, : t + 1]).sum(-1) * 8**-0.5 + score[..., : t + 1]
        weights = logits.masked_fill(~kept, -torch.inf).softmax(-1)
        attended[:, :, t] = (weights[..., None] * v[:, :, : t + 1]).sum(2)
    torch.testing.assert_close(model(x), model.out(attended.transpose(1, 2).flatten(2)), rtol=1e-9, atol=1e-10)
    model(x).square().sum().backward()
    assert model.score.weight.grad.abs().sum() > 0


def test_the_tutorials_package_is_the_one_in_examples() -> None:
    shown = {
        Path(kind.partition("file=")[2]).name: text for kind, text in blocks("tutorial.md") if "file=anchored" in kind
    }
    assert shown == {file.name: file.read_text() for file in EXAMPLE.iterdir() if file.is_file()}


def _find_packages_in(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    look_again()


def test_the_tutorial_installs_what_it_runs() -> None:
    installed = {"pip", "dma-lab"}
    for line in "".join(text for kind, text in blocks("tutorial.md") if kind == "sh").splitlines():
        match shlex.split(line, comments=True):
            case ["pip", "install", *packages]:
                installed |= set(packages)
            case [command, *_]:
                assert command in installed, line


@pytest.mark.slow
def test_the_tutorial_runs_in_its_order(scripts, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 7))) for _ in range(900)]
    articles = [json.dumps({"text": " ".join(draw.choices(words, k=40))}) for _ in range(1500)]
    (tmp_path / "articles.jsonl").write_text("\n".join(articles) + "\n")
    before, said = partial(_find_packages_in, packages), []
    for kind, text in blocks("tutorial.md"):
        if "file=" in kind:
            file = tmp_path / kind.partition("file=")[2]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            continue
        assert kind == "sh"
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            match words:
                case ["pip", "install", "."]:
                    continue  # tests/test_wheel.py does
                case ["pip", "install", "./anchored", "pytest"]:
                    code = (tmp_path / "anchored" / "anchored_attention.py").read_text()
                    offers = (tmp_path / "anchored" / "pyproject.toml").read_text()
                    (offer,) = re.findall(r'^anchored = "(.*)"$', offers, flags=re.MULTILINE)
                    install(packages, "anchored-attention", f"anchored = {offer}", code)
                case ["pytest", "anchored"]:
                    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "anchored"]
                    path = {"PYTHONPATH": f"{packages}:{ROOT}", "PATH": ""}
                    ended = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
                    assert ended.returncode == 0, ended.stdout
                case ["dma-lab", command, *arguments]:
                    ended = scripts.run(f"{command}.py", arguments, folder=tmp_path, before=before)
                    assert ended.returncode == 0, f"{line}\n{ended.stderr}"
                    said.append(ended)
                case _:
                    raise AssertionError(f"nobody runs {line}")
    assert sum(one.stderr.count("finished before") for one in said) == 2
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "outputs").glob("*/summary.json")]
    assert {summary["attention"] for summary in summaries} == {"mha", "swa", "anchored"}
    assert {summary["status"] for summary in summaries} == {"finished"}
    assert "anchored" in (tmp_path / "tuned.yaml").read_text()
    assert "anchored" in (tmp_path / "report" / "report.md").read_text()


def test_what_skypilot_would_run_can_be_run(tmp_path: Path) -> None:
    task = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text(encoding="utf-8"))
    assert set(task) == {"name", "resources", "workdir", "file_mounts", "setup", "run"}, "the names that SkyPilot has"
    (target,) = re.findall(r"^make (\w+)$", task["setup"], flags=re.MULTILINE)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (mounted,) = task["file_mounts"]
    train, report = (shlex.split(line) for line in task["run"].splitlines())
    assert train[:3] == [".venv/bin/python", "train.py", "-m"]
    points = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(train[3:]), None)[0]
    read = [read_settings(configuration(point)) for point in points]
    assert {(one.model.name, one.attention.name, one.seed) for one in read} == {
        (rung, attention, seed) for rung in ("1m", "3m") for attention in ("mha", "dma") for seed in (0, 1)
    }
    assert {one.output_dir for one in read} == {mounted}
    assert all(one.data.cache_dir.startswith(f"{mounted}/") for one in read), "else the next machine tokenizes again"
    assert report[:2] == [".venv/bin/python", "report.py"]
    assert configuration(report[2:], "report").runs == mounted


def test_the_site_leads_to_every_page() -> None:
    led_to = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2])
    assert sorted(led_to) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
    apart = re.findall(r"^  ([\w-]+/)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(apart) == sorted(f"{page.parent.name}/" for page in (ROOT / "docs").glob("*/report.md"))
