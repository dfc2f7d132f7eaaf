"""The lifetimes of a finished DMA run: noted in its directory, or measured from its last checkpoint and noted then."""

import contextlib

from dma_lab.data.batches import validation_batches
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.lifetimes import Lifetimes, measure_lifetimes
from dma_lab.messages import UserError
from dma_lab.report.collect import Run

_TOKENS = 8192
"""Validation tokens looked at, or one sequence where that is longer."""


def run_lifetimes(run: Run) -> Lifetimes:
    """Lifetimes on the first validation tokens, written to the run's lifetimes.npz the first time.

    Raises:
        UserError: the run is not of text, or its checkpoint or its token files are gone or are not its own.
    """
    noted = run.path / "lifetimes.npz"
    if noted.exists():
        try:
            return Lifetimes.load(noted)
        except Exception as error:  # whatever a damaged archive raises
            raise UserError(f"{noted} is damaged ({error}); delete it to have it made again.") from error
    trained = open_run(run.path)
    settings, context = trained.config["data"], trained.context
    if settings["source"] == "mqar":
        raise UserError("lifetimes are measured on text, and it was trained on recall.")
    batches = validation_batches(
        trained.data, context=context, sequences=max(1, _TOKENS // context), max_tokens=max(_TOKENS, context)
    )
    batch = next(batches)
    lifetimes = measure_lifetimes(
        trained.model(), batch["tokens"], batch["document_ids"] if settings["mask_documents"] else None
    )
    with contextlib.suppress(OSError):  # runs that one may only read are measured every time
        lifetimes.save(noted)
    return lifetimes
