"""Where a run goes on: at its last checkpoint, or at the newest that is whole, or where a shorter branch has come to.

Wherever that is, the run ends as if it had never been cut. So what is damaged costs time, and is announced. One of
another training is refused: it would end anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dma_lab.checkpoints import DamagedCheckpointError, read_checkpoint, recorded
from dma_lab.files import copy_whole
from dma_lab.messages import UserError
from dma_lab.train.runs import RunDirectory

IdentityAt = Callable[[int], dict[str, Any]]
"""What defines the run's state after a step."""


@dataclass(frozen=True)
class Start:
    """Where a run's steps come from."""

    steps_shared: int
    """How many of them another run took."""
    machines: list[str]
    """Those that took steps, in words."""
    micro_batch_sequences: int | None = None
    """To which memory that ran out had brought them."""


def prepare_start(run: RunDirectory, identity_at: IdentityAt, shorter: Sequence[tuple[Path, int]] = ()) -> Start:
    """Leave the checkpoint that the run continues from at ``run.checkpoint``, and its lines in metrics and speed.

    Args:
        identity_at: of the run.
        shorter: runs that this one equals up to a step, each with that step, the furthest first: a run without a
            checkpoint begins with the stable one of the first of them that has it.

    Raises:
        UserError: a checkpoint of the run is of another training.
    """
    if not run.writer:
        return Start(0, [])
    content = _own_checkpoint(run, identity_at) or _shared_checkpoint(run, identity_at, shorter)
    if content is None:
        begun = run.metrics.exists() and run.metrics.stat().st_size > 0
        run.restore({})
        if begun:
            run.say(f"{run.path} has metrics and no checkpoint to continue from: it is trained from the start")
        return Start(0, [])
    step, state = content["global_step"], recorded(content)
    intact = run.restore(state["lines"])
    micro = state["micro_batch_sequences"]
    if state["run"] != run.path.name:
        return Start(step, state["machines"], micro)
    if not intact:
        run.say(f"{run.path} had lost or changed lines up to step {step}; they are restored from {run.checkpoint.name}")
    return Start(state["steps_shared"], state["machines"], micro)


def _own_checkpoint(run: RunDirectory, identity_at: IdentityAt) -> dict[str, Any] | None:
    damaged: list[Path] = []
    for file in (run.checkpoint, run.previous):
        try:
            content = read_checkpoint(file, mmap=True)
        except FileNotFoundError:
            continue
        except DamagedCheckpointError as error:
            damaged.append(file)
            run.say(f"{file} is damaged ({error.reason})")
            continue
        if difference := differs(content, identity_at):
            raise UserError(
                f"{file} is the checkpoint of another run: {difference}; move it away and give the same command again."
            )
        if file == run.previous:
            run.say(f"{run.path} continues from {file.name}, of step {content['global_step']}")
            file.replace(run.checkpoint)
        return content
    for file in damaged:
        file.unlink()
    return None


def _shared_checkpoint(
    run: RunDirectory, identity_at: IdentityAt, shorter: Sequence[tuple[Path, int]]
) -> dict[str, Any] | None:
    for path, step in shorter:
        file = RunDirectory(path).stable
        try:
            content = read_checkpoint(file, mmap=True)
        except FileNotFoundError:
            continue
        except DamagedCheckpointError as error:
            run.say(f"{file} is damaged ({error.reason}); {run.path.name} does not begin from it")
            continue
        difference = differs(content, identity_at)
        if not difference and content["global_step"] != step:
            difference = f"it is of step {content['global_step']} and not of {step}"
        if difference:
            run.say(f"{file} is of another training ({difference}); {run.path.name} does not begin from it")
            continue
        copy_whole(file, run.checkpoint)
        return content
    return None


def differs(content: dict[str, Any], identity_at: IdentityAt) -> str | None:
    """The first setting in which a checkpoint is of another training, in words; None where it is of this one."""
    theirs, ours = recorded(content)["identity"], identity_at(content["global_step"])
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours or theirs[name] != ours[name]:
            return f"it was trained with {name}={theirs.get(name)} and this run has {ours.get(name)}"
    return None
