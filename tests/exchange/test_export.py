"""Exported folders, loaded by plain transformers, give the logits of the model that was exported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.exchange import export_model
from dma_lab.model import ModelShape, Transformer

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"n_layers": 2, "d_model": 48, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 80, "vocab_size": 128}
UNTIED = {"tie_embeddings": False}


def make_model(attention: str, options: dict, **shape: object) -> Transformer:
    """A model none of whose weights is zero or one, nor its logits small, so that no mistake hides."""
    model = Transformer(ModelShape(**SHAPE | {"max_seq_len": 64} | shape), attention, options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def distinct_tokens() -> torch.Tensor:
    """(2, 64): no token twice in a row, so that no two of its keys have one score."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(SHAPE["vocab_size"], generator=generator)[:64] for _ in range(2)])


@torch.no_grad()
def assert_same_logits(folder: Path, model: Transformer, tokens: torch.Tensor, **loading: object) -> None:
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **loading)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model(tokens)
    assert expected.std() > 0.1, "too small for the tolerance to mean anything"
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("attention", "options", "shape", "architecture"),
    [
        ("mha", {}, {}, "Qwen3"),
        ("mha", {"rope_base": 500.0}, UNTIED | {"head_dim": 20}, "Qwen3"),
        ("mha", {"qk_norm": False, "rope_base": 500.0}, {"n_kv_heads": 4}, "Llama"),
        ("swa", {"window": 7}, {}, "Qwen3"),
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
    folder = export_model(model, attention, options, tmp_path / "folder", "stock")
    assert_same_logits(folder, model, distinct_tokens())
    assert AutoModelForCausalLM.from_pretrained(folder).config.architectures == [f"{architecture}ForCausalLM"]


def test_a_run_becomes_a_folder_in_one_command(trained_run, tmp_path):
    folder = tmp_path / "deep" / "folder"
    command = [sys.executable, "export.py", f"checkpoint={trained_run}", f"to={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"export: {folder}\n"), done.stderr
    run = open_run(trained_run)
    text = "def f(x):\n    return '<|endoftext|>' + x  # naïve 🦉"
    ours, theirs = run.data.load_tokenizer(), AutoTokenizer.from_pretrained(folder)
    assert theirs.encode(text) == ours.encode(text).ids
    assert theirs.decode(theirs.encode(text)) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (run.data.separator_id,) * 2
    assert_same_logits(folder, run.model(), torch.tensor([theirs.encode(text)]))
    assert list(folder.parent.iterdir()) == [folder], "what was made on the way is left behind"
