"""The steps of one run: model, optimizer, Trainer, and what they came to."""

import logging
import warnings
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.fsdp import FSDPModule

from dma_lab.data.module import DrawSequences, TokenDataModule
from dma_lab.phases import phase
from dma_lab.train.beginning import Beginning
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.checkpoint_writer import CheckpointWriter
from dma_lab.train.continuing import IdentityAt, Start
from dma_lab.train.divergence import Verdict, judge_score
from dma_lab.train.hardware import Hardware
from dma_lab.train.memory import forget_peak, out_of_memory, peak_bytes
from dma_lab.train.module import LanguageModel
from dma_lab.train.optim import build_optimizers, learning_rate_multiplier
from dma_lab.train.peers import OneRun, Peers
from dma_lab.train.plan import RunPlan, build_model
from dma_lab.train.run_log import RunLog
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings
from dma_lab.train.sharded import ShardedStrategy
from dma_lab.train.signals import StopRequest
from dma_lab.train.step_graph import STEPS_UNTIL_REPLAYED
from dma_lab.train.task import Score, Task
from dma_lab.train.timing import Timing, steady_rate
from dma_lab.train.utilization import utilization


def train_model(
    settings: TrainSettings,
    plan: RunPlan,
    task: Task,
    draw: DrawSequences,
    run: RunDirectory,
    hardware: Hardware,
    peers: Peers,
    stop: StopRequest,
    keep_step: int | None,
    identity_at: IdentityAt,
    so_far: Start,
    timing: Timing,
    log: RunLog,
    beginning: Beginning | None,
) -> dict[str, Any]:
    """Train ``run``'s model, from its checkpoint where it has one, and score it; what is known of the run afterwards.

    Args:
        keep_step: a step after which the state is kept for longer branches.
        identity_at: what identifies the state after a number of steps.
        so_far: where the steps before this process came from.
        timing: to which this process's seconds are added, and those of the processes before it.
        beginning: weights that training begins with.

    Raises:
        torch.OutOfMemoryError: there is not enough before anything was saved.
        UserError: nor after that.
    """
    if hardware.compile:
        # What a process compiled for its earlier runs would count towards Dynamo's limit of graphs, and one run's
        # shapes would decide how the next one's are compiled.
        torch.compiler.reset()
        # Blocks are compiled one by one, and their gradients exchanged as each is done: split into DDP's buckets they
        # would be other graphs than those of one device.
        torch._dynamo.config.optimize_ddp = False
    forget_peak(hardware.device)
    on_gpu, alone = hardware.device.type == "cuda", peers.ranks.count == 1
    sharded = settings.trainer.strategy == "fsdp" and not alone
    with phase("building the model"):
        module = language_model(settings, plan, hardware, beginning, sharded=sharded)

    def validate(device: torch.device) -> Score:
        sequences = plan.sequences_per_step // settings.trainer.processes // plan.accumulate
        if not sharded:
            module.to(device)  # Lightning took it from there, if training is over
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16"):
            return task.score(module.model, plan, sequences, device)

    hush_lightning()
    writer = CheckpointWriter(run)
    recorder = RunRecorder(
        run,
        writer,
        identity_at=identity_at,
        so_far=so_far,
        timing=timing,
        compiling_steps=STEPS_UNTIL_REPLAYED if on_gpu or hardware.compile else 0,
        validate=validate,
        steps=plan.steps,
        tokens_per_step=plan.tokens_per_step,
        log_every=settings.trainer.log_every,
        validate_every=settings.trainer.validate_every,
        checkpoint_every=settings.trainer.checkpoint_every,
        keep_step=keep_step,
        score_at_start=beginning is not None,
        also_log=log.add,
        stop=stop,
        agree_on_signal=peers.agree_on_signal,
    )
    trainer = L.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[hardware.device.index] if on_gpu and alone else settings.trainer.devices,
        num_nodes=settings.trainer.num_nodes,
        strategy="auto" if alone else ShardedStrategy() if sharded else DDPStrategy(gradient_as_bucket_view=True),
        precision="bf16-mixed" if hardware.precision == "bf16" else "32-true",
        max_steps=plan.steps,
        logger=False,
        callbacks=[recorder],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        plugins=[writer, OneRun(peers.ranks)],
        # Under SLURM Lightning begins from any hpc_ckpt_*.ckpt that it finds here; nothing ever lies here.
        default_root_dir=run.path / "checkpoints" / "lightning",
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign] # see signals.py
    batches = TokenDataModule(
        draw,
        sequences_per_step=plan.sequences_per_step,
        accumulate=plan.accumulate,
        num_workers=settings.trainer.loader_workers,
    )
    checkpoint = run.checkpoint if run.checkpoint.exists() else None
    try:
        with writer:
            trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as end:
        # Before training begins, Lightning makes status 1 of Ctrl-C.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    except torch.OutOfMemoryError as error:
        if not writer.used:
            raise
        raise out_of_memory(plan, settings.trainer.processes, hardware) from error

    rate = steady_rate(run.lines[run.speed.name])
    outcome: dict[str, Any] = {
        "step": trainer.global_step,
        "steps_skipped": module.watch.steps_skipped,
        "tokens_per_second": rate,
        **utilization(rate, plan, settings.trainer.processes, hardware),
        "seconds": timing.seconds,
        "peak_memory_bytes": peak_bytes(hardware.device),
    }
    if recorder.loss_at_start is not None:
        outcome["val_loss_at_start"] = recorder.loss_at_start
    if recorder.verdict is not None:
        return outcome | _what_diverged(recorder.verdict, task, plan)
    if trainer.global_step < plan.steps:
        if stop.number is None:
            raise RuntimeError(f"training ended at step {trainer.global_step} of {plan.steps}, and nobody asked it to")
        return outcome | {"status": "interrupted", "signal": stop.number}
    # A run killed between its last checkpoint and its summary is complete but for its score.
    device = trainer.strategy.root_device
    with timing.measured("validation"):
        score = recorder.score or validate(device)
    if verdict := judge_score(trainer.global_step, score.metrics()):
        return outcome | score.metrics() | _what_diverged(verdict, task, plan)
    if not sharded:
        module.to(device)
    kinds = {type(block.attention): block for block in module.model.blocks}
    asked = {"packed": settings.data.mask_documents, "bf16": hardware.precision == "bf16"}
    if sharded:
        for block in kinds.values():
            cast(FSDPModule, block).unshard()
    kernels = (block.attention.kernels(plan.shape.max_seq_len, **asked) for block in kinds.values())
    outcome["kernels"] = ", ".join(dict.fromkeys(", ".join(kernels).split(", ")))
    if run.writer:
        score.save(run.validation)
    return outcome | score.metrics() | {"status": "finished"}


def language_model(
    settings: TrainSettings,
    plan: RunPlan,
    hardware: Hardware,
    beginning: Beginning | None = None,
    *,
    sharded: bool = False,
) -> LanguageModel:
    """The run's model with its initial weights, compiled where that is asked for."""
    optimizer = settings.optimizer
    multiplier = learning_rate_multiplier(settings.schedule, plan.steps)
    model = build_model(settings, plan.shape)
    if beginning is not None:
        beginning.load_into(model)
    module = LanguageModel(
        model,
        make_optimizers=lambda model: build_optimizers(model, optimizer),
        learning_rate=lambda step: optimizer.learning_rate * multiplier(step),
        gradient_clip=optimizer.gradient_clip,
        accumulate=plan.accumulate,
    )
    if hardware.compile:
        # Block by block: they share one compiled graph, so compiling takes seconds at any depth.
        for block in module.model.blocks:
            if sharded:  # not the hooks around it, which gather its weights
                block.forward = torch.compile(block.forward, fullgraph=True)  # type: ignore[method-assign]
            else:
                block.compile(fullgraph=True)
        module.model.cross_entropy.compile(fullgraph=True)
    return module


def _what_diverged(verdict: Verdict, task: Task, plan: RunPlan) -> dict[str, Any]:
    """What the summary of a run that diverged says of it; ``batch`` is that of the first step that shows it."""
    batch = {"step": verdict.since, **task.batch_of(plan, verdict.since)}
    return {"status": "diverged", "reason": verdict.reason, "step": verdict.step, "batch": batch}


def hush_lightning() -> None:
    """Keep what Lightning, PyTorch and flash-attn say of themselves from between the plan and the result."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        ".*does not have many workers.*",  # batches are slices of a mapped file
        "The `srun` command is available",  # a run may well be started without it
        "Argument aux_data .* cannot be converted",  # flash-attn 4's own arguments, left out
        "The AccumulateGrad node's stream",  # Lightning wraps the model on a stream of its own
        "Mismatch dtype between input and weight",  # of norms, which the compiler fuses
    ):
        warnings.filterwarnings("ignore", message=message)
