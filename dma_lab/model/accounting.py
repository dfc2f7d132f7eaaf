"""What a model is made of and what it costs: parameters by part, FLOPs, bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dma_lab.attention import AttentionBackend
from dma_lab.attention.heads import QKNorm
from dma_lab.model.loss import largest_chunk
from dma_lab.model.transformer import Transformer


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part. ``head`` is 0 where the output matrix is the embedding."""

    embedding: int
    attention: int
    feed_forward: int
    norms: int
    head: int

    @property
    def non_embedding(self) -> int:
        """What scaling laws call N: all but the token embedding and the output matrix."""
        return self.attention + self.feed_forward + self.norms

    @property
    def total(self) -> int:
        return self.embedding + self.non_embedding + self.head


@dataclass(frozen=True)
class TrainingFlops:
    """Floating point operations; a multiply-add counts 2, causal pairs alone count, backward counts twice forward, but
    for what attention leaves out of it (``AttentionFlops.projections_saved`` and ``selection_saved``).

    A sequence counts as one document: where several are packed and masked from each other, fewer pairs live.

    What activation checkpointing computes a second time is not counted: it is the price of memory, not the model's.
    """

    dense_equivalent: int
    """As if every query attended to all the keys before it."""
    executed: int
    """Over the pairs that live, with what choosing them costs."""


def count_parameters(model: Transformer) -> ParameterCount:
    """Count by part; the parts are asserted to sum to the module's own total."""
    blocks = model.blocks
    count = ParameterCount(
        embedding=_numel(model.embedding),
        attention=sum(_numel(block.attention) for block in blocks),
        feed_forward=sum(_numel(block.feed_forward) for block in blocks),
        norms=_numel(model.norm)
        + sum(_numel(block.attention_norm) + _numel(block.feed_forward_norm) for block in blocks),
        head=0 if model.shape.tie_embeddings else _numel(model.head),
    )
    total = _numel(model)
    assert count.total == total, f"parts sum to {count.total:,} parameters and the model has {total:,}"
    return count


def training_flops_per_sequence(model: Transformer, seq_len: int) -> TrainingFlops:
    """Forward and backward over one sequence of ``seq_len`` tokens, output head included, look-ups not."""
    shape = model.shape
    linear = 2 * seq_len * shape.d_model * (3 * shape.d_ff * shape.n_layers + shape.vocab_size)
    attention = [block.attention.flops(seq_len) for block in model.blocks]
    return TrainingFlops(
        dense_equivalent=3 * (linear + sum(layer.dense_equivalent for layer in attention))
        - sum(layer.projections_saved for layer in attention),
        executed=3 * (linear + sum(layer.executed for layer in attention))
        - sum(layer.projections_saved + layer.selection_saved for layer in attention),
    )


def keys_per_query(attention: Sequence[AttentionBackend], seq_len: int) -> float | None:
    """Keys that a query attends to, the mean over ``seq_len`` queries and all layers; (seq_len + 1) / 2 of MHA.

    NSA's are those of all three branches, a compressed block being one key. None where queries read no keys.
    """
    if not all(layer.reads_keys for layer in attention):
        return None
    layers = [layer.flops(seq_len) for layer in attention]
    shares = [layer.mixing / layer.mixing_dense for layer in layers]
    return (seq_len + 1) / 2 * sum(shares) / len(shares)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes while training; activations are an estimate (see ``estimate_memory``)."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: Transformer, sequences: int, seq_len: int, activation_dtype: torch.dtype, *, accumulates: bool = True
) -> TrainingMemory:
    """Memory of AdamW training in float32 master weights with ``sequences`` sequences per micro-batch, at its peak: as
    a forward pass ends or, of a small model with many words, as as many sequences are scored.

    Activations count what the backward pass of compiled code keeps, by formula. A layer holds, per token, the residual
    stream that its two halves are given in float32 (2 M), and in ``activation_dtype`` its norms (2 M), what attention
    keeps (``kept_by_attention``) and the three feed-forward products (3 F). The head's loss (``LinearCrossEntropy``)
    holds its input of all tokens (M), logits and their gradient of its largest chunk of tokens (V, in float32 and in
    ``activation_dtype``), and a copy of the weight and its gradient (V M, likewise). Scoring holds the logits of such a
    chunk, and twice in float32.
    With activation checkpointing a layer holds its input (M, in float32), and one layer at a time all of the above.
    Attention itself is counted as a fused kernel that stores no scores: the plain PyTorch path keeps N squared scores a
    head on top of this.

    Args:
        accumulates: whether a step has several micro-batches. The gradients of a single one take the place of its
            activations, and are counted as far as they are more.
    """
    shape, half, full = model.shape, activation_dtype.itemsize, torch.float32.itemsize
    parameters, tokens = _numel(model), sequences * seq_len
    of_layers = [
        2 * full * shape.d_model + half * (2 * shape.d_model + kept_by_attention(block.attention) + 3 * shape.d_ff)
        for block in model.blocks
    ]
    layers = sum(of_layers)
    if model.activation_checkpointing:
        layers = shape.n_layers * full * shape.d_model + max(of_layers)
    logits = largest_chunk(tokens, shape.vocab_size) * shape.vocab_size
    loss = (full + half) * (logits + shape.vocab_size * shape.d_model)
    scoring = (2 * full + (half if half < full else 0)) * logits
    activations = max(tokens * (layers + half * shape.d_model) + loss, scoring)
    gradients = full * parameters
    return TrainingMemory(
        weights=full * parameters,
        gradients=gradients if accumulates else max(0, gradients - activations),
        optimizer=2 * full * parameters,
        activations=activations,
    )


def kept_by_attention(attention: AttentionBackend) -> int:
    """Numbers per token that the backward pass keeps of an attention layer: what its linear maps make, but for the
    output, of which it is what that is given, what QK-norm makes of queries and keys, and what the backend adds."""
    kept = attention.kept_besides
    for name, module in attention.named_modules():
        if isinstance(module, nn.Linear):
            kept += module.in_features if name == "o_proj" else module.out_features
        for heads in ("q", "k"):
            if isinstance(getattr(module, f"{heads}_norm", None), QKNorm):
                kept += module.get_submodule(f"{heads}_proj").out_features
    return kept


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
