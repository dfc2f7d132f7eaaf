"""What a run trains on and is scored by. The rest of the pipeline is the same for every task."""

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from dma_lab.data.batches import refuse_repeat, sequences_from, validation_batches
from dma_lab.data.build import prepare_data
from dma_lab.data.module import DrawSequences
from dma_lab.evaluation.perplexity import score_validation
from dma_lab.model import Transformer
from dma_lab.train.plan import RunPlan
from dma_lab.train.settings import TrainSettings


class Score(Protocol):
    """What a validation came to."""

    def metrics(self) -> dict[str, float]:
        """The ``val_…`` figures of metrics.jsonl and summary.json."""

    def save(self, path: Path) -> None:
        """Write what the figures were summed from to ``path`` (.npz), and further files beside it."""


class Task(Protocol):
    """Data and its score. One task is prepared a run, from the settings alone."""

    vocab_size: int
    fingerprint: str
    """Equal fingerprints, equal batches at equal seeds."""
    facts: dict[str, Any]
    """What the summary says of the data."""

    def draw(self, plan: RunPlan) -> DrawSequences:
        """The run's training sequences.

        Raises:
            UserError: the data cannot serve the plan.
        """

    def score(self, model: Transformer, plan: RunPlan, sequences: int, device: torch.device) -> Score:
        """Validate, ``sequences`` at a time, on what is the same for every backend and seed."""


class TextTask:
    """Next-token prediction on a corpus."""

    def __init__(self, settings: TrainSettings, tokens_needed: int) -> None:
        self.settings = settings
        self.data = prepare_data(settings.data, tokens_needed)
        self.vocab_size = self.data.vocab_size
        self.fingerprint = self.data.fingerprint
        self.facts = {"unigram_entropy": self.data.unigram_entropy}

    def draw(self, plan: RunPlan) -> DrawSequences:
        settings = self.settings
        refuse_repeat(self.data, plan.tokens, settings.data.allow_repeat)
        return partial(
            sequences_from,
            self.data,
            seed=settings.seed,
            context=plan.shape.max_seq_len,
            mask_documents=settings.data.mask_documents,
        )

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
            mask_documents=self.settings.data.mask_documents,
            device=device,
        )


def prepare_task(settings: TrainSettings, tokens_needed: int) -> Task:
    """The task that ``settings.data`` names.

    Raises:
        UserError: for anything in the settings or the data that a user can mend.
    """
    return TextTask(settings, tokens_needed)
