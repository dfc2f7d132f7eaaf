"""Exported folders, loaded by plain transformers, give the logits of the model that was exported."""

import os
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.exchange import export_model, export_run
from dma_lab.messages import print_once
from tests.exchange.models import UNTIED, assert_same_logits, distinct_tokens, make_model
from tests.report.conftest import vouch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("attention", "options", "shape", "architecture"),
    [
        ("mha", {}, {}, "Qwen3"),
        ("mha", {"rope_base": 500.0}, UNTIED | {"head_dim": 20}, "Qwen3"),
        ("mha", {"qk_norm": False, "rope_base": 500.0}, {"n_kv_heads": 4}, "Llama"),
        ("swa", {"window": 7}, {}, "Qwen3"),
        ("swa", {"window": 7, "full_every": 2}, {"n_layers": 3}, "Qwen3"),
        ("swa", {"qk_norm": False}, {"n_kv_heads": 1}, "Mistral"),
        ("mla", {}, {}, "DeepseekV2"),
        (
            "mla",
            {"kv_rank": 20, "q_rank": 28, "rope_dim": 6, "rope_base": 500.0},
            UNTIED,
            "DeepseekV2",
        ),
        ("dma", {"window": 23}, {}, "Doge"),
        ("dma", {"rope_base": 500.0}, UNTIED | {"head_dim": 20}, "Doge"),
    ],
)
def test_a_stock_architecture_gives_the_same_logits(tmp_path, attention, options, shape, architecture):
    model = make_model(attention, options, **shape)
    folder = export_model(model, tmp_path / "folder", "stock")
    assert_same_logits(folder, model, distinct_tokens())
    assert AutoModelForCausalLM.from_pretrained(folder).config.architectures == [f"{architecture}ForCausalLM"]


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "dma"])
@torch.no_grad()
def test_in_bf16_theirs_is_as_near_to_float32_as_ours(tmp_path, attention):
    """bf16 rounds single logits by far more than 1e-3, each implementation in its own way."""
    options = {"window": 64} if attention == "dma" else {}
    model, tokens = make_model(attention, options), distinct_tokens()
    folder = export_model(model, tmp_path / "folder", "stock")
    exact, ours = model(tokens), model.bfloat16()(tokens)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(tokens).logits
    assert theirs.dtype == torch.bfloat16
    assert (theirs - exact).square().mean().sqrt() < 1.3 * (ours - exact).square().mean().sqrt()


@torch.no_grad()
def test_in_bf16_the_loss_on_validation_text_is_the_same_to_a_thousandth_of_a_nat(trained_run, tmp_path):
    folder, run = export_run(trained_run, tmp_path / "folder", "stock"), open_run(trained_run)
    tokens = torch.from_numpy(run.data.validation_tokens[: 16 * 64].astype("int64")).view(16, 64)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(tokens).logits
    torch.testing.assert_close(loss(theirs), loss(run.model().bfloat16()(tokens)), rtol=0, atol=1e-3)


def test_a_run_becomes_a_folder_in_one_command(scripts, trained_run, tmp_path):
    folder = tmp_path / "deep" / "folder"
    done = scripts.run("export.py", [f"checkpoint={trained_run}", f"to={folder}"])
    assert (done.returncode, done.stdout) == (0, f"export: {folder}\n"), done.stderr
    run = open_run(trained_run)
    text = "def f(x):\n    return '<|endoftext|>' + x  # naïve 🦉"
    ours, theirs = run.data.load_tokenizer(), AutoTokenizer.from_pretrained(folder)
    assert theirs.encode(text) == ours.encode(text).ids
    assert theirs.decode(theirs.encode(text)) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (run.data.eot_id,) * 2
    assert_same_logits(folder, run.model(), torch.tensor([theirs.encode(text)]))
    config = AutoConfig.from_pretrained(folder)
    assert (config.eos_token_id, config.bos_token_id) == (run.data.eot_id,) * 2
    assert list(folder.parent.iterdir()) == [folder], "what was made on the way is left behind"


def test_doge_differs_in_nothing_but_which_of_equally_scored_keys_it_keeps(tmp_path, monkeypatch, capfd):
    print_once.cache_clear()
    model = make_model("dma", {"window": 23})
    folder, tokens = export_model(model, tmp_path / "folder", "stock"), distinct_tokens() // 3
    said = capfd.readouterr().err
    assert "needs transformers 5.18 or later" in said
    assert "Past attention.window=23 tokens its logits differ from this model's where keys score the same" in said
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        difference = (theirs(tokens).logits - model(tokens)).abs().amax((0, 2))
    assert difference[:23].max() < 1e-4, "up to the window they are one"
    assert difference[23:].max() > 1e-2

    def most_recent(scores: torch.Tensor, k: int, **_: object) -> SimpleNamespace:
        order = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
        return SimpleNamespace(indices=scores.shape[-1] - 1 - order[..., :k])

    monkeypatch.setattr(torch, "topk", most_recent)
    assert_same_logits(folder, model, tokens)


def test_dma_is_exported_exactly_unless_stock_is_asked_for(tmp_path, capfd):
    """Half of the context is past the window, and every token stands there three times: many keys score the same."""
    print_once.cache_clear()
    model = make_model("dma", {})
    folder = export_model(model, tmp_path / "folder")
    said = capfd.readouterr().err
    assert "Doge keeps others than this model: modeling_dma_lab.py is exported too" in said
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).attention["window"] == 32
    tokens = distinct_tokens() // 3
    assert_same_logits(folder, model, tokens, trust_remote_code=True)
    with pytest.raises(AssertionError):  # as it would be with other keys
        assert_same_logits(export_model(model, tmp_path / "doge", "stock"), model, tokens)


@torch.no_grad()
def test_doge_does_not_look_ahead_in_any_transformers_that_the_project_takes(tmp_path):
    """Without padding, Doge before 5.18 chose keys without the causal mask."""
    requirement = next(
        Requirement(line)
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["exchange"]
    )
    assert requirement.name == "transformers"
    assert not list(requirement.specifier.filter(["5.16.1", "5.17.0", "5.17.9"]))
    assert list(requirement.specifier.filter(["5.18.0", transformers.__version__]))[-1] == transformers.__version__
    folder = export_model(make_model("dma", {"window": 23}), tmp_path / "folder", "stock")
    assert "**Use transformers 5.18 or later.**" in (folder / "README.md").read_text()
    tokens, changed = distinct_tokens(), distinct_tokens()
    changed[:, -1] = (changed[:, -1] + 7) % 128
    for attention in ("sdpa", "eager"):
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
        torch.testing.assert_close(theirs(changed).logits[:, :-1], theirs(tokens).logits[:, :-1], rtol=0, atol=1e-6)


def test_what_is_exported_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        folder = export_model(make_model("dma", {}), tmp_path / "folder")
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == dict.fromkeys(
        ("README.md", "config.json", "model.safetensors", "modeling_dma_lab.py"), "0o640"
    )


def test_a_run_on_no_text_goes_without_a_tokenizer(trained_run, tmp_path, capfd):
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.data = {"name": "mqar", "mask_documents": config.data.mask_documents}
    OmegaConf.save(config, run / "config.yaml")
    vouch(run)
    folder = export_run(run, tmp_path / "folder")
    assert "was trained on no text: no tokenizer is exported" in capfd.readouterr().err
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same_logits(folder, open_run(run).model(), distinct_tokens())
