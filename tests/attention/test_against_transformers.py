"""Backends against transformers' own attention layers, weights copied across, float32 on the CPU."""

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen3Config
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from dma_lab.attention import build_attention

N, M, H, K, D = 96, 48, 4, 2, 16
LAYERS = {
    "llama": (LlamaConfig, LlamaAttention, LlamaRotaryEmbedding, create_causal_mask, {}),
    "qwen3": (Qwen3Config, Qwen3Attention, Qwen3RotaryEmbedding, create_causal_mask, {}),
    "mistral": (
        MistralConfig,
        MistralAttention,
        MistralRotaryEmbedding,
        create_sliding_window_causal_mask,
        {"sliding_window": 7},
    ),
}


@pytest.mark.parametrize(
    ("theirs_name", "name", "options"),
    [
        ("llama", "mha", {"qk_norm": False}),
        ("qwen3", "mha", {"qk_norm": True}),
        ("mistral", "swa", {"qk_norm": False, "window": 7}),
    ],
)
def test_output_and_gradient_equal_transformers(theirs_name: str, name: str, options: dict) -> None:
    torch.manual_seed(0)
    config_class, attention_class, rotary_class, make_mask, extra = LAYERS[theirs_name]
    config = config_class(
        hidden_size=M,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=D,
        max_position_embeddings=N,
        attn_implementation="eager",
        rms_norm_eps=1e-6,
        **extra,
    )
    theirs = attention_class(config, layer_idx=0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours = build_attention(name, d_model=M, n_heads=H, n_kv_heads=K, head_dim=D, max_seq_len=N, **options)
    state = theirs.state_dict()
    ours.load_state_dict(
        {key if key.startswith("o_proj") else f"heads.{key}": weight for key, weight in state.items()}, strict=True
    )
    x = torch.randn(2, N, M)
    position = torch.arange(N)[None]
    mask = make_mask(config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=position)
    outs, gradients = [], []
    for layer in (
        lambda x: ours(x),
        lambda x: theirs(x, position_embeddings=rotary_class(config)(x, position), attention_mask=mask)[0],
    ):
        leaf = x.clone().requires_grad_()
        outs.append(layer(leaf))
        outs[-1].square().mean().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)
