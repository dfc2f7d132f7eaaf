"""Models to export, and what makes an export right."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from dma_lab.model import ModelShape, Transformer

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
