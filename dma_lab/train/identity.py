"""What defines a run: its directory is named by all of it, its checkpoints carry what defines them."""

import dataclasses
import json
from typing import Any

from dma_lab.seals import digest_of
from dma_lab.train.optim import schedule_phases
from dma_lab.train.settings import TrainSettings


def identity(defining: dict[str, Any]) -> str:
    """Eight hex digits that change with anything in ``defining`` (JSON-able) and with nothing else."""
    return digest_of(defining, size=4)


def run_name(settings: TrainSettings, fingerprint: str, precision: str, init_from_digest: str | None = None) -> str:
    """The name of the run's directory, such that a reader finds it and no other run has it."""
    trainer = settings.trainer
    defining = {
        "model": dataclasses.asdict(settings.model),
        "init": dataclasses.asdict(settings.init),
        "attention": settings.attention.defining(),
        "match": settings.match,
        "budget": [
            settings.tokens,
            settings.tokens_per_parameter,
            *([] if settings.flops is None else [settings.flops]),
        ],
        "data": [fingerprint, settings.data.mask_documents],
        "optimizer": dataclasses.asdict(settings.optimizer),
        "schedule": {key: value for key, value in dataclasses.asdict(settings.schedule).items() if value is not None},
        "trainer": [trainer.context, trainer.tokens_per_step, trainer.validation_tokens, precision],
        "seed": settings.seed,
        **({} if settings.tuned is None else {"tuned": settings.tuned}),
        **({} if init_from_digest is None else {"init_from": init_from_digest}),
    }
    return f"{settings.study}-{settings.model.name}-{settings.attention.label}-s{settings.seed}-{identity(defining)}"


def state_identity(
    settings: TrainSettings, steps: int, fingerprint: str, precision: str, init_from_digest: str | None, step: int
) -> dict[str, Any]:
    """What defines the state after ``step`` of the run's ``steps``, by its name in config.yaml or summary.json.

    As long as the learning rate does not decay that is no budget: runs of several budgets go through the same states
    (dma_lab/train/branches.py).
    """
    warmup, decay = schedule_phases(settings.schedule, steps)
    trainer = settings.trainer
    named = {
        "model": dataclasses.asdict(settings.model),
        "init": dataclasses.asdict(settings.init),
        "attention": settings.attention.defining(),
        "optimizer": dataclasses.asdict(settings.optimizer),
        # Of text; recall has no such setting.
        "data": {name: value for name, value in vars(settings.data).items() if name == "mask_documents"},
        "trainer": {
            "context": trainer.context,
            "tokens_per_step": trainer.tokens_per_step,
            "validation_tokens": trainer.validation_tokens,
        },
    }
    state = {f"{group}.{name}": value for group, values in named.items() for name, value in values.items()}
    state |= {
        "match": settings.match,
        "seed": settings.seed,
        "data_fingerprint": fingerprint,
        "precision": precision,
        "warmup_steps": warmup,
    }
    if init_from_digest is not None:
        state["init_from_digest"] = init_from_digest
    if step > steps - decay:
        schedule = settings.schedule
        state |= {
            "steps": steps,
            "schedule.name": schedule.name,
            "schedule.decay_fraction": schedule.decay_fraction,
            "schedule.final_fraction": schedule.final_fraction,
        }
    read_back: dict[str, Any] = json.loads(json.dumps(state))  # equal to what a checkpoint gives back
    return read_back
