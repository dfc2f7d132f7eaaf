"""The attention layers of a run, rebuilt from its config without memory."""

import torch
from omegaconf import OmegaConf

from dma_lab.attention import AttentionBackend, AttentionConfig, AttentionShape
from dma_lab.messages import UserError
from dma_lab.report.collect import Run

_SHAPE = ("d_model", "n_heads", "n_kv_heads", "head_dim")


def attention_layers(run: Run) -> list[AttentionBackend]:
    """Every layer's; none where config.yaml gives no shape or no attention that there is."""
    model = run.config.model
    if any(name not in model for name in (*_SHAPE, "n_layers")):
        return []
    shape = AttentionShape(**{name: model[name] for name in _SHAPE}, max_seq_len=run.summary.context)
    try:
        config = AttentionConfig.read(OmegaConf.to_container(run.config.attention, resolve=True))
        with torch.device("meta"):
            return [config.of_layer(layer, model.n_layers).build(shape) for layer in range(model.n_layers)]
    except UserError:
        return []


def cache_bytes(run: Run, tokens: int) -> int | None:
    """What a sequence's decoding cache holds after ``tokens`` tokens in all layers, in bf16; None as above."""
    layers = attention_layers(run)
    return sum(layer.cache_bytes(tokens, torch.bfloat16) for layer in layers) if layers else None
