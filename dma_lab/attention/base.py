"""The contract that every attention backend keeps; contract.py holds them to it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dma_lab.kernels.choice import noted_kernels
from dma_lab.kernels.documents import Documents, check_document_ids
from dma_lab.messages import UserError

_BACKENDS: dict[str, type["AttentionBackend"]] = {}


def registered_backends() -> dict[str, type["AttentionBackend"]]:
    """Backend classes by name, as far as they are imported; ``plugins.find_backend`` knows those of packages too."""
    return dict(_BACKENDS)


@dataclass(frozen=True)
class AttentionShape:
    """The model's dimensions, which every backend gets."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_seq_len: int
    """Longest sequence, in tokens, that ``forward`` and ``step`` will see."""

    def __post_init__(self) -> None:
        for setting, value in vars(self).items():
            if value < 1:
                raise UserError(f"{setting}={value}: it must be at least 1.")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; choose one that is."
            )


LATER = {"later": True}
"""Metadata of an option that runs were trained without before there was one (``config.later_options``)."""
TUNABLE = {"tunable": True}
"""Metadata of an option that tuning may choose a value of for the backend, as it does a learning rate."""


@dataclass(frozen=True)
class AttentionOptions:
    """What can be set of a backend; each has a dataclass of its own, whose annotations are what its values may be."""


@dataclass(frozen=True)
class AttentionFlops:
    """Floating point operations of one layer's forward pass over one sequence; a multiply-add counts 2.

    A pair is a (query, key) pair, counted for every query head. Only causal pairs count, never the masked half.
    """

    projections: int
    """All linear maps, that of DMA's scores included."""
    selection: int
    """What choosing keys costs in matrix products beside them (MoBA's scores of blocks, DSA's of keys); sorting is not
    counted."""
    mixing: int
    """Scores and value sums over the pairs that live, those with summaries of keys (NSA's compressed branch) too."""
    mixing_dense: int
    """The same if every query attended to all the keys before it."""
    projections_saved: int = 0
    """What training leaves out of a backward pass of twice ``projections``: gradients of an input that is taken as
    given (DSA's indexer's)."""
    selection_saved: int = 0
    """The same of ``selection``: products that no gradient passes (MoBA's choice)."""

    @property
    def executed(self) -> int:
        return self.projections + self.selection + self.mixing

    @property
    def dense_equivalent(self) -> int:
        return self.projections + self.mixing_dense


def causal_pairs(seq_len: int, window: int | None = None) -> int:
    """(query, key) pairs per head when every query sees the last ``window`` keys, itself included; all by default."""
    window = seq_len if window is None else min(window, seq_len)
    return window * seq_len - window * (window - 1) // 2


class AttentionBackend(nn.Module, ABC):
    """``attn(x, document_ids)`` over a whole sequence; ``attn.step(x_t, cache)`` for the same, token by token.

    A backend is built of a shape and its own ``Options``.
    """

    Options: ClassVar[type[AttentionOptions]]
    auxiliary_loss: ClassVar[bool] = False
    """Whether training is to minimise a loss of the layer's own, too (``forward_with_loss``)."""
    reads_keys: ClassVar[bool] = True
    """Whether a query reads keys, of which there are some; else a state of constant size."""
    options: AttentionOptions
    """As built, with what was left to the shape decided."""

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is None:
            return
        there = _BACKENDS.setdefault(name, cls)
        if (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"attention={name} is {there.__module__}.{there.__qualname__}: name {cls.__name__} otherwise."
            )
        _BACKENDS[name] = cls  # the same once more, as a notebook's cell is run again

    def __init__(self, shape: AttentionShape, options: Any) -> None:
        super().__init__()
        self.options = options
        self.d_model, self.max_seq_len = shape.d_model, shape.max_seq_len
        self.n_heads, self.n_kv_heads, self.head_dim = shape.n_heads, shape.n_kv_heads, shape.head_dim

    @abstractmethod
    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        """(B, N, M) -> (B, N, M), causal; ``document_ids`` (B, N), non-decreasing, keep documents apart.

        A model of several layers gives all of them one ``Documents``.
        """

    def forward_with_loss(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> tuple[Tensor, Tensor]:
        """``forward``, and the auxiliary loss: a scalar, the mean over queries, which training adds to the model's.

        To be had where ``auxiliary_loss`` is set. Validation and evaluation leave it out.
        """
        raise NotImplementedError

    @abstractmethod
    def new_cache(self, batch_size: int) -> Any:
        """An empty decoding cache for ``batch_size`` sequences that advance together; it has a ``position``."""

    @abstractmethod
    def step(self, x_t: Tensor, cache: Any) -> Tensor:
        """The next token: (B, 1, M) -> (B, 1, M), what ``forward`` gives there. Updates ``cache``.

        Raises ValueError past ``max_seq_len``.
        """

    @abstractmethod
    def flops(self, seq_len: int) -> AttentionFlops:
        """Forward FLOPs for one sequence of ``seq_len`` tokens."""

    @abstractmethod
    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        """Bytes that one sequence's cache holds after ``seq_len`` tokens with activations of ``dtype``."""

    @property
    def kept_besides(self) -> int:
        """Numbers per token that the backward pass keeps besides what linear maps take and make
        (``dma_lab.model.accounting.kept_by_attention``)."""
        return 0

    @torch.no_grad()
    def kernels(self, seq_len: int, *, packed: bool, bf16: bool) -> str:
        """What attention runs on for one sequence of ``seq_len`` tokens, on this module's device; found by running it.

        Args:
            packed: with document ids.
            bf16: under autocast.
        """
        device = next(self.parameters()).device
        x = torch.zeros(1, seq_len, self.d_model, device=device)
        ids = torch.zeros(1, seq_len, dtype=torch.int64, device=device) if packed else None
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16), noted_kernels() as names:
            self(x, ids)
        return ", ".join(names)

    def check_input(self, x: Tensor, document_ids: Tensor | Documents | None) -> None:
        """Raise ValueError unless x is (B, N <= max_seq_len, M) and ``document_ids``, if given, (B, N) integers."""
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"x must have shape (B, N, {self.d_model}), not {tuple(x.shape)}.")
        if x.shape[1] > self.max_seq_len:
            raise ValueError(f"x has {x.shape[1]} tokens and max_seq_len={self.max_seq_len}: give fewer, or raise it.")
        if document_ids is not None:
            check_document_ids(document_ids, x.shape[0], x.shape[1])

    def check_step(self, x_t: Tensor, position: int) -> None:
        """Raise ValueError unless x_t is (B, 1, M) and ``position`` is below ``max_seq_len``."""
        if x_t.ndim != 3 or x_t.shape[1:] != (1, self.d_model):
            raise ValueError(f"x_t must have shape (B, 1, {self.d_model}), not {tuple(x_t.shape)}.")
        if position >= self.max_seq_len:
            raise ValueError(f"step at position {position} is past max_seq_len={self.max_seq_len}: raise it to go on.")
