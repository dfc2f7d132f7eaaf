"""A pre-norm decoder (RMSNorm, attention, SwiGLU) in which the attention backend is the one thing that changes."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dma_lab.attention import AttentionConfig, AttentionShape
from dma_lab.attention.chance import ChanceScores
from dma_lab.attention.heads import QKNorm
from dma_lab.kernels import Documents
from dma_lab.model.loss import LinearCrossEntropy, target_nats
from dma_lab.settings import STRICT, Positive


@dataclass(frozen=True)
class Initialisation:
    """What initial weights are drawn from (``initialise``)."""

    __pydantic_config__ = STRICT
    std: Positive = 0.02
    """Of linear and embedding weights."""
    output_scale: Annotated[float, Field(ge=0)] = 1.0
    """Of maps back into the residual stream, times ``std`` / sqrt(2 · layers); 0: every block begins as none."""
    qk_gain: Positive = 1.0
    """Of QK-norm, on queries and on keys: logits begin within its square times sqrt(head_dim)."""


@dataclass(frozen=True)
class ModelShape:
    """Everything that fixes the transformer's size but its attention backend."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_seq_len: int
    tie_embeddings: bool = True

    @property
    def attention(self) -> AttentionShape:
        return AttentionShape(self.d_model, self.n_heads, self.n_kv_heads, self.head_dim, self.max_seq_len)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate x) * up x)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, shape: ModelShape, attention: AttentionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.d_model, eps=1e-6)
        self.attention = attention.build(shape.attention)
        self.feed_forward_norm = nn.RMSNorm(shape.d_model, eps=1e-6)
        self.feed_forward = FeedForward(shape.d_model, shape.d_ff)

    def forward(
        self, x: Tensor, document_ids: Tensor | Documents | None = None, with_loss: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, N, M) -> (B, N, M); with ``with_loss`` the attention's auxiliary loss beside it."""
        if with_loss:
            attended, loss = self.attention.forward_with_loss(self.attention_norm(x), document_ids)
            x = x + attended
            return x + self.feed_forward(self.feed_forward_norm(x)), loss
        x = x + self.attention(self.attention_norm(x), document_ids)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def step(self, x_t: Tensor, cache: Any) -> Tensor:
        x_t = x_t + self.attention.step(self.attention_norm(x_t), cache)
        return x_t + self.feed_forward(self.feed_forward_norm(x_t))


class Transformer(nn.Module):
    """Tokens in, logits out.

    Args:
        shape: the size.
        attention: the backend, as a config has it, or its name alone.
        options: with a name, the backend's options.
        seed, init: fix every initial weight (``initialise``).
    """

    def __init__(
        self,
        shape: ModelShape,
        attention: AttentionConfig | str,
        options: dict[str, Any] | None = None,
        *,
        seed: int = 0,
        init: Initialisation = Initialisation(),
    ) -> None:
        super().__init__()
        config = AttentionConfig.of(attention, options or {}) if isinstance(attention, str) else attention
        self.shape, self._attention = shape, config
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        layers = range(shape.n_layers)
        self.layers = nn.ModuleList(Block(shape, config.of_layer(layer, shape.n_layers)) for layer in layers)
        self.norm = nn.RMSNorm(shape.d_model, eps=1e-6)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        if shape.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.cross_entropy = LinearCrossEntropy()
        self.activation_checkpointing = False
        """Whether the backward pass keeps a block's input alone, and computes the rest of it anew (Chen et al., arXiv
        1604.06174): the same numbers, for a forward pass more and a fraction of the memory."""
        initialise(self, seed, init)

    def forward(self, tokens: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        """int64 (B, N), document ids (B, N) or none -> logits (B, N, V)."""
        return self.head(self.features(tokens, document_ids))

    def features(self, tokens: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        """What the output head is given: int64 (B, N), document ids (B, N) or none -> (B, N, M)."""
        return self._features(tokens, document_ids, with_losses=False)[0]

    def _features(
        self, tokens: Tensor, document_ids: Tensor | Documents | None, *, with_losses: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """``features``, and the auxiliary losses of the layers that have one."""
        documents = None if document_ids is None else Documents.of(document_ids)
        x, losses = self.embedding(tokens), []
        for block in self.blocks:
            inputs = (x, documents, True) if with_losses and block.attention.auxiliary_loss else (x, documents)
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Blocks draw no random numbers, and asking a GPU for their state is nothing that a graph can hold.
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*inputs)
            if len(inputs) == 3:
                x, loss = x
                losses.append(loss)
        return self.norm(x), losses

    def losses(
        self, tokens: Tensor, targets: Tensor, document_ids: Tensor | Documents | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """To train with, their sum: mean nats of ``targets``, int64 (B, N), of which -100 are not scored; and the
        attention's auxiliary losses, summed over layers, of a backend that has one. No logits are kept.
        """
        features, losses = self._features(tokens, document_ids, with_losses=True)
        loss = self.cross_entropy(features, self.head.weight, targets)
        return loss, torch.stack(losses).sum() if losses else None

    @torch.no_grad()
    def nats(self, tokens: Tensor, targets: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        """To score with: nats of each of ``targets`` (B, N), float32; 0 where that is -100. No logits are kept."""
        return target_nats(self.features(tokens, document_ids), self.head, targets)

    @property
    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.layers))

    @property
    def attention(self) -> AttentionConfig:
        """The backend with all its options, those decided that were left to the shape."""
        return replace(self._attention, options=self.blocks[0].attention.options)

    def new_cache(self, batch_size: int) -> list[Any]:
        """An empty decoding cache: one per layer."""
        return [block.attention.new_cache(batch_size) for block in self.blocks]

    def step(self, tokens_t: Tensor, cache: list[Any]) -> Tensor:
        """The next token of every sequence: int64 (B, 1) -> logits (B, 1, V), as ``forward`` gives. Updates cache."""
        x_t = self.embedding(tokens_t)
        for block, layer_cache in zip(self.blocks, cache, strict=True):
            x_t = block.step(x_t, layer_cache)
        return self.head(self.norm(x_t))


def initialise(model: Transformer, seed: int, init: Initialisation) -> None:
    """Draw every linear and embedding weight from N(0, std²), each from a stream named by (seed, parameter name).

    So two backends that share a parameter (same name and shape) start from the same one, and differ in nothing that
    they need not differ in. Maps back into the residual stream are scaled by 1 / sqrt(2 · layers) (GPT-2). Scores by
    chance get streams in the same way; parameters of other kinds, but for QK-norm's gains, keep what their module gave
    them. Does nothing on the meta device.
    """
    residual_scale = init.output_scale / math.sqrt(2 * model.shape.n_layers)
    for module_name, module in model.named_modules():
        if isinstance(module, ChanceScores) and not module.stream_k.is_meta:
            module.draw(_generator(f"{seed}:{module_name}"))
        if isinstance(module, QKNorm):
            nn.init.constant_(module.weight, init.qk_gain)
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.is_meta:
            continue
        if module is model.head and model.shape.tie_embeddings:
            continue
        generator = _generator(f"{seed}:{module_name}.weight")
        std = init.std * (residual_scale if module_name.endswith(("o_proj", "down_proj")) else 1.0)
        with torch.no_grad():
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0.0, std, generator=generator))
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()


def _generator(name: str) -> torch.Generator:
    """A stream of random numbers that the name alone decides."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
    return torch.Generator().manual_seed(seed)
