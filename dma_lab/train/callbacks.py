"""What happens between two optimizer steps: figures, validation, checkpoints, and stopping when asked to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from dma_lab.train.checkpoint_writer import CheckpointWriter
from dma_lab.train.continuing import IdentityAt, Start
from dma_lab.train.divergence import Verdict
from dma_lab.train.module import LanguageModel
from dma_lab.train.progress import TrainingProgress
from dma_lab.train.runs import RunDirectory
from dma_lab.train.signals import StopRequest
from dma_lab.train.task import Score
from dma_lab.train.timing import StepClock, Timing


class RunRecorder(L.Callback):
    """Writes the run's directory, always in one order: figures, validation, checkpoint.

    So a checkpoint never lacks what came before it, and a run that continues from it writes the same lines again.
    A run that diverged ends where that is noticed, at one of these, and nothing is saved over its last good checkpoint.
    A request to stop, of whichever process of the run, ends all of them at the next step's end, with a checkpoint.
    """

    def __init__(
        self,
        run: RunDirectory,
        writer: CheckpointWriter,
        *,
        identity_at: IdentityAt,
        so_far: Start,
        timing: Timing,
        compiling_steps: int,
        validate: Callable[[torch.device], Score],
        steps: int,
        tokens_per_step: int,
        log_every: int,
        validate_every: int,
        checkpoint_every: int,
        keep_step: int | None,
        score_at_start: bool,
        also_log: Callable[[dict[str, float], int], None],
        stop: StopRequest,
        agree_on_signal: Callable[[int | None], int | None],
    ) -> None:
        self.run, self.writer, self.validate, self.also_log = run, writer, validate, also_log
        self.identity_at, self.so_far = identity_at, so_far
        self.steps, self.tokens_per_step = steps, tokens_per_step
        self.log_every, self.validate_every, self.checkpoint_every = log_every, validate_every, checkpoint_every
        self.keep_step, self.score_at_start = keep_step, score_at_start
        self.loss_at_start: float | None = None
        """Validation loss before the first step, of a run that begins with the weights of another."""
        self.score: Score | None = None
        self.verdict: Verdict | None = None
        self.stop, self.agree_on_signal = stop, agree_on_signal
        self.timing = timing
        self.clock = StepClock(timing, tokens_per_step, compiling_steps)

    def state_dict(self) -> dict[str, Any]:
        return {
            "run": self.run.path.name,
            "identity": self.identity_at(self._step),
            **dataclasses.asdict(self.so_far),
            "seconds": self.timing.seconds,
            "loss_at_start": self.loss_at_start,
            "lines": {name: "".join(lines) for name, lines in self.run.lines.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.timing.add(state_dict.get("seconds", {}))
        self.loss_at_start = state_dict.get("loss_at_start")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self.stop.can_wait = True
        if self.score_at_start and trainer.global_step == 0:
            with self.timing.measured("validation"):
                self.loss_at_start = self.validate(trainer.strategy.root_device).metrics()["val_loss"]
            self.run.say(f"{self.run.path.name} begins at a validation loss of {self.loss_at_start:.4f}")
        if trainer.is_global_zero:
            self.progress = TrainingProgress(self.steps, trainer.global_step, self.clock.compiling_steps)
            self.progress.__enter__()
        self.clock.resume()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stop.can_wait = False
        if hasattr(self, "progress"):
            self.progress.__exit__()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:
            return
        assert isinstance(pl_module, LanguageModel)
        self._step = step
        self.writer.look()
        if self.clock.step():
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.clock.stop()
        is_last = step == self.steps
        stop = self._asked_to_stop()
        log = step % self.log_every == 0 or is_last
        validate = step % self.validate_every == 0 or is_last
        keep = step == self.keep_step
        checkpoint = step % self.checkpoint_every == 0 or is_last or stop or keep
        if log or validate or checkpoint:
            metrics = pl_module.read_last_step()  # waits for the device, so the time until here is the steps' own
            self.clock.stop()
            watch = pl_module.watch
            # Of a loss that stands high, what was saved before it rose is worth more, unless it falls again.
            checkpoint = checkpoint and (not watch.loss_is_high or is_last or stop or keep)
            self.verdict = watch.verdict
            if self.verdict is None and checkpoint:
                with self.timing.measured("checkpoints"):
                    if not pl_module.state_is_finite():
                        self.verdict = Verdict(step, step, "a weight or a moment of the optimizer is not finite")
            if log or validate or self.verdict:
                shown = {name: value for name, value in vars(metrics).items() if value is not None}
                self._record(trainer, step, shown, validate and not self.verdict)
            if checkpoint and not self.verdict:
                with self.timing.measured("checkpoints"):
                    self._save(trainer, keep=keep, at_end=is_last or stop)
            self.clock.resume()
        if trainer.is_global_zero:
            self.progress.advance(step)
        if stop or self.verdict:
            trainer.should_stop = True

    def _asked_to_stop(self) -> bool:
        agreed = self.agree_on_signal(self.stop.number)
        if agreed is not None:  # else one that came just now would be forgotten
            self.stop.number = agreed
        return agreed is not None

    def _record(self, trainer: L.Trainer, step: int, metrics: dict[str, float], validate: bool) -> None:
        line = {"step": step, "tokens": step * self.tokens_per_step, **metrics}
        if validate:
            with self.timing.measured("validation"):
                self.score = self.validate(trainer.strategy.root_device)
            line |= self.score.metrics()
        if not trainer.is_global_zero:
            return
        self.run.append(self.run.metrics, line)
        speed: dict[str, float] = {
            "step": step,
            "training_seconds": self.timing.seconds["compiling"] + self.timing.seconds["steps"],
            "seconds": sum(self.timing.seconds.values()),
        }
        if (tokens_per_second := self.clock.rate()) is not None:
            speed["tokens_per_second"] = tokens_per_second
        self.run.append(self.run.speed, speed)
        self.progress.metrics(metrics["loss"], tokens_per_second)
        self.also_log(line | speed, step)

    def _save(self, trainer: L.Trainer, *, keep: bool, at_end: bool) -> None:
        partial = self.run.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial, storage_options={"keep": keep})
        if at_end:
            self.writer.wait()
