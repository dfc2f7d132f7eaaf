"""The steps of one run: model, optimizer, Trainer, and what they came to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import lightning as L
import torch
from torch.distributed.fsdp import FSDPModule

from dma_lab.data.module import TokenDataModule
from dma_lab.phases import phase
from dma_lab.run_summary import End
from dma_lab.train.beginning import Beginning
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.checkpoint_writer import CheckpointWriter
from dma_lab.train.compiling import forget_compiled, language_model
from dma_lab.train.continuing import IdentityAt, Start
from dma_lab.train.divergence import Verdict, judge_score
from dma_lab.train.hardware import Hardware
from dma_lab.train.memory import forget_peak, out_of_memory, peak_bytes
from dma_lab.train.module import LanguageModel
from dma_lab.train.peers import OneRun, Peers
from dma_lab.train.plan import RunPlan
from dma_lab.train.quiet import hush_lightning
from dma_lab.train.replicated import ReplicatedStrategy
from dma_lab.train.run_log import RunLog
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings
from dma_lab.train.sharded import ShardedStrategy
from dma_lab.train.signals import StopRequest
from dma_lab.train.step_graph import STEPS_UNTIL_REPLAYED
from dma_lab.train.task import Score, Task
from dma_lab.train.timing import Timing, steady_rate
from dma_lab.train.utilization import utilization


@dataclass(frozen=True)
class Training:
    """What the training of a run is given."""

    settings: TrainSettings
    plan: RunPlan
    task: Task
    run: RunDirectory
    hardware: Hardware
    peers: Peers
    stop: StopRequest
    start: Start
    """Where the steps before this process came from; of its machines, this one too."""
    identity_at: IdentityAt
    """What identifies the state after a number of steps."""
    keep_step: int | None
    """A step after which the state is kept for longer branches."""
    beginning: Beginning | None
    """Weights that training begins with."""
    timing: Timing
    """To which this process's seconds are added, and those of the processes before it."""
    log: RunLog

    @property
    def alone(self) -> bool:
        """Whether one process trains the run."""
        return self.peers.ranks.count == 1

    @property
    def sharded(self) -> bool:
        """Whether every process holds a part of the weights."""
        return self.settings.trainer.strategy == "fsdp" and not self.alone


def train_model(training: Training) -> End:
    """Train a run's model, from its checkpoint where it has one, and score it.

    Raises:
        torch.OutOfMemoryError: there is not enough before anything was saved.
        UserError: nor after that.
    """
    run, plan, hardware = training.run, training.plan, training.hardware
    run.write_config(training.settings.written())
    forget_compiled(hardware)
    forget_peak(hardware.device)
    with phase("building the model"):
        module = language_model(training.settings, plan, hardware, training.beginning, sharded=training.sharded)
    hush_lightning()
    writer = CheckpointWriter(run)
    validate = partial(_validate, training, module)
    recorder = _recorder(training, writer, validate)
    trainer = _trainer(training, writer, recorder)
    _fit(training, trainer, module, writer)

    step, end = trainer.global_step, _figures(training, trainer, module, recorder.loss_at_start)
    if recorder.verdict is not None:
        return _diverged(end, recorder.verdict, training.task, plan)
    if step < plan.steps:
        if training.stop.number is None:
            raise RuntimeError(f"training ended at step {step} of {plan.steps}, and nobody asked it to")
        return replace(end, status="interrupted", signal=training.stop.number)
    # A run killed between its last checkpoint and its summary is complete but for its score.
    device = trainer.strategy.root_device
    with training.timing.measured("validation"):
        score = recorder.score or validate(device)
    end = replace(end, **score.metrics())
    if verdict := judge_score(step, score.metrics()):
        return _diverged(end, verdict, training.task, plan)
    end = replace(end, status="finished", kernels=_kernels(training, module, device))
    if run.writer:
        score.save(run.validation)
    return end


def _validate(training: Training, module: LanguageModel, device: torch.device) -> Score:
    plan, hardware = training.plan, training.hardware
    sequences = plan.sequences_per_step // training.settings.trainer.processes // plan.accumulate
    if not training.sharded:
        module.to(device)  # Lightning took it from there, if training is over
    with torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16"):
        return training.task.score(module.model, plan, sequences, device)


def _recorder(training: Training, writer: CheckpointWriter, validate: Callable[[torch.device], Score]) -> RunRecorder:
    """What happens between steps."""
    plan, hardware, asked = training.plan, training.hardware, training.settings.trainer
    return RunRecorder(
        training.run,
        writer,
        identity_at=training.identity_at,
        so_far=replace(training.start, micro_batch_sequences=asked.micro_batch_sequences),
        timing=training.timing,
        compiling_steps=STEPS_UNTIL_REPLAYED if hardware.device.type == "cuda" or hardware.compile else 0,
        validate=validate,
        steps=plan.steps,
        tokens_per_step=plan.tokens_per_step,
        log_every=asked.log_every,
        validate_every=asked.validate_every,
        checkpoint_every=asked.checkpoint_every,
        keep_step=training.keep_step,
        score_at_start=training.beginning is not None,
        also_log=training.log.add,
        stop=training.stop,
        agree_on_signal=training.peers.agree_on_signal,
    )


def _trainer(training: Training, writer: CheckpointWriter, recorder: RunRecorder) -> L.Trainer:
    """Lightning's, of which nothing but the loop over batches and the devices is used."""
    hardware, asked, on_gpu = training.hardware, training.settings.trainer, training.hardware.device.type == "cuda"
    several = ShardedStrategy() if training.sharded else ReplicatedStrategy()
    trainer = L.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[hardware.device.index] if on_gpu and training.alone else asked.devices,
        num_nodes=asked.num_nodes,
        strategy="auto" if training.alone else several,
        precision="bf16-mixed" if hardware.precision == "bf16" else "32-true",
        max_steps=training.plan.steps,
        logger=False,
        callbacks=[recorder],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        plugins=[writer, OneRun(training.peers.ranks)],
        # Under SLURM Lightning begins from any hpc_ckpt_*.ckpt that it finds here; nothing ever lies here.
        default_root_dir=training.run.path / "checkpoints" / "lightning",
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign] # see signals.py
    return trainer


def _fit(training: Training, trainer: L.Trainer, module: LanguageModel, writer: CheckpointWriter) -> None:
    """The steps that are left, or those until training is asked to stop or has diverged."""
    plan, asked, checkpoint = training.plan, training.settings.trainer, training.run.checkpoint
    batches = TokenDataModule(
        training.task.draw(plan),
        sequences_per_step=plan.sequences_per_step,
        accumulate=plan.accumulate,
        num_workers=asked.loader_workers,
    )
    try:
        with writer:
            trainer.fit(module, batches, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    except SystemExit as end:
        # Before training begins, Lightning makes status 1 of Ctrl-C.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except torch.OutOfMemoryError as error:
        if not writer.used:
            raise
        raise out_of_memory(plan, asked.processes, training.hardware) from error


def _figures(training: Training, trainer: L.Trainer, module: LanguageModel, loss_at_start: float | None) -> End:
    """How far training came, how fast, and in how much memory; it is not said yet how it ended."""
    rate = steady_rate(training.run.lines[training.run.speed.name])
    mfu = utilization(rate, training.plan, training.settings.trainer.processes, training.hardware)
    return End(
        step=trainer.global_step,
        steps_skipped=module.watch.steps_skipped,
        tokens_per_second=rate,
        mfu_executed=mfu.get("mfu_executed"),
        mfu_dense_equivalent=mfu.get("mfu_dense_equivalent"),
        seconds=training.timing.seconds,
        peak_memory_bytes=peak_bytes(training.hardware.device),
        val_loss_at_start=loss_at_start,
        status="running",
    )


def _kernels(training: Training, module: LanguageModel, device: torch.device) -> str:
    """What the model's attention runs on."""
    kinds = {type(block.attention): block for block in module.model.blocks}
    if training.sharded:
        for block in kinds.values():
            cast(FSDPModule, block).unshard()
    else:
        module.to(device)
    asked = {"packed": training.settings.data.mask_documents, "bf16": training.hardware.precision == "bf16"}
    kernels = (block.attention.kernels(training.plan.shape.max_seq_len, **asked) for block in kinds.values())
    return ", ".join(dict.fromkeys(", ".join(kernels).split(", ")))


def _diverged(end: End, verdict: Verdict, task: Task, plan: RunPlan) -> End:
    """That of a run that is given up; ``batch`` is that of the first step that shows it."""
    batch = {"step": verdict.since, **task.batch_of(plan, verdict.since)}
    return replace(end, status="diverged", reason=verdict.reason, step=verdict.step, batch=batch)
