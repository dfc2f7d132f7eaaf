"""Packed documents: which tokens of a batch belong together, and where each document lies."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Documents:
    """Document ids in every form that kernels ask for, made once per batch and read by all layers, both ways.

    Wherever ``document_ids`` are taken, these are too. How many documents there are is for the host to know before it
    launches kernels over them: made from ids in the host's memory they spare every layer a wait for the GPU.
    """

    ids: Tensor
    """Integers (B, N), non-decreasing along N."""
    start_bn: Tensor
    """int64, the first position of the document that each position belongs to."""
    end_bn: Tensor
    """int64, the end (exclusive) of that document."""
    offsets: Tensor
    """int32 (documents + 1,): where each begins in the B * N tokens, and their end."""
    longest: Tensor
    """int32 (), tokens of the longest document; in the host's memory wherever the others are."""

    @classmethod
    def of(cls, document_ids: "Tensor | Documents") -> "Documents":
        """Raises ValueError unless ``document_ids`` are integers (B, N)."""
        if isinstance(document_ids, Documents):
            return document_ids
        if document_ids.ndim != 2:
            raise ValueError(f"document_ids must have shape (B, N), not {tuple(document_ids.shape)}.")
        B, N = document_ids.shape
        check_document_ids(document_ids, B, N)
        start_bn, end_bn = document_bounds(document_ids, B, N, document_ids.device)
        offsets, longest = document_offsets(start_bn)
        return cls(document_ids, start_bn, end_bn, offsets, longest)._of_any_number()

    def pin_memory(self) -> "Documents":
        """Copied to where a GPU can fetch them by itself."""
        ids, start_bn, end_bn, offsets = (
            tensor.pin_memory() for tensor in (self.ids, self.start_bn, self.end_bn, self.offsets)
        )
        return Documents(ids, start_bn, end_bn, offsets, self.longest)

    def to(self, device: torch.device) -> "Documents":
        """Copied to ``device``, as far as they are not there; from pinned memory without waiting."""
        ids, start_bn, end_bn, offsets = (
            tensor.to(device, non_blocking=tensor.is_pinned())
            for tensor in (self.ids, self.start_bn, self.end_bn, self.offsets)
        )
        return Documents(ids, start_bn, end_bn, offsets, self.longest)._of_any_number()

    def _of_any_number(self) -> "Documents":
        if self.offsets.is_cuda:  # where kernels read them: code compiled for one batch is to serve the next
            torch._dynamo.maybe_mark_dynamic(self.offsets, 0)
        return self


def locate_documents(document_ids: Tensor | Documents) -> tuple[Tensor, Tensor]:
    """``offsets`` and ``longest`` of ``Documents``; from bare ids it waits for the device."""
    if isinstance(document_ids, Documents):
        return document_ids.offsets, document_ids.longest
    B, N = document_ids.shape
    return document_offsets(document_bounds(document_ids, B, N, document_ids.device)[0])


@torch.library.custom_op("dma_lab::document_offsets", mutates_args=())
def document_offsets(start_bn: Tensor) -> tuple[Tensor, Tensor]:
    """``offsets`` and ``longest`` of the documents that begin at ``start_bn``."""
    B, N = start_bn.shape
    opens = (start_bn == torch.arange(N, device=start_bn.device)).flatten().nonzero().flatten()
    offsets = torch.cat((opens, opens.new_full((1,), B * N))).to(torch.int32)
    return offsets, offsets.diff().max().cpu()


@document_offsets.register_fake
def _(start_bn: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size(min=2)
    return start_bn.new_empty(count, dtype=torch.int32), torch.empty((), dtype=torch.int32, device="cpu")


def document_bounds(
    document_ids: Tensor | Documents | None, B: int, N: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """First position and end (exclusive) of the document that each position belongs to: two int64 tensors (B, N)."""
    if isinstance(document_ids, Documents):
        return document_ids.start_bn, document_ids.end_bn
    position_n = torch.arange(N, device=device)
    if document_ids is None:
        return torch.zeros_like(position_n).expand(B, N), torch.full_like(position_n, N).expand(B, N)
    opens_bn = torch.ones(B, N, dtype=torch.bool, device=device)
    opens_bn[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    start_bn = torch.where(opens_bn, position_n, 0).cummax(dim=1).values
    closes_bn = opens_bn.roll(-1, dims=1)
    closes_bn[:, -1:] = True
    end_bn = torch.where(closes_bn, position_n + 1, N).flip(1).cummin(dim=1).values.flip(1)
    return start_bn, end_bn


def check_document_ids(document_ids: Tensor | Documents, B: int, N: int) -> None:
    """Raise ValueError unless ``document_ids`` are integers (B, N)."""
    ids = document_ids.ids if isinstance(document_ids, Documents) else document_ids
    if ids.shape != (B, N) or ids.is_floating_point():
        raise ValueError(
            f"document_ids must be integers of shape ({B}, {N}), not {str(ids.dtype).removeprefix('torch.')} of "
            f"shape {tuple(ids.shape)}."
        )
