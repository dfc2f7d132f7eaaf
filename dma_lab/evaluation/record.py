"""``evaluation/SUITE.json`` in a run's directory: every finished cell of a suite, kept when the evaluation is killed.

A *cell* is the smallest thing that is computed whole: one context length, one needle at one length and depth. It is
named by everything that defines its scores: the weights, the machine that computed with them and its precision, the
suite's settings. So a second evaluation computes what is missing and nothing twice, and another setting, machine or
checkpoint adds cells beside the old ones.
"""

import hashlib
from contextlib import ExitStack
from typing import Any

import torch

from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.files import write_whole
from dma_lab.locks import hold
from dma_lab.messages import MishapError, UserError
from dma_lab.seals import digest_of, sealed, unsealed


class EvaluationRecord:
    """The cells of one suite. Use as a context manager: a suite of a run is evaluated by one process at a time.

    Args:
        machine: what rounds the scores (``Machine.facts``).

    Raises:
        UserError: another process holds it, or the file is damaged.
    """

    def __init__(self, run: TrainedRun, suite: str, machine: dict[str, str]) -> None:
        self.folder = run.path / "evaluation"
        self.file = self.folder / f"{suite}.json"
        self.suite = suite
        self._same = {"step": run.step, "weights": weights_digest(run), **machine}
        self._cells: list[dict[str, Any]] = []

    def __enter__(self) -> "EvaluationRecord":
        self.folder.mkdir(exist_ok=True)
        with ExitStack() as refused:
            self._lock = refused.enter_context((self.folder / f"{self.suite}.lock").open("w"))
            self._begin()
            refused.pop_all()
        return self

    def _begin(self) -> None:
        try:
            hold(self._lock)
        except BlockingIOError:
            raise UserError(f"{self.file} is being written by another evaluation; wait for it or stop it.") from None
        except OSError as error:
            raise MishapError(
                f"{self._lock.name} cannot be locked ({error.strerror}), so another evaluation might write too; put "
                "the run on a file system that has locks."
            ) from error
        if self.file.exists():
            try:
                self._cells = unsealed(self.file.read_text(encoding="utf-8"))["cells"]
            except ValueError as error:
                raise UserError(f"{self.file} is damaged ({error}); delete it to evaluate again.") from error

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def scores(self, cell: dict[str, Any]) -> dict[str, Any] | None:
        """What a finished cell came to; None of one that is to be computed."""
        wanted = self._same | cell
        return next((entry["scores"] for entry in self._cells if entry["cell"] == wanted), None)

    def name(self, cell: dict[str, Any]) -> str:
        """Eight hex digits for files that belong to the cell."""
        return digest_of(self._same | cell, size=4)

    def add(self, cell: dict[str, Any], scores: dict[str, Any]) -> None:
        """Keep a finished cell. The file is replaced whole: no reader and no power cut finds half of it."""
        self._cells.append({"cell": self._same | cell, "scores": scores})
        write_whole(self.file, sealed({"suite": self.suite, "cells": self._cells}))


def weights_digest(run: TrainedRun) -> str:
    """Names the weights: every parameter's name, type, shape and bytes, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(run.weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
