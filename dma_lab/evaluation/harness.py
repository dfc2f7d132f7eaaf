"""A trained model as lm-eval sees one (its ``TemplateLM``): log-likelihoods of answers, and greedy text.

What is cut off, what stands before a text and what ends an answer is as in lm-eval's own Hugging Face model
(``HFLM``), so that both give the same scores on the same checkpoint: texts are tokenized without an EOT, a text
without context is predicted from the EOT, and what is longer than the model takes loses its beginning.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer
from torch import Tensor

from dma_lab.evaluation.generate import Sampling, cache_pays, generate
from dma_lab.messages import UserError, warn_once
from dma_lab.model import Transformer
from dma_lab.progress import WorkProgress

DEFAULT_NEW_TOKENS = 256
"""Tokens that are generated for a task that does not say how many, as in ``HFLM``."""

Request = tuple[Any, list[int], list[int]]
"""What lm-eval calls it (ignored), context and continuation."""


class HarnessModel(TemplateLM):
    """Any backend's model for lm-eval.

    Args:
        model: in eval mode, on its device.
        eot_id: the token that begins and ends documents.
        vocab_size: ids below it can be generated; the rows of the embedding beyond are filling.
        max_length: tokens that the model is given at most.
        batch_tokens: tokens that it is given at a time, rounded to whole texts.
    """

    backend = "causal"

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        eot_id: int,
        vocab_size: int,
        max_length: int,
        batch_tokens: int,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.eot_id, self.vocab_size = eot_id, vocab_size
        self.max_length, self.batch_tokens = max_length, batch_tokens
        self._device = model.embedding.weight.device
        self.task = "requests"
        """What the progress bar says is being done."""
        self.loses: str | None = None
        """What the tokenizer loses of text, in words."""

    @property
    def eot_token_id(self) -> int:
        return self.eot_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokenizer.encode(string, add_special_tokens=False).ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Nats of each answer after its context, and whether greedy decoding would give it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        """Nats of each continuation, summed; and whether it is what greedy decoding would give."""
        # Answers of one token to one question are read off the same pass, as are all requests with the same input.
        sharing: dict[tuple[int, ...], list[int]] = {}
        for index, (said, context, continuation) in enumerate(requests):
            self._check_continuation(said, continuation)
            inputs = (context + continuation)[-(self.max_length + 1) : -1]
            sharing.setdefault(tuple(inputs), []).append(index)
        answers = [(0.0, False)] * len(requests)
        done = 0
        with WorkProgress(self.task) as progress:
            for batch in self._batches(list(sharing), len):
                # Filled up on the right, where a causal model does not look.
                tokens_bn = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
                for row_n, inputs in zip(tokens_bn, batch, strict=True):
                    row_n[: len(inputs)] = torch.tensor(inputs)
                logits_bnv = self.model(tokens_bn.to(self._device))
                for inputs, logits_nv in zip(batch, logits_bnv, strict=True):
                    for index in sharing[inputs]:
                        continuation = requests[index][2]
                        answers[index] = _score(logits_nv[len(inputs) - len(continuation) : len(inputs)], continuation)
                        done += 1
                progress.update(done / len(requests), f"{done:,} of {len(requests):,} answers")
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts: each token once, from as much as fits.

        Raises:
            UserError: the tokenizer loses text, which would cost nothing.
        """
        if self.loses is not None:
            raise UserError(
                f"{self.task} asks for the nats of whole texts, and this run's tokenizer loses {self.loses}, which "
                "would cost nothing: leave the task out."
            )
        windows: list[Request] = []
        text_of: list[int] = []
        for index, request in enumerate(requests):
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, pairs):
                windows.append((None, context, continuation))
                text_of.append(index)
        totals = [0.0] * len(requests)
        for index, (nats, _) in zip(text_of, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += nats
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What each context is continued with, up to the first of its task's stop strings."""
        if self.loses is not None:
            warn_once(
                f"{self.task}: this run's tokenizer loses {self.loses}, so it cannot write every answer to the letter, "
                "and scores lower where that is asked for."
            )
        settled = [_settled(request.args[1], self._spelled_eot()) for request in requests]
        prompts = [
            self._prompt(request.args[0], new_tokens)
            for request, (new_tokens, _, _) in zip(requests, settled, strict=True)
        ]
        texts = [""] * len(requests)
        done = 0
        with WorkProgress(self.task) as progress:
            for how in dict.fromkeys(settled):
                new_tokens, stops, sampling = how
                same = [index for index, other in enumerate(settled) if other == how]
                for batch in self._batches(same, lambda index, new=new_tokens: len(prompts[index]) + new):  # type: ignore[misc]
                    rows = generate(
                        self.model,
                        [prompts[index] for index in batch],
                        max_new_tokens=new_tokens,
                        sampling=sampling,
                        vocab_size=self.vocab_size,
                        stop_token=self.eot_id,
                        first=done,
                        stops=lambda new, stops=stops: any(stop in self.tokenizer.decode(new) for stop in stops),  # type: ignore[misc]
                        use_cache=cache_pays(self.model, len(prompts[batch[0]]), new_tokens),
                    )
                    for index, row in zip(batch, rows, strict=True):
                        texts[index] = postprocess_generated_text(self.tokenizer.decode(row), list(stops), None)
                    done += len(batch)
                    progress.update(done / len(requests), f"{done:,} of {len(requests):,} texts")
        return texts

    def _batches(self, items: list[Any], length: Callable[[Any], int]) -> Any:
        """The longest first: no estimate is too low, and what does not fit into memory shows at once."""
        ordered = sorted(items, key=length, reverse=True)
        at = 0
        while at < len(ordered):
            rows = max(1, self.batch_tokens // length(ordered[at]))
            yield ordered[at : at + rows]
            at += rows

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        room = self.max_length - new_tokens
        if room < 1:
            raise UserError(
                f"{self.task} generates {new_tokens} tokens and suite.max_length={self.max_length} leaves no room for "
                f"a prompt: give at least {new_tokens + 1}, better several times as many."
            )
        return self.tok_encode(context)[-room:] or [self.eot_id]

    def _check_continuation(self, said: Any, continuation: list[int]) -> None:
        if not continuation:
            raise UserError(f"{self.task} asks for an answer without tokens, {said[1]!r} after …{said[0][-40:]!r}.")
        if len(continuation) > self.max_length:
            raise UserError(
                f"{self.task} has an answer of {len(continuation)} tokens and the model takes suite.max_length="
                f"{self.max_length}: give at least as many as the answer."
            )

    def _spelled_eot(self) -> str:
        return self.tokenizer.decode([self.eot_id], skip_special_tokens=False)


def _score(logits_cv: Tensor, continuation: list[int]) -> tuple[float, bool]:
    tokens_c = torch.tensor(continuation, device=logits_cv.device)
    nats_c = logits_cv.float().log_softmax(-1).gather(-1, tokens_c[:, None]).double()
    return float(nats_c.sum()), bool((logits_cv.argmax(-1) == tokens_c).all())


def _settled(arguments: dict[str, Any], eot: str) -> tuple[int, tuple[str, ...], Sampling]:
    """How many tokens, what ends them and how they are chosen, from a task's ``generation_kwargs``."""
    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(arguments, DEFAULT_NEW_TOKENS))
    stops = tuple(stop for stop in handle_stop_sequences(kwargs.pop("until"), eos=eot) if stop)
    new_tokens, draws = kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
    temperature, top_p = kwargs.pop("temperature", 0.0), kwargs.pop("top_p", 1.0)
    if kwargs:
        raise UserError(f"A task generates with {', '.join(kwargs)}, which is not supported; leave the task out.")
    return new_tokens, stops, Sampling(temperature, top_p) if draws else Sampling()
