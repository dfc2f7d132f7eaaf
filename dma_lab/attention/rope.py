"""Rotary position embedding (RoFormer, arXiv 2104.09864), in the half-split layout of Llama."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dma_lab.messages import UserError

RopeBase = Annotated[float, Field(ge=1, allow_inf_nan=False)]
"""Frequencies are its powers: below 1 they would rise, and overflow."""


class Rotary(nn.Module):
    """Rotates (.., N, D) by angles ``position * base ** (-2 i / D)``; the pairs are dimensions (i, i + D/2)."""

    cos_nd: Tensor
    sin_nd: Tensor

    def __init__(self, head_dim: int, max_seq_len: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.base = base
        if head_dim % 2:
            raise UserError(f"head_dim={head_dim} is odd, and rotary embedding turns pairs; choose an even one.")
        if torch.get_default_device().type == "meta":  # where arithmetic is slow and gives shapes alone
            tables = torch.empty(2, max_seq_len, head_dim // 2)
            self.register_buffer("cos_nd", tables[0], persistent=False)
            self.register_buffer("sin_nd", tables[1], persistent=False)
            return
        frequency_d = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle_nd = torch.arange(max_seq_len, dtype=torch.float64)[:, None] * frequency_d
        # Tables are made in float64, so that far positions are exact, and never saved: they are arithmetic.
        self.register_buffer("cos_nd", angle_nd.cos().float(), persistent=False)
        self.register_buffer("sin_nd", angle_nd.sin().float(), persistent=False)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """Rotate x (.., N, D), computed in float32 or better, x's dtype returned.

        ``start`` is the first position; or a tensor of all positions, which broadcasts against (.., N).
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        positions = slice(start, start + x.shape[-2]) if isinstance(start, int) else start
        cos_nd, sin_nd = self.cos_nd[positions].to(dtype), self.sin_nd[positions].to(dtype)
        low, high = x.to(dtype).chunk(2, dim=-1)
        return torch.cat((low * cos_nd - high * sin_nd, high * cos_nd + low * sin_nd), dim=-1).to(x.dtype)
