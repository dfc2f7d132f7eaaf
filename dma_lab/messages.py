"""How the project speaks to its user: one sentence for a mistake, one line for a surprise."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])
_silent = False


def constant_in_graphs(function: _Function) -> _Function:
    """A compiler that meets the function calls it, and takes what it returns for a constant.

    What ``torch.compiler.assume_constant_result`` does, which imports the compiler to do so: half of what a command
    that compiles nothing would wait for.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class UserError(Exception):
    """A mistake of the user's. The message is one sentence: the setting, its value, what would do.

    The entry points print it without a traceback and exit with ``exit_status``.
    """

    exit_status = 2
    finished: Sequence[Any] = ()
    """Summaries (``dma_lab.run_summary``) of the runs that the command had finished before."""


class MishapError(UserError):
    """A failure of the machine, not a mistake of the user's: a disk that is full, or gone. The same form of message."""

    exit_status = 1


class RunHeldError(UserError):
    """Another process trains the run in ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is being trained by another process; wait for it or stop it.")
        self.path = path


@constant_in_graphs
def warn_once(message: str) -> None:
    """Print ``message`` to stderr the first time it is given in this process, and never again."""
    print_once(message)


@functools.cache
def print_once(message: str) -> None:
    if not left_to_the_first():
        print(f"dma_lab: {message}", file=sys.stderr, flush=True)


def leave_to_the_first() -> None:
    """From here on say in this process nothing but why it ends, for it is not the first of several."""
    global _silent
    _silent = True


def left_to_the_first() -> bool:
    return _silent
