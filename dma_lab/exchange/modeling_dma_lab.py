"""A dma_lab model for transformers: load it with ``trust_remote_code=True`` where the package dma_lab is installed."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from dma_lab.attention import AttentionConfig
from dma_lab.attention.rope import Rotary
from dma_lab.model import ModelShape, Transformer


class DmaLabConfig(PreTrainedConfig):
    """The size under transformers' names; ``attention``: the backend's name and all its options."""

    model_type = "dma_lab"

    def __init__(self, attention: dict[str, Any] | None = None, **settings: Any) -> None:
        self.attention = attention or {}
        super().__init__(**settings)


class DmaLabForCausalLM(PreTrainedModel, GenerationMixin):
    """``generate`` computes the whole text again for every token: dma_lab's own decoding has the caches."""

    config_class = DmaLabConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: DmaLabConfig) -> None:
        super().__init__(config)
        self.model = Transformer(shape_of(config), AttentionConfig.read(config.attention))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """int64 (B, N) -> logits (B, N, V). Where ``attention_mask`` (B, N) is 0 there is padding, on either side, and
        where ``position_ids`` (B, N) do not go on by one a document begins that sees none before it.

        Positions count from a row's first token, padding included: only their differences matter to RoPE. ``kwargs``
        are the loss's: ``num_items_in_batch``, by which transformers' Trainer has a sum divided where it accumulates.
        """
        begins = torch.zeros_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:  # text and padding as documents, which do not see each other
            begins[:, 1:] |= attention_mask.long().diff(dim=-1) != 0
        if position_ids is not None:
            begins[:, 1:] |= position_ids.diff(dim=-1) != 1
        logits = self.model(input_ids, begins.long().cumsum(-1) if begins.any() else None)
        if labels is None:
            return CausalLMOutput(logits=logits)
        loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)

    def get_input_embeddings(self) -> nn.Module:
        embedding: nn.Module = self.model.embedding
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.model.head
        return head

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Rotary tables are in no file: transformers leaves them empty. All weights are in the file."""
        if isinstance(module, Rotary):
            positions, pairs = module.cos_nd.shape
            tables = Rotary(2 * pairs, positions, module.base)
            module.cos_nd.copy_(tables.cos_nd)
            module.sin_nd.copy_(tables.sin_nd)


def shape_of(config: DmaLabConfig) -> ModelShape:
    return ModelShape(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        d_ff=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_position_embeddings,
        tie_embeddings=config.tie_word_embeddings,
    )
