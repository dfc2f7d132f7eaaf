"""A Doge checkpoint (Shi et al., arXiv 2412.11834), as transformers keeps it, in our model with DMA.

Of equally scored keys Doge keeps any and ours the most recent; nothing else differs. A token's first-layer score is the
same wherever it stands, so on text longer than the window single logits differ by more than rounding.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dma_lab.attention import AttentionConfig
from dma_lab.data.finding import user_path
from dma_lab.exchange.configs import shape_of
from dma_lab.exchange.weights import our_weights
from dma_lab.kernels import Documents
from dma_lab.messages import UserError
from dma_lab.model import ModelShape, Transformer
from dma_lab.model.transformer import Block

# Settings that our model has no choice in, and what transformers takes where config.json is silent.
_FIXED = {
    "is_moe": (False, False),
    "attention_bias": (False, False),
    "mlp_bias": (False, False),
    "hidden_act": ("silu", "silu"),
    "rms_norm_eps": (1e-6, 1e-6),
    "sliding_window": (None, None),
}


class DogeBlock(Block):
    """A block whose residual stream is scaled, dimension by dimension, where it is added to."""

    def __init__(self, shape: ModelShape, attention: AttentionConfig) -> None:
        super().__init__(shape, attention)
        self.attention_residual = nn.Parameter(torch.ones(shape.d_model))
        self.feed_forward_residual = nn.Parameter(torch.ones(shape.d_model))

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None, with_loss: bool = False) -> Tensor:
        assert not with_loss, "DMA has no auxiliary loss"
        x = self.attention_residual * x + self.attention(self.attention_norm(x), document_ids)
        out: Tensor = self.feed_forward_residual * x + self.feed_forward(self.feed_forward_norm(x))
        return out

    def step(self, x_t: Tensor, cache: Any) -> Tensor:
        x_t = self.attention_residual * x_t + self.attention.step(self.attention_norm(x_t), cache)
        out: Tensor = self.feed_forward_residual * x_t + self.feed_forward(self.feed_forward_norm(x_t))
        return out


class DogeTransformer(Transformer):
    """Our model with DMA and Doge's residual scales."""

    def __init__(self, shape: ModelShape, attention: AttentionConfig) -> None:
        super().__init__(shape, attention)
        self.layers = nn.ModuleList(DogeBlock(shape, attention) for _ in range(shape.n_layers))


def import_doge(folder: Path) -> DogeTransformer:
    """The model of a folder with config.json and model.safetensors, in float32 on the CPU, in eval mode.

    Raises:
        UserError: the folder holds no Doge, one that our model cannot be (experts, biases, another activation), or
            weights other than its config.json says; or the weights are kept as a pickle, which is not read.
    """
    path = user_path(folder, "folder")
    shape, attention = _read_config(path / "config.json")
    weights = our_weights(read_weights(path), shape)
    model = DogeTransformer(shape, attention)
    ours = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    theirs = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{folder} is damaged or no Doge that transformers wrote: its {name} (as we call it) is "
                f"{theirs.get(name, 'absent')}, and by its config.json {ours.get(name, 'absent')}."
            )
    model.load_state_dict(weights)
    return model.eval()


def _read_config(file: Path) -> tuple[ModelShape, AttentionConfig]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.get("model_type") != "doge":
            raise UserError(f"{file.parent} holds model_type={config.get('model_type')}; give a Doge checkpoint.")
        for setting, (ours, default) in _FIXED.items():
            if (value := config.get(setting, default)) != ours:
                raise UserError(f"{file}: {setting}={value} is not supported; our model has {setting}={ours}.")
        rope = config.get("rope_parameters") or _earlier_rope(config)
        if (kind := rope.get("rope_type", "default")) not in ("default", "dynamic"):
            raise UserError(f"{file}: rope_type={kind} is not supported; our model has default.")
        shape = shape_of(config, rope)
        options = {"window": config.get("keep_window_size", 2048), "rope_base": float(rope["rope_theta"])}
        return shape, AttentionConfig.of("dma", options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file} cannot be read as a Doge's ({type(error).__name__}: {error}).") from error


def _earlier_rope(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers wrote it before version 5."""
    return {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, in one file or several. Raises UserError as ``import_doge`` does."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.exists():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        return {name: weight for file in names for name, weight in load_file(folder / file).items()}
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or folder / 'model.safetensors'} is missing, and weights in other formats (pickles "
            "can run code) are not read; save them as safetensors."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"The weights in {folder} cannot be read ({type(error).__name__}: {error}).") from error
