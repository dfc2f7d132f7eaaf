"""Text from a trained model, token by token: greedy, or drawn at a temperature from the most probable tokens (top-p).

Sequences of a batch advance together from position 0: at every step a sequence is fed its prompt's next token while it
has one, and its own last choice from then on. So prompts of different lengths need no padding, which a backend that
chooses its keys would choose among, and every sequence gets what it would get alone. A prompt costs a step per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dma_lab.messages import UserError
from dma_lab.model import Transformer
from dma_lab.threads import flops_of, threads_for

_STEPS_PER_PASS = {"cuda": 8, "cpu": 256}
"""A pass over a whole batch of prompts takes about as long as so many steps with the cache."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_p: draw among the fewest most probable tokens whose probabilities sum to at least this much (nucleus
            sampling, Holtzman et al., arXiv 1904.09751); 1 draws among all.

    Raises:
        UserError: a value that cannot be.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: choose 0 for the most probable token, or a number above.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: choose a share above 0, up to 1 for all tokens.")


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    vocab_size: int,
    stop_token: int | None = None,
    stops: Callable[[list[int]], bool] = lambda new: False,
    seed: int = 0,
    first: int = 0,
    use_cache: bool = True,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        prompts: token ids, at least one each.
        vocab_size: ids below it can be chosen; the rows of the embedding beyond are filling.
        stop_token: ends a sequence that chooses it, and is not returned.
        stops: called with a sequence's new tokens after each one; returns whether the sequence ends there.
        seed: with a prompt's place fixes every draw for it, whatever else is in the batch.
        first: the place of ``prompts[0]``.
        use_cache: decode with each backend's cache; else run the whole sequence again for each token, which costs more
            arithmetic and, when long prompts get short answers, less time.
        on_step: called with the number of steps done and the largest number possible.

    Returns:
        The new tokens of each prompt, at most ``max_new_tokens``.

    Raises:
        UserError: a prompt is longer than the model takes, its new tokens counted.
    """
    assert all(prompts), "a prompt has at least one token, such as the EOT"
    lengths = [len(prompt) for prompt in prompts]
    steps = max(lengths) + max_new_tokens - 1
    if steps > model.shape.max_seq_len:
        raise UserError(
            f"A prompt of {max(lengths)} tokens and {max_new_tokens} new ones need a context of {steps} tokens and the "
            f"model takes {model.shape.max_seq_len}: give a shorter prompt or fewer new tokens."
        )
    device = model.embedding.weight.device
    tokens_bn = torch.zeros(len(prompts), steps + 1, dtype=torch.int64)
    for row_n, prompt in zip(tokens_bn, prompts, strict=True):
        row_n[: len(prompt)] = torch.tensor(prompt)
    tokens_bn = tokens_bn.to(device)
    draws = [
        np.random.Philox(key=np.array([seed % 2**64, row], dtype=np.uint64))
        for row in range(first, first + len(prompts))
    ]
    new: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    cache = model.new_cache(len(prompts)) if use_cache else None
    with threads_for(flops_of(model, len(prompts) * (1 if use_cache else steps)), device):
        for step in range(steps):
            choosing = [row for row in sorted(running) if step >= lengths[row] - 1]
            if cache is not None:
                logits_bv = model.step(tokens_bn[:, step : step + 1], cache)[:, 0]
            elif choosing:
                logits_bv = model(tokens_bn[:, : step + 1])[:, -1]
            if choosing:
                uniform_c = [(int(draws[row].random_raw()) >> 11) * 2.0**-53 for row in choosing]
                chosen_c = choose(
                    logits_bv[choosing, :vocab_size], sampling, torch.tensor(uniform_c, dtype=torch.float64)
                )
                tokens_bn[choosing, step + 1] = chosen_c
                for row, token in zip(choosing, chosen_c.tolist(), strict=True):
                    if token != stop_token:
                        new[row].append(token)
                    if token == stop_token or len(new[row]) == max_new_tokens or stops(new[row]):
                        running.discard(row)
            on_step(step + 1, steps)
            if not running:
                break
    return new


def cache_pays(model: Transformer, prompt_tokens: int, new_tokens: int) -> bool:
    """Whether decoding with the cache, a step per token of the prompt, takes less time than a pass per new token."""
    return _STEPS_PER_PASS[model.embedding.weight.device.type] * new_tokens >= prompt_tokens


def choose(logits_bv: Tensor, sampling: Sampling, uniform_b: Tensor) -> Tensor:
    """The next tokens, int64 (B,), from logits (B, V) and numbers float64 (B,) drawn uniformly from [0, 1)."""
    if sampling.temperature == 0:
        return logits_bv.argmax(-1)
    kept_bv, token_bv = nucleus(logits_bv, sampling)
    # The token in whose stretch of the cumulated probabilities the drawn number falls.
    cumulated_bv = kept_bv.cumsum(-1)
    target_b1 = uniform_b.to(logits_bv.device)[:, None] * cumulated_bv[:, -1:]
    rank_b1 = torch.searchsorted(cumulated_bv, target_b1, right=True)
    # A GPU cumulates in another order at every place: beyond the kept tokens a sum may still grow by its last bit.
    last_b1 = (kept_bv > 0).sum(-1, keepdim=True) - 1
    return token_bv.gather(-1, rank_b1.minimum(last_b1))[:, 0]


def nucleus(logits_bv: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities float64 (B, V), most probable first and zero beyond the top-p; and the tokens they belong to."""
    scaled_bv = (logits_bv.double() - logits_bv.amax(-1, keepdim=True)) / sampling.temperature
    ordered_bv, token_bv = scaled_bv.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_bv = ordered_bv.cumsum(-1) - ordered_bv
    return ordered_bv.where(before_bv < sampling.top_p, 0.0), token_bv
