"""Backends against transformers' own attention layers, weights copied across, float32 on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV2Config, DogeConfig, LlamaConfig, MistralConfig, Qwen3Config, Qwen3NextConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.doge.modeling_doge import DogeAttention, DogeRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextRotaryEmbedding

from dma_lab.attention import AttentionBackend, build_attention

N, M, H, K, D = 96, 48, 4, 2, 16
LAYERS = {
    "llama": (LlamaConfig, LlamaAttention, LlamaRotaryEmbedding, create_causal_mask),
    "qwen3": (Qwen3Config, Qwen3Attention, Qwen3RotaryEmbedding, create_causal_mask),
    "qwen3_next": (Qwen3NextConfig, Qwen3NextAttention, Qwen3NextRotaryEmbedding, create_causal_mask),
    "mistral": (MistralConfig, MistralAttention, MistralRotaryEmbedding, create_sliding_window_causal_mask),
    "doge": (DogeConfig, DogeAttention, DogeRotaryEmbedding, create_causal_mask),
    "deepseek_v2": (DeepseekV2Config, DeepseekV2Attention, DeepseekV2RotaryEmbedding, create_causal_mask),
}


def their_layer(name: str, **settings: object) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Their layer with weights that hide no mistake (none is zero or one), and x (B, N, M) -> its output."""
    torch.manual_seed(0)
    config_class, attention_class, rotary_class, make_mask = LAYERS[name]
    config = config_class(
        hidden_size=M,
        num_attention_heads=H,
        max_position_embeddings=N,
        attn_implementation="eager",
        rms_norm_eps=1e-6,
        **settings,
    )
    layer = attention_class(config, layer_idx=0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    position = torch.arange(N)[None]

    def output(x: Tensor) -> Tensor:
        mask = make_mask(
            config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=position
        )
        return layer(x, position_embeddings=rotary_class(config)(x, position), attention_mask=mask)[0]

    return layer, output


def our_layer(name: str, options: dict, state: dict[str, Tensor]) -> AttentionBackend:
    layer = build_attention(name, d_model=M, n_heads=H, n_kv_heads=K, head_dim=D, max_seq_len=N, **options)
    layer.load_state_dict(state, strict=True)
    return layer


def assert_same_output_and_gradient(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    upstream, results = torch.randn_like(x), []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        results.append((out, *torch.autograd.grad(out, leaf, upstream)))
    for found, expected in zip(*results, strict=True):
        assert expected.std() > 0.1, "too small for the tolerance to mean anything"
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs_name", "settings", "name", "options"),
    [
        ("llama", {}, "mha", {"qk_norm": False}),
        ("qwen3", {}, "mha", {"qk_norm": True}),
        ("mistral", {"sliding_window": 7}, "swa", {"qk_norm": False, "window": 7}),
        ("doge", {"keep_window_size": 23}, "dma", {"window": 23}),
    ],
)
def test_output_and_gradient_equal_transformers(theirs_name: str, settings: dict, name: str, options: dict) -> None:
    theirs, their_output = their_layer(theirs_name, num_key_value_heads=K, head_dim=D, **settings)
    ours_alone = ("o_proj", "dt_proj", "A")
    state = {key if key.startswith(ours_alone) else f"heads.{key}": w for key, w in theirs.state_dict().items()}
    ours, x = our_layer(name, options, state), torch.randn(2, N, M)
    if name == "dma":  # Of equal scores theirs keeps any and ours the more recent: compared where none are equal.
        assert ours.scores(ours.heads(x)[2]).sort(-1).values.diff().min() > 0
    assert_same_output_and_gradient(ours, their_output, x)


def test_gated_mha_is_qwen3_nexts_full_attention() -> None:
    settings = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}}
    theirs, their_output = their_layer("qwen3_next", num_key_value_heads=K, head_dim=D, **settings)
    state = theirs.state_dict()
    # Theirs has a head's query and gate beside each other, and norms that begin at a weight of 0.
    query, gate = state["q_proj.weight"].unflatten(0, (H, 2, D)).unbind(1)
    converted = {
        "heads.q_proj.weight": query.flatten(0, 1),
        "gate_proj.weight": gate.flatten(0, 1),
        "heads.k_proj.weight": state["k_proj.weight"],
        "heads.v_proj.weight": state["v_proj.weight"],
        "heads.q_norm.weight": 1 + state["q_norm.weight"],
        "heads.k_norm.weight": 1 + state["k_norm.weight"],
        "o_proj.weight": state["o_proj.weight"],
    }
    ours = our_layer("mha", {"gate": True}, converted)
    assert_same_output_and_gradient(ours, their_output, torch.randn(2, N, M))


@pytest.mark.parametrize("q_rank", [None, 28])
def test_mla_equals_deepseek_v2(q_rank: int | None) -> None:
    kv_rank, rope_dim = 20, 6
    theirs, their_output = their_layer(
        "deepseek_v2",
        kv_lora_rank=kv_rank,
        q_lora_rank=q_rank,
        qk_nope_head_dim=D,
        qk_rope_head_dim=rope_dim,
        v_head_dim=D,
    )
    state = theirs.state_dict()
    # They turn neighbouring dimensions, we turn dimension i with i + rope_dim / 2.
    halves = torch.cat((torch.arange(0, rope_dim, 2), torch.arange(1, rope_dim, 2)))
    q_weight = state["q_proj.weight" if q_rank is None else "q_b_proj.weight"].unflatten(0, (H, D + rope_dim))
    kv_down = state["kv_a_proj_with_mqa.weight"]
    k_up, v_up = state["kv_b_proj.weight"].unflatten(0, (H, 2 * D)).split(D, dim=1)
    converted = {
        "q_proj.weight": torch.cat((q_weight[:, :D], q_weight[:, D:][:, halves]), dim=1).flatten(0, 1),
        "kv_down.weight": torch.cat((kv_down[:kv_rank], kv_down[kv_rank:][halves])),
        "kv_norm.weight": state["kv_a_layernorm.weight"],
        "k_up.weight": k_up.flatten(0, 1),
        "v_up.weight": v_up.flatten(0, 1),
        "o_proj.weight": state["o_proj.weight"],
    }
    if q_rank is not None:
        converted |= {"q_down.weight": state["q_a_proj.weight"], "q_norm.weight": state["q_a_layernorm.weight"]}
    ours = our_layer("mla", {"kv_rank": kv_rank, "q_rank": q_rank, "rope_dim": rope_dim}, converted)
    assert_same_output_and_gradient(ours, their_output, torch.randn(2, N, M))
