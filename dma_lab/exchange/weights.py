"""Our parameters under the names, and in the layouts, of transformers' Llama family."""

import re

import torch
from torch import Tensor

from dma_lab.model import ModelShape

# How names begin, ours and theirs; what follows is the same.
_MODEL = {"embedding.": "model.embed_tokens.", "norm.": "model.norm.", "head.": "lm_head."}
_LAYER = {
    "attention_norm.": "input_layernorm.",
    "feed_forward_norm.": "post_attention_layernorm.",
    "feed_forward.": "mlp.",
    **{f"attention.heads.{part}": f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")},
    "attention.": "self_attn.",
    "attention_residual": "input_residual",
    "feed_forward_residual": "post_attention_residual",
}


def stock_weights(weights: dict[str, Tensor], shape: ModelShape, attention: str) -> dict[str, Tensor]:
    """A model's ``state_dict`` as the architecture of ``stock_config`` names it and lays it out."""
    weights = untied(weights, shape)
    if attention == "mla":
        weights = _deepseek_layout(weights, shape)
    renamed = {_stock_name(name): weight.contiguous() for name, weight in weights.items()}
    if attention == "dma":  # Doge scales its residual stream where it is added to; ours goes on as it is
        for layer in range(shape.n_layers):
            for residual in ("input_residual", "post_attention_residual"):
                renamed.setdefault(f"model.layers.{layer}.{residual}", torch.ones(shape.d_model))
    return renamed


def our_weights(weights: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """A ``state_dict`` of Llama's family under our names; a name that is none of theirs stays as it is."""
    renamed = {_our_name(name): weight for name, weight in weights.items()}
    if shape.tie_embeddings and "embedding.weight" in renamed:
        renamed["head.weight"] = renamed["embedding.weight"]
    return renamed


def untied(weights: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Without the head where it is the embedding: a file holds a tensor once."""
    return {name: weight for name, weight in weights.items() if name != "head.weight" or not shape.tie_embeddings}


def _stock_name(name: str) -> str:
    if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        return f"model.layers.{layer[1]}.{_begin_anew(layer[2], _LAYER)}"
    return _begin_anew(name, _MODEL)


def _our_name(name: str) -> str:
    if layer := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
        return f"layers.{layer[1]}.{_begin_anew(layer[2], {theirs: ours for ours, theirs in _LAYER.items()})}"
    return _begin_anew(name, {theirs: ours for ours, theirs in _MODEL.items()})


def _begin_anew(name: str, beginnings: dict[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


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
    out: Tensor = rows_hdm.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return out


def _rows(first_hdm: Tensor, second_hdm: Tensor) -> Tensor:
    """Each head's two blocks of rows, one below the other: (H * (D_1 + D_2), M)."""
    return torch.cat((first_hdm, second_hdm), dim=1).flatten(0, 1)
