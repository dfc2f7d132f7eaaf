"""Decoding over a cache that keeps only keys that may still be seen: at most window + recent per head, however long the
text.

A slot's ``arrived`` says what it holds: position ``p >= 0`` for a key among the ``window`` best, ``-2 - p`` for one
that lives only because it is recent, ``-1`` for nothing. A key in neither set has left for ever, so its slot is free.
"""

import torch
from torch import Tensor

from dma_lab.kernels.choice import choose_triton

EMPTY = -1


def admit_key(
    k_cache: Tensor,
    v_cache: Tensor,
    score_cache: Tensor,
    arrived_cache: Tensor,
    k: Tensor,
    v: Tensor,
    score: Tensor,
    position: int,
    window: int,
    *,
    recent: int = 0,
    impl: str = "auto",
) -> None:
    """Put the key that arrives at ``position`` into the cache, in place, and free the slots of those that leave by it.

    Afterwards exactly the keys live at ``position`` are held: those for which ``prefix_topk_expiry`` says
    ``j <= position < expiry_j``. Positions are admitted one after another from 0.

    Args:
        k_cache, v_cache: (B, K, S, D) and (B, K, S, D_v), contiguous, S = window + recent.
        score_cache: float32 (B, K, S).
        arrived_cache: int32 (B, K, S), filled with ``EMPTY`` at first.
        k, v, score: (B, K, D), (B, K, D_v) and (B, K), the new key's.
        window, recent, impl: as in ``prefix_topk_expiry``.

    Raises:
        ValueError: naming the argument, when a shape does not fit.
    """
    S = arrived_cache.shape[-1]
    if window + recent != S:
        raise ValueError(f"arrived_cache has {S} slots and window + recent is {window + recent}: they must agree.")
    for name, cache, new in (("k", k_cache, k), ("v", v_cache, v), ("score", score_cache, score)):
        if cache.shape[:2] + cache.shape[3:] != new.shape or cache.shape[:3] != arrived_cache.shape:
            raise ValueError(
                f"{name} has shape {tuple(new.shape)}, which does not fit {name}_cache {tuple(cache.shape)}."
            )
        if not cache.is_contiguous():
            raise ValueError(f"{name}_cache must be contiguous.")
    if choose_triton(impl, k.device):
        from dma_lab.kernels.decode.triton import admit_key_triton

        admit_key_triton(k_cache, v_cache, score_cache, arrived_cache, k, v, score, position, window, recent)
        return
    score = score.to(score_cache.dtype)
    best_bks = arrived_cache >= 0
    # The lowest of the best, the oldest among equals, makes way for a key that scores no less.
    worth_bks, worth_bk1 = _comparable(score_cache), _comparable(score)[..., None]
    lowest_bk1 = worth_bks.masked_fill(~best_bks, torch.inf).amin(-1, keepdim=True)
    oldest_bks = torch.where(best_bks & (worth_bks == lowest_bk1), arrived_cache, position)
    loser_bk1 = oldest_bks.argmin(-1, keepdim=True)
    full_bk1 = best_bks.sum(-1, keepdim=True) >= window
    enters_bk1 = ~full_bk1 | (worth_bk1 >= lowest_bk1)
    slot_s = torch.arange(S, device=k.device)
    loses_bks = (slot_s == loser_bk1) & full_bk1 & enters_bk1
    arrived_bks = torch.where(loses_bks, -2 - arrived_cache, arrived_cache)
    arrived_bks = arrived_bks.masked_fill((arrived_bks <= -2) & (-2 - arrived_bks <= position - recent), EMPTY)

    tag_bk1 = torch.where(enters_bk1, position, -2 - position if recent else EMPTY)
    free_bk1 = (arrived_bks == EMPTY).to(torch.uint8).argmax(-1, keepdim=True)
    here_bks = (slot_s == free_bk1) & (tag_bk1 != EMPTY)
    arrived_cache.copy_(torch.where(here_bks, tag_bk1, arrived_bks))
    score_cache.copy_(torch.where(here_bks, score[..., None], score_cache))
    k_cache.copy_(torch.where(here_bks[..., None], k[:, :, None], k_cache))
    v_cache.copy_(torch.where(here_bks[..., None], v[:, :, None], v_cache))


def _comparable(score: Tensor) -> Tensor:
    """Numbers in the order of ``prefix_topk_expiry``: NaN, here infinite, is above all others."""
    return score.nan_to_num(nan=torch.inf, posinf=torch.finfo(score.dtype).max, neginf=-torch.inf)


def interval_attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    arrived_cache: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """What ``interval_attention`` gives for the newest query, from the keys that ``admit_key`` holds.

    Args:
        q: (B, H, 1, D).
        k_cache, v_cache, arrived_cache: as in ``admit_key``; K divides H.
        bias: float (B, K, S), added to the logits of its slot's key.
        scale, impl: as in ``interval_attention``.

    Returns:
        (B, H, 1, D_v) in v_cache's dtype; zeros where no key is held.

    Raises:
        ValueError: naming the argument, when a shape or dtype does not fit.
    """
    B, K, S, D = k_cache.shape
    if q.ndim != 4 or (q.shape[0], q.shape[2], q.shape[3]) != (B, 1, D) or q.shape[1] % K:
        raise ValueError(f"q must have shape ({B}, H, 1, {D}), H a multiple of {K}, not {tuple(q.shape)}.")
    if v_cache.shape[:3] != (B, K, S) or not q.dtype == k_cache.dtype == v_cache.dtype:
        raise ValueError(
            f"v_cache is {v_cache.dtype} {tuple(v_cache.shape)}, q {q.dtype} and k_cache {k_cache.dtype} "
            f"{tuple(k_cache.shape)}: give one dtype and the same slots."
        )
    for name, tensor in (("arrived_cache", arrived_cache), ("bias", bias)):
        if tensor is not None and tensor.shape != (B, K, S):
            raise ValueError(f"{name} must have shape ({B}, {K}, {S}), not {tuple(tensor.shape)}.")
    scale = D**-0.5 if scale is None else scale
    unsupported = f"q is {q.dtype}; they take bfloat16, float16 and float32" if q.dtype == torch.float64 else None
    if choose_triton(impl, q.device, unsupported):
        from dma_lab.kernels.decode.triton import interval_attention_decode_triton

        return interval_attention_decode_triton(q, k_cache, v_cache, arrived_cache, bias, scale)
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits_bkgs = (q.to(dtype) * scale).view(B, K, -1, D) @ k_cache.to(dtype).mT
    if bias is not None:
        logits_bkgs = logits_bkgs + bias.to(dtype)[:, :, None]
    held_bk1s = (arrived_cache != EMPTY)[:, :, None]
    logits_bkgs = logits_bkgs.masked_fill(~held_bk1s & held_bk1s.any(-1, keepdim=True), -torch.inf)
    weights_bkgs = logits_bkgs.softmax(-1).masked_fill(~held_bk1s, 0.0)
    v_bksd = v_cache.to(dtype).masked_fill(~held_bk1s.mT, 0.0)  # what lies in a free slot may be anything
    return (weights_bkgs @ v_bksd).view(B, -1, 1, v_cache.shape[-1]).to(v_cache.dtype)
