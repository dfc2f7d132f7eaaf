"""The gated delta rule (Yang, Kautz and Hatamizadeh, arXiv 2412.06464): attention by a state of constant size.

A head's state S (D, E) is a memory from keys to values. Token t lets it fade, takes out what it holds under the token's
key, by the share beta, puts the token's value there instead, and is answered what it then holds under the query
(equation 10, transposed)::

    S_t = exp(log_decay_t) S_{t-1}
    S_t = S_t + k_t (beta_t (v_t - k_t^T S_t))^T
    out_t = q_t^T S_t / sqrt(D)

``gated_delta_rule`` computes a whole sequence by chunks of 64 tokens (its section 3.3): within a chunk by matrix
products under a triangular mask, from chunk to chunk by the state, so in time linear in N.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dma_lab.kernels.choice import note_kernel
from dma_lab.kernels.delta import fla
from dma_lab.kernels.delta.walk import walk_chunks, walk_chunks_apart
from dma_lab.kernels.documents import Documents, document_bounds
from dma_lab.messages import warn_once

CHUNK = 64
"""Tokens that are computed at once; fla's kernels have the same."""


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, document_ids: Tensor | Documents | None = None
) -> Tensor:
    """Every token's answer from a state that is empty where its document begins; sums and state in float32 or more.

    Args:
        q, k: (B, N, K, D), of length 1 each; a head of theirs serves H / K heads of v, in their order.
        v: (B, N, H, E), of the same dtype.
        log_decay: (B, N, H), at most 0; in float32 one of -x adds a relative error of x / 2^24 to its chunk's fades.
        beta: (B, N, H), from 0 to 1.
        document_ids: (B, N), non-decreasing; None: a row is one document.

    Returns:
        (B, N, H, E) of v's dtype.
    """
    B, N = v.shape[:2]
    start_bn = None if document_ids is None else document_bounds(document_ids, B, N, v.device)[0]
    if v.is_cuda:
        reason = fla.unsupported(v, q.shape[-1])
        if reason is None:
            note_kernel("gated delta rule (fla)")
            return fla.gated_delta_rule(q, k, v, log_decay, beta, start_bn)
        warn_once(
            f"fla's kernels of the gated delta rule are not used ({reason}); plain PyTorch runs instead, chunk by "
            "chunk, slowly."
        )
    note_kernel("gated delta rule (PyTorch)")
    with torch.autocast(v.device.type, enabled=False):
        return _chunked(q, k, v, log_decay, beta, start_bn).to(v.dtype)


def delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: q and k (B, K, D), v (B, H, E), log_decay and beta (B, H), the state (B, H, D, E) before it -> the
    answer (B, H, E) of v's dtype, and the state after it."""
    H, K = v.shape[1], k.shape[1]
    with torch.autocast(v.device.type, enabled=False):
        q_bhd, k_bhd = (heads.to(state.dtype).repeat_interleave(H // K, dim=1) for heads in (q, k))
        state = log_decay.to(state.dtype).exp()[..., None, None] * state
        held_bhe = torch.einsum("bhd,bhde->bhe", k_bhd, state)
        state = state + k_bhd[..., None] * (beta[..., None] * (v - held_bhe))[:, :, None]
        out_bhe = torch.einsum("bhd,bhde->bhe", q_bhd, state) * q.shape[-1] ** -0.5
    return out_bhe.to(v.dtype), state


def _chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, start_bn: Tensor | None) -> Tensor:
    """The same in plain PyTorch. Of a document's tokens no bit depends on another document, or on what comes later.

    x are chunks and n their tokens, g the heads of v that a head of k serves; ``faded`` is the logarithm of the decay
    since the chunk began, or the token's document where that is later.
    """
    (_, N, K, D), (H, E), dtype = q.shape, v.shape[2:], torch.promote_types(v.dtype, torch.float32)
    q, k = (_by_heads(heads.to(dtype))[:, :, None] for heads in (q, k))  # (B, K, 1, x, n, D)
    v, beta = (_by_heads(each.to(dtype)).unflatten(1, (K, H // K)) for each in (v, beta[..., None]))
    place_n = torch.arange(CHUNK, device=v.device)
    if start_bn is None:
        first_bxn = place_n.new_full((1, v.shape[3], CHUNK), -1)
        first_bxn[:, 0] = 0
    else:  # a document's first place in the chunk; negative where it lies in an earlier one
        first_bxn = _chunks(start_bn) - CHUNK * torch.arange(v.shape[3], device=v.device)[:, None]
    seen_bxnj = (place_n <= place_n[:, None]) & (place_n >= first_bxn[..., None])
    faded_bkgxn = (seen_bxnj.to(dtype) @ _chunks(log_decay.to(dtype))).permute(0, 3, 1, 2).unflatten(1, (K, H // K))
    fade = (faded_bkgxn[..., None] - faded_bkgxn[..., None, :]).masked_fill(~seen_bxnj[:, None, None], -torch.inf).exp()
    from_before = faded_bkgxn.masked_fill((first_bxn >= 0)[:, None, None], -torch.inf).exp()[..., None]
    stays = (place_n >= first_bxn[..., -1:])[:, None, None]
    to_end = (faded_bkgxn[..., -1:] - faded_bkgxn).masked_fill(~stays, -torch.inf).exp()[..., None]

    # What each token puts in, given the chunk's tokens before it: a triangular system with a unit diagonal.
    system = beta * fade * (k @ k.mT)
    writes = torch.linalg.solve_triangular(
        system, torch.cat((beta * v, beta * from_before * k), dim=-1), upper=False, unitriangular=True
    )
    value_bkgxne, takes_bkgxnd = writes.split((E, D), dim=-1)
    walk = walk_chunks_apart if torch.compiler.is_compiling() else walk_chunks
    states, puts = walk(value_bkgxne, takes_bkgxnd, to_end * k, from_before[..., -1:, :])
    out = (D**-0.5 * from_before * q) @ states + (D**-0.5 * fade * (q @ k.mT)) @ puts
    return out.flatten(1, 2).movedim(1, 3).flatten(1, 2)[:, :N]


def _chunks(x: Tensor) -> Tensor:
    """(B, N, ...) -> (B, x, n, ...), filled up with zeros."""
    missing = -x.shape[1] % CHUNK
    return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, missing)).unflatten(1, (-1, CHUNK))


def _by_heads(x: Tensor) -> Tensor:
    """(B, N, heads, D) -> (B, heads, x, n, D)."""
    return _chunks(x).movedim(3, 1)
