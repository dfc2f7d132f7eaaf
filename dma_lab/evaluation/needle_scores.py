"""What a model makes of needles: does it answer, and how much more probable do they make their own values?"""

import math
import re
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from tokenizers import Tokenizer

from dma_lab.data.lossy import unknown_id_of
from dma_lab.evaluation import ruler
from dma_lab.evaluation.generate import Sampling, cache_pays, generate
from dma_lab.evaluation.needle import Sample
from dma_lab.model import Transformer


def score_samples(
    model: Transformer,
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    eot_id: int,
    batch_tokens: int,
    on_samples: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Means over ``samples``, and standard errors of two of them.

    Returns:
        Of what is generated, greedily, up to the EOT or RULER's 128 tokens: ``exact``, share of samples where it
        begins with the answer, a colon before it or none; ``substring``, share of values that it has somewhere, RULER's
        score. ``log_probability`` and ``log_probability_control``: nats per token of the values, after the prompt and
        after its control, which has other values in their place; ``gain``: the first less the second, 0 of a model
        that does not read the needles' values.
    """
    exact, substring, given, control = [], [], [], []
    unknown = unknown_id_of(tokenizer)
    rows = max(1, batch_tokens // max(len(sample.prompt) + ruler.NEW_TOKENS for sample in samples))
    for at in range(0, len(samples), rows):
        batch = samples[at : at + rows]
        given += value_log_probabilities(model, batch, [sample.prompt for sample in batch])
        control += value_log_probabilities(model, batch, [sample.control for sample in batch])
        generated = generate(
            model,
            [sample.prompt for sample in batch],
            max_new_tokens=ruler.NEW_TOKENS,
            sampling=Sampling(),
            vocab_size=vocab_size,
            stop_token=eot_id,
            use_cache=cache_pays(model, len(batch[0].prompt), ruler.NEW_TOKENS),
        )
        for sample, tokens in zip(batch, generated, strict=True):
            text = tokenizer.decode(tokens)
            exact.append(begins_with_answer(text, given_back(tokenizer, unknown, ", ".join(sample.values))))
            values = [given_back(tokenizer, unknown, value) for value in sample.values]
            substring.append(ruler.string_match(text, values))
        on_samples(min(at + rows, len(samples)))
    gains = [a - b for a, b in zip(given, control, strict=True)]
    return {
        "exact": fmean(exact),
        "substring": fmean(substring),
        "substring_error": _standard_error(substring),
        "log_probability": fmean(given),
        "log_probability_control": fmean(control),
        "gain": fmean(gains),
        "gain_error": _standard_error(gains),
    }


def begins_with_answer(text: str, answer: str) -> bool:
    """The answer, a colon before it or none, and no letter or digit that goes on behind it."""
    return re.match(rf"\s*:?\s*{re.escape(answer)}(?![^\W_])", text) is not None


def given_back(tokenizer: Tokenizer, unknown: int | None, text: str) -> str:
    """``text`` as a model can write it: one whose tokenizer loses text has other spaces, or lower case.

    What holds the ``unknown`` token is left as it is, which no such model can write.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return text if unknown in ids else tokenizer.decode(ids).strip()


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
