"""What a model makes of needles: does it answer, and how much more probable do they make their own values?"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from tokenizers import Tokenizer

from dma_lab.evaluation.generate import Sampling, generate
from dma_lab.evaluation.needle import Sample
from dma_lab.model import Transformer


def score_samples(
    model: Transformer,
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    new_tokens: int,
    batch_tokens: int,
    on_samples: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Means over ``samples``, and standard errors of two of them.

    Returns:
        ``exact``: share of samples whose answer greedy decoding gives token for token; ``substring``: share of values
        that the ``new_tokens`` greedy tokens spell somewhere, whatever the case (RULER's score); ``log_probability``
        and ``log_probability_without``: nats a token of the values, given the prompt with and without the needles;
        ``gain``: the first less the second, which is above 0 when the model reads needles at all.
    """
    exact, substring, with_needles, without = [], [], [], []
    rows = max(1, batch_tokens // max(len(sample.prompt) + new_tokens for sample in samples))
    for at in range(0, len(samples), rows):
        batch = samples[at : at + rows]
        with_needles += value_log_probabilities(model, batch, [sample.prompt for sample in batch])
        without += value_log_probabilities(model, batch, [sample.without for sample in batch])
        # Few tokens after many: running them again costs less time than a step for every token of the haystack.
        generated = generate(
            model,
            [sample.prompt for sample in batch],
            max_new_tokens=new_tokens,
            sampling=Sampling(),
            vocab_size=vocab_size,
            use_cache=False,
        )
        for sample, tokens in zip(batch, generated, strict=True):
            text = tokenizer.decode(tokens).lower()
            exact.append(tokens[: len(sample.answer)] == sample.answer)
            substring.append(fmean(value.lower() in text for value in sample.values))
        on_samples(min(at + rows, len(samples)))
    gains = [a - b for a, b in zip(with_needles, without, strict=True)]
    return {
        "exact": fmean(exact),
        "substring": fmean(substring),
        "substring_error": _standard_error(substring),
        "log_probability": fmean(with_needles),
        "log_probability_without": fmean(without),
        "gain": fmean(gains),
        "gain_error": _standard_error(gains),
    }


@torch.no_grad()
def value_log_probabilities(
    model: Transformer, samples: Sequence[Sample], prompts: Sequence[Sequence[int]]
) -> list[float]:
    """Mean log-probability (nats) of the tokens of each sample's values, its answer following its prompt."""
    texts = [[*prompt, *sample.answer] for sample, prompt in zip(samples, prompts, strict=True)]
    # Filled up on the right, where a causal model does not look.
    tokens_bn = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row_n, text in zip(tokens_bn, texts, strict=True):
        row_n[: len(text)] = torch.tensor(text)
    logits_bnv = model(tokens_bn.to(model.embedding.weight.device))
    means = []
    for sample, prompt, logits_nv in zip(samples, prompts, logits_bnv, strict=True):
        answer_a = torch.tensor(sample.answer, device=logits_nv.device)
        before = slice(len(prompt) - 1, len(prompt) - 1 + len(sample.answer))
        nats_a = logits_nv[before].float().log_softmax(-1).gather(-1, answer_a[:, None])[:, 0]
        means.append(float(nats_a[torch.tensor(sample.is_value, device=logits_nv.device)].double().mean()))
    return means


def _standard_error(values: Sequence[float]) -> float | None:
    """Of their mean; None of a single one."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
