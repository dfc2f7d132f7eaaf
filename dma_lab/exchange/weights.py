"""Our parameters under the names, and in the layouts, of transformers' Llama family."""

import re

import torch
from torch import Tensor

from dma_lab.model import ModelShape

# Ours and theirs, the first that fits; what follows is the same on both sides.
_PREFIXES = (
    (r"embedding\.", "model.embed_tokens."),
    (r"norm\.", "model.norm."),
    (r"head\.", "lm_head."),
    (r"layers\.(\d+)\.attention_norm\.", r"model.layers.\1.input_layernorm."),
    (r"layers\.(\d+)\.feed_forward_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"layers\.(\d+)\.feed_forward\.", r"model.layers.\1.mlp."),
    (r"layers\.(\d+)\.attention\.(?:heads\.)?", r"model.layers.\1.self_attn."),
)


def stock_weights(weights: dict[str, Tensor], shape: ModelShape, attention: str) -> dict[str, Tensor]:
    """A model's ``state_dict`` as the architecture of ``stock_config`` names it and lays it out."""
    weights = untied(weights, shape)
    if attention == "mla":
        weights = _deepseek_layout(weights, shape)
    renamed = {_stock_name(name): weight.contiguous() for name, weight in weights.items()}
    if attention == "dma":  # Doge scales its residual stream where it is added to; ours goes on as it is
        renamed |= {
            f"model.layers.{layer}.{residual}": torch.ones(shape.d_model)
            for layer in range(shape.n_layers)
            for residual in ("input_residual", "post_attention_residual")
        }
    return renamed


def untied(weights: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Without the head where it is the embedding: a file holds a tensor once."""
    return {name: weight for name, weight in weights.items() if name != "head.weight" or not shape.tie_embeddings}


def _stock_name(name: str) -> str:
    for ours, theirs in _PREFIXES:
        renamed, found = re.subn(f"^{ours}", theirs, name)
        if found:
            return renamed
    raise ValueError(f"{name} is no parameter that transformers has a name for.")


def _deepseek_layout(weights: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Keys and values side by side in each head's rows of one matrix; rotated dimensions in neighbouring pairs."""
    H, D = shape.n_heads, shape.head_dim
    laid_out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer, _, kind = name.partition(".attention.")
        at = f"{layer}.attention."
        match kind:
            case "q_proj.weight":
                q_hdm = weight.unflatten(0, (H, -1))
                low_rank = f"{at}q_down.weight" in weights
                rotated_hdm = _neighbouring_pairs(q_hdm[:, D:])
                theirs = f"{at}{'q_b_proj' if low_rank else 'q_proj'}.weight"
                laid_out[theirs] = _rows(q_hdm[:, :D], rotated_hdm)
            case "q_down.weight":
                laid_out[f"{at}q_a_proj.weight"] = weight
            case "q_norm.weight":
                laid_out[f"{at}q_a_layernorm.weight"] = weight
            case "kv_down.weight":
                rank = weights[f"{at}kv_norm.weight"].shape[0]
                latent_1rm, rotated_1dm = weight[None, :rank], weight[None, rank:]
                laid_out[f"{at}kv_a_proj_with_mqa.weight"] = _rows(latent_1rm, _neighbouring_pairs(rotated_1dm))
            case "kv_norm.weight":
                laid_out[f"{at}kv_a_layernorm.weight"] = weight
            case "k_up.weight":
                k_hdr, v_hdr = (weights[f"{at}{up}.weight"].unflatten(0, (H, D)) for up in ("k_up", "v_up"))
                laid_out[f"{at}kv_b_proj.weight"] = _rows(k_hdr, v_hdr)
            case "v_up.weight":
                pass  # beside k_up
            case _:
                laid_out[name] = weight
    return laid_out


def _neighbouring_pairs(rows_hdm: Tensor) -> Tensor:
    """RoPE turns our dimensions (i, i + D / 2) and DeepSeek's (2 i, 2 i + 1)."""
    return rows_hdm.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _rows(first_hdm: Tensor, second_hdm: Tensor) -> Tensor:
    """Each head's two blocks of rows, one below the other: (H * (D_1 + D_2), M)."""
    return torch.cat((first_hdm, second_hdm), dim=1).flatten(0, 1)
