"""Weights to begin a training with: of a run of ours, of a folder that we exported, or of one of transformers' folders.

Of transformers' architectures those that ours are (configs.py), read from config.json and safetensors alone: Llama and
Qwen3 are MHA, Mistral and Qwen3 with a window SWA (in all layers, or but for every n-th), Doge DMA.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dma_lab.data.finding import user_path
from dma_lab.data.store import TOKENIZER_FILE
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.exchange.configs import shape_of
from dma_lab.exchange.doge import read_weights
from dma_lab.exchange.weights import our_weights, untied
from dma_lab.messages import UserError
from dma_lab.model import ModelShape

_ARCHITECTURES = ("llama", "qwen3", "mistral", "doge")
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "is_moe": False}
"""What our model has no choice in."""
_NORM_EPSILON = 1e-6
_SILENT = {
    "llama": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "qwen3": {
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "mistral": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "sliding_window": 4096, "num_key_value_heads": 8},
    "doge": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "keep_window_size": 2048},
}
"""What transformers takes where config.json is silent."""
_RESIDUALS = (".attention_residual", ".feed_forward_residual")


@dataclass(frozen=True)
class Source:
    """A model's weights, and what it was."""

    path: Path
    shape: ModelShape
    """``max_seq_len``: tokens that it was made for."""
    attention: dict[str, Any]
    """The backend's name, and those of its options that are known."""
    weights: dict[str, Tensor]
    """float32 by our names (buffers of integers as they are), the head absent where it is the embedding."""
    remarks: tuple[str, ...] = ()
    """In what it is not quite a model of ours, a clause each."""
    tokenizer_file: Path | None = None
    """What its tokens are; None where that is not known."""

    @property
    def digest(self) -> str:
        """SHA-256 of all weights in float32 by name: of a run, and of what was exported of it, the same."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            weight = self.weights[name].contiguous()
            digest.update(f"{name} {tuple(weight.shape)}\n".encode())
            digest.update(weight.view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def open_source(given: str) -> Source:
    """The weights in the run or folder ``given``.

    Raises:
        UserError: it holds none, or those of a model that ours cannot be.
    """
    path = user_path(given, "init_from")
    if path.suffix == ".ckpt" or (path / "config.yaml").is_file():
        return _of_run(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"init_from={given} holds no weights: it has neither config.yaml (a run's) nor config.json (a model's of "
            "Hugging Face transformers); give the folder of one of these."
        )
    remarks: tuple[str, ...] = ()
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
        if kind == "dma_lab":
            shape, attention = shape_of(config, {}), dict(config["attention"])
        elif kind in _ARCHITECTURES:
            config = _SILENT[kind] | config
            _refuse_foreign(path, config)
            shape, attention, remarks = _stock(config)
        else:
            raise UserError(
                f"init_from={given} is of model_type={kind}; those that can be trained on are "
                f"{', '.join(_ARCHITECTURES)} and dma_lab (export.py format=custom)."
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"{path / 'config.json'} cannot be read as a model's ({said}); give another folder.") from error
    theirs = read_weights(path)
    if kind == "dma_lab":
        weights = {name.removeprefix("model."): weight for name, weight in theirs.items()}
    else:
        weights = _without_residual_scales(given, our_weights(theirs, shape))
    tokenizer_file = path / TOKENIZER_FILE
    return Source(
        path, shape, attention, _plain(weights, shape), remarks, tokenizer_file if tokenizer_file.is_file() else None
    )


def _of_run(path: Path) -> Source:
    run = open_run(path, "init_from")
    tokenizer_file = None
    with suppress(UserError):  # its token files may be gone, or it was trained on no text
        tokenizer_file = run.data.tokenizer_file
    weights = _plain(run.weights, run.shape)
    return Source(run.path, run.shape, dict(run.config["attention"]), weights, tokenizer_file=tokenizer_file)


def _plain(weights: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Integers, which random scores are drawn from, stay what they are: float32 would round them."""
    return {
        name: weight.float() if weight.is_floating_point() else weight
        for name, weight in untied(weights, shape).items()
    }


def _refuse_foreign(path: Path, config: dict[str, Any]) -> None:
    for setting, ours in _FIXED.items():
        if config.get(setting, ours) != ours:
            raise UserError(
                f"init_from={path}: {setting}={config[setting]} there, and our model has {setting}={ours} alone; give "
                "weights of such a model."
            )
    kind = _rope(config).get("rope_type", "default")
    if kind not in ("default", "dynamic"):  # which are the same up to the context trained on
        raise UserError(f"init_from={path}: rope_type={kind} is not supported; give weights with rope_type=default.")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Also as transformers wrote it before version 5."""
    earlier = {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_scaling") or {})}
    return earlier | (config.get("rope_parameters") or {})


def _stock(config: dict[str, Any]) -> tuple[ModelShape, dict[str, Any], tuple[str, ...]]:
    kind = config["model_type"]
    windowed = _windowed(config)
    attention: dict[str, Any] = {
        "name": "dma" if kind == "doge" else "swa" if any(windowed) else "mha",
        "qk_norm": kind in ("qwen3", "doge"),
        "rope_base": float(_rope(config)["rope_theta"]),
    }
    if kind == "doge":
        attention["window"] = config["keep_window_size"]
    elif any(windowed):
        attention["window"] = config["sliding_window"]
        if not all(windowed):
            attention["full_every"] = _full_every(windowed)
    remarks: tuple[str, ...] = ()
    if (epsilon := config["rms_norm_eps"]) != _NORM_EPSILON:
        remarks = (
            f"its norms have rms_norm_eps={epsilon:g} and ours {_NORM_EPSILON:g}, so that logits differ slightly",
        )
    return shape_of(config, _rope(config)), attention, remarks


def _windowed(config: dict[str, Any]) -> list[bool]:
    """Of each layer, whether it has a sliding window."""
    layers, has_windows = config["num_hidden_layers"], config.get("sliding_window") is not None
    if config["model_type"] == "mistral":
        return [has_windows] * layers
    if config["model_type"] != "qwen3" or not config["use_sliding_window"] or not has_windows:
        return [False] * layers
    if (kinds := config.get("layer_types")) is None:
        return [layer >= config["max_window_layers"] for layer in range(layers)]
    return [kind == "sliding_attention" for kind in kinds]


def _full_every(windowed: list[bool]) -> int:
    """Raises UserError where it is not every n-th layer that has no window."""
    every = windowed.index(False) + 1
    if windowed != [(layer + 1) % every != 0 for layer in range(len(windowed))]:
        full = ", ".join(str(layer) for layer, window in enumerate(windowed) if not window)
        raise UserError(
            f"layers {full} (from 0) of the weights have no sliding window, the others have, and our model can leave "
            "it out of every n-th layer alone (attention.full_every); give weights of such a model."
        )
    return every


def _without_residual_scales(given: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Doge scales its residual stream; ours goes on as it is, which ones mean."""
    scales = [name for name in weights if name.endswith(_RESIDUALS)]
    if any(not bool((weights[name] == 1).all()) for name in scales):
        raise UserError(
            f"init_from={given} is a Doge that scales its residual stream ({scales[0]} is not all ones), which our "
            "model does not; give one that dma_lab exported."
        )
    return {name: weight for name, weight in weights.items() if name not in scales}
