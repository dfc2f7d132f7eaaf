"""When a training step is not taken, and when a run is given up.

A step whose loss or gradient is not finite changes neither weights nor optimizer state (``LanguageModel`` sees to that
on the device); it counts as a step, and is counted. A run has diverged when ``SKIPPED_IN_A_ROW`` steps in a row were
skipped, or when its loss stands far above what it was for ``HIGH_IN_A_ROW`` steps: such a model is past repair, and a
number from it would be one of the accident, not of the backend.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from dma_lab.messages import UserError

SKIPPED_IN_A_ROW = 3
"""The weights stay the same over skipped steps: three batches in a row are not bad, the weights are."""
REMEMBERED_STEPS = 256
"""Whose losses the median is taken of."""
ARMED_AFTER = 128
"""Losses that must be there: the first steps fall from ln(vocabulary), and may rise again under the warm-up."""
HIGH_FACTOR, HIGH_NATS = 1.5, 1.0
"""A loss is high above 1.5 times the median and a nat above it. A model that lost what it learnt falls back to the
corpus' unigram entropy, about twice the loss of a trained one (hence not 2); where losses are near 0, as in recall,
their ratios mean nothing (hence the nat)."""
HIGH_IN_A_ROW = 64
"""Spikes pass in fewer steps, and half of ``ARMED_AFTER`` cannot move the median."""


class DivergedError(UserError):
    """The run diverged, now or in a process before."""

    exit_status = 1


@dataclass(frozen=True)
class Verdict:
    """Why a run is given up."""

    step: int
    """At whose end it was certain."""
    since: int
    """The first step of those that show it."""
    reason: str
    """A clause."""


class DivergenceWatch:
    """Follows the losses of all steps, in order. Its state belongs to the run's: a continued run decides the same."""

    def __init__(self) -> None:
        self.steps_skipped = 0
        self.verdict: Verdict | None = None
        self._skipped_in_a_row = self._high_in_a_row = 0
        self._losses: deque[float] = deque(maxlen=REMEMBERED_STEPS)

    @property
    def loss_is_high(self) -> bool:
        """The last step's; such a state is worth keeping only if the run recovers."""
        return self._high_in_a_row > 0

    def add(self, step: int, loss: float, skipped: bool) -> None:
        """Take note of step ``step`` (1 is the run's first)."""
        if self.verdict is not None:
            return
        if skipped:
            self.steps_skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row == SKIPPED_IN_A_ROW:
                since = step - SKIPPED_IN_A_ROW + 1
                reason = f"the loss or the gradient of steps {since} to {step} was not finite"
                self.verdict = Verdict(step, since, reason)
            return
        self._skipped_in_a_row = 0
        if len(self._losses) >= ARMED_AFTER:
            median = statistics.median(self._losses)
            high = loss > max(HIGH_FACTOR * median, median + HIGH_NATS)
            self._high_in_a_row = self._high_in_a_row + 1 if high else 0
            if self._high_in_a_row == HIGH_IN_A_ROW:
                reason = (
                    f"the loss was {loss:.4g} after {HIGH_IN_A_ROW} steps above {HIGH_FACTOR:g} times its running "
                    f"median of {median:.4g}"
                )
                self.verdict = Verdict(step, step - HIGH_IN_A_ROW + 1, reason)
        self._losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_skipped": self.steps_skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "high_in_a_row": self._high_in_a_row,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_skipped = state["steps_skipped"]
        self._skipped_in_a_row, self._high_in_a_row = state["skipped_in_a_row"], state["high_in_a_row"]
        self._losses = deque(state["losses"], maxlen=REMEMBERED_STEPS)


def judge_score(step: int, metrics: dict[str, Any]) -> Verdict | None:
    """The verdict on the last validation, for the figures of a finished run are numbers."""
    wrong = [name for name in ("val_loss", "val_perplexity") if not math.isfinite(metrics[name])]
    if not wrong:
        return None
    loss = metrics["val_loss"]
    return Verdict(
        step, step, f"its last validation loss is {loss:.4g} nats per token and {wrong[-1]} no finite number"
    )
