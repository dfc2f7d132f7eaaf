"""What a run trains on and is scored by. The rest of the pipeline is the same for every task."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from dma_lab.data.batches import documents_in, refuse_repeat, sequences_from, validation_batches
from dma_lab.data.build import prepare_data
from dma_lab.data.module import DrawSequences
from dma_lab.data.mqar import RecallSettings, recall_sequences, recall_validation
from dma_lab.data.settings import DataSettings
from dma_lab.evaluation.mqar import score_recall
from dma_lab.evaluation.perplexity import score_validation
from dma_lab.messages import UserError
from dma_lab.model import Transformer
from dma_lab.train.plan import RunPlan
from dma_lab.train.settings import TrainSettings


class Score(Protocol):
    """What a validation came to."""

    def metrics(self) -> dict[str, Any]:
        """The ``val_…`` figures of metrics.jsonl and summary.json."""

    def save(self, path: Path) -> None:
        """Write the sums behind the figures to ``path`` (.npz), and further files beside it."""


class Task(Protocol):
    """Data and its score. One task is prepared per run, from the settings alone."""

    vocab_size: int
    fingerprint: str
    """Equal fingerprints, equal batches at equal seeds."""
    unigram_entropy: float
    """Nats per token: what knowing frequencies alone gives."""
    tokenizer_loses: str | None
    """What its tokenizer loses of text, in words; None where nothing, or where there is none."""

    def draw(self, plan: RunPlan) -> DrawSequences:
        """The run's training sequences.

        Raises:
            UserError: the data cannot serve the plan.
        """

    def batch_of(self, plan: RunPlan, step: int) -> dict[str, Any]:
        """Where the batch of step ``step`` (1 is the first) came from, in plain values: ``sequences``, the first and
        the last of the endless row, and ``documents`` of the training corpus, by number, where there are any."""

    def score(self, model: Transformer, plan: RunPlan, sequences: int, device: torch.device) -> Score:
        """Validate, ``sequences`` at a time, on data that is the same for every backend and seed."""


class TextTask:
    """Next-token prediction on a corpus."""

    def __init__(self, data: DataSettings, settings: TrainSettings, tokens_needed: int) -> None:
        self.data_settings, self.settings = data, settings
        self.data = prepare_data(data, tokens_needed)
        self.vocab_size = self.data.vocab_size
        self.fingerprint = self.data.fingerprint
        self.unigram_entropy = self.data.unigram_entropy
        self.tokenizer_loses = self.data.tokenizer_loses

    def draw(self, plan: RunPlan) -> DrawSequences:
        refuse_repeat(self.data, plan.tokens, self.data_settings.allow_repeat)
        return partial(
            sequences_from,
            self.data,
            seed=self.settings.seed,
            context=plan.shape.max_seq_len,
            mask_documents=self.data_settings.mask_documents,
        )

    def batch_of(self, plan: RunPlan, step: int) -> dict[str, Any]:
        first, last = _sequences_of(plan, step)
        documents = documents_in(
            self.data,
            seed=self.settings.seed,
            first=first,
            count=plan.sequences_per_step,
            context=plan.shape.max_seq_len,
        )
        return {"sequences": [first, last], "documents": documents}

    def score(self, model: Transformer, plan: RunPlan, sequences: int, device: torch.device) -> Score:
        batches = validation_batches(
            self.data,
            context=plan.shape.max_seq_len,
            sequences=sequences,
            max_tokens=self.settings.trainer.validation_tokens,
        )
        return score_validation(
            model,
            batches,
            n_documents=len(self.data.validation_document_starts),
            mask_documents=self.data_settings.mask_documents,
            device=device,
        )


class RecallTask:
    """Multi-query associative recall. Its loss counts the queries alone, and so does all that is derived from it."""

    tokenizer_loses: str | None = None

    def __init__(self, data: RecallSettings, settings: TrainSettings) -> None:
        self.data, self.settings = data, settings
        self.vocab_size = data.vocab_size
        self.fingerprint = data.fingerprint
        # A value is any of the upper half: what a model knows that recalls nothing.
        self.unigram_entropy = math.log(data.vocab_size // 2)
        validated = settings.trainer.validation_tokens // data.size.length
        self.examples = validated - validated % len(data.validated_pairs)
        if not self.examples:
            raise UserError(
                f"trainer.validation_tokens={settings.trainer.validation_tokens} holds {validated} examples of "
                f"data.size.length={data.size.length}; give at least {len(data.validated_pairs) * data.size.length}."
            )

    def draw(self, plan: RunPlan) -> DrawSequences:
        numbers, micro = (
            len(self.data.pairs),
            plan.sequences_per_step // plan.accumulate // self.settings.trainer.processes,
        )
        if micro % numbers:
            # Then micro-batches would hold unequal numbers of queries, and their split would weigh on the gradient.
            raise UserError(
                f"data.size.pairs={self.data.pairs}: a micro-batch of {micro} sequences does not hold {numbers} "
                "numbers of pairs equally often; choose trainer.micro_batch_sequences or trainer.tokens_per_step "
                "so that it does."
            )
        return partial(recall_sequences, self.data, seed=self.settings.seed)

    def batch_of(self, plan: RunPlan, step: int) -> dict[str, Any]:
        return {"sequences": list(_sequences_of(plan, step))}

    def score(self, model: Transformer, plan: RunPlan, sequences: int, device: torch.device) -> Score:
        batches = recall_validation(self.data, examples=self.examples, sequences=sequences)
        return score_recall(model, batches, device=device)


def _sequences_of(plan: RunPlan, step: int) -> tuple[int, int]:
    return (step - 1) * plan.sequences_per_step, step * plan.sequences_per_step - 1


def prepare_task(settings: TrainSettings, tokens_needed: int) -> Task:
    """The task that ``settings.data`` describes.

    Raises:
        UserError: for anything in the settings or the data that a user can fix.
    """
    if isinstance(settings.data, RecallSettings):
        return RecallTask(settings.data, settings)
    return TextTask(settings.data, settings, tokens_needed)
