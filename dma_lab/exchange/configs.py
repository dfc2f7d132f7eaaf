"""Which architecture computes what a model of ours does, said as its config.json: transformers' own where one does.

MHA is Qwen3 with QK-norm and Llama without; SWA is Qwen3 with a window, in some layers alone for a hybrid, and Mistral;
MLA is DeepSeek-V2 with dense feed-forward layers; DMA is Doge. RMSNorm's epsilon is 1e-6 in all of ours and theirs, the
RoPE base is a setting, and a width of the heads other than d_model / n_heads is one too.
"""

from typing import Any

from dma_lab.attention import AttentionConfig
from dma_lab.model import ModelShape


class NoStockArchitectureError(Exception):
    """No architecture of transformers computes what the model does. The message is the reason, a clause."""


def stock_config(shape: ModelShape, attention: AttentionConfig) -> dict[str, Any]:
    """The config.json of the architecture that computes what a model of this ``shape`` with this attention does.

    Raises:
        NoStockArchitectureError: there is none.
    """
    config: dict[str, Any]
    options = attention.written()
    name = options["name"]
    for option, plain in (
        ("recency", None),
        ("gate", False),
        ("sinks", 0),
        ("scores", "learned"),
        ("score_rate", 1.0),
        ("score_scale", 1.0),
    ):
        if options.get(option, plain) != plain:
            said = str(options[option]).lower()
            raise NoStockArchitectureError(f"transformers has no {name.upper()} with attention.{option}={said}")
    match name:
        case "mha" if options["qk_norm"]:
            config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
        case "mha":
            _check_heads_divide(shape, "Llama")
            config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": False}
        case "swa" if options["qk_norm"]:
            config = {
                "model_type": "qwen3",
                "architectures": ["Qwen3ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": options["window"],
                "max_window_layers": 0,
                "layer_types": [
                    f"{'sliding' if attention.of_layer(layer, shape.n_layers).name == 'swa' else 'full'}_attention"
                    for layer in range(shape.n_layers)
                ],
            }
        case "swa" if options["full_every"] is not None:
            raise NoStockArchitectureError(
                "transformers' Mistral has a window in every layer, and this model has "
                f"attention.full_every={options['full_every']}"
            )
        case "swa":
            config = {
                "model_type": "mistral",
                "architectures": ["MistralForCausalLM"],
                "sliding_window": options["window"],
            }
        case "mla":
            _check_heads_divide(shape, "DeepSeek-V2")
            config = {
                "model_type": "deepseek_v2",
                "architectures": ["DeepseekV2ForCausalLM"],
                "mlp_bias": False,
                "first_k_dense_replace": shape.n_layers,  # no layer has experts
                "q_lora_rank": options["q_rank"],
                "kv_lora_rank": options["kv_rank"],
                "qk_nope_head_dim": shape.head_dim,
                "qk_rope_head_dim": options["rope_dim"],
                "v_head_dim": shape.head_dim,
            }
        case "dma":
            _check_doge(options)
            config = {
                "model_type": "doge",
                "architectures": ["DogeForCausalLM"],
                "mlp_bias": False,
                "is_moe": False,
                "keep_window_size": options["window"],
            }
        case _:
            raise NoStockArchitectureError(f"transformers has no architecture with attention={name}")
    return config | {
        **_size(shape),
        "num_key_value_heads": shape.n_heads if name == "mla" else shape.n_kv_heads,
        "head_dim": options["rope_dim"] if name == "mla" else shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": options["rope_base"]},
        "rope_theta": options["rope_base"],  # where transformers looked before version 5
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def custom_config(shape: ModelShape, attention: AttentionConfig) -> dict[str, Any]:
    """The config.json that ``modeling_dma_lab.py`` reads; arguments as of ``stock_config``."""
    return {
        "model_type": "dma_lab",
        "architectures": ["DmaLabForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_dma_lab.DmaLabConfig",
            "AutoModelForCausalLM": "modeling_dma_lab.DmaLabForCausalLM",
        },
        "attention": attention.written(),
        **_size(shape),
    }


def shape_of(config: dict[str, Any], rope: dict[str, Any]) -> ModelShape:
    """The shape that a ``config.json`` of transformers' Llama kind says, ``rope`` its rotary parameters.

    Raises:
        KeyError: a size is missing.
    """
    heads = config["num_attention_heads"]
    return ModelShape(
        n_layers=config["num_hidden_layers"],
        d_model=config["hidden_size"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        d_ff=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        # Dynamic frequencies are the default ones up to there.
        max_seq_len=rope.get("original_max_position_embeddings", config["max_position_embeddings"]),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def _size(shape: ModelShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_seq_len,
        "tie_word_embeddings": shape.tie_embeddings,
        "dtype": "float32",
    }


def _check_heads_divide(shape: ModelShape, architecture: str) -> None:
    if shape.d_model % shape.n_heads:
        raise NoStockArchitectureError(
            f"transformers' {architecture} wants d_model={shape.d_model} to be a multiple of n_heads={shape.n_heads}"
        )


def _check_doge(options: dict[str, Any]) -> None:
    for option, theirs, why in (
        ("qk_norm", True, "always normalises queries and keys"),
        ("score", "exp", "has the paper's score alone"),
        ("recent", 0, "keeps no key for being recent"),
    ):
        if options[option] != theirs:
            raise NoStockArchitectureError(
                f"transformers' Doge {why}, and this model has attention.{option}={str(options[option]).lower()}"
            )
