"""The project's scripts, run in forks of one process that has everything imported: a call costs its own work alone.

What a fork does is what ``python train.py …`` does once its imports are over: it runs that very script. What the
environment decides while Python or a package is imported stands as it was when the first script was run.
"""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KILLED = -signal.SIGKILL


class Started:
    """A script that was started: a process and what it says."""

    def __init__(self, process: ForkServerProcess, said: Path) -> None:
        self.process, self.said = process, said

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.exitcode is None

    def send_signal(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def ended(self, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Its status and what it said.

        Raises:
            TimeoutExpired: it did not end within ``seconds``, and was killed.
        """
        self.process.join(seconds)
        in_time = not self.running
        if not in_time:
            self.process.kill()
            self.process.join()
        said, errors = (
            self.said.with_suffix(suffix).read_text(encoding="utf-8", errors="replace") for suffix in (".out", ".err")
        )
        if not in_time:
            raise subprocess.TimeoutExpired([], seconds, said, errors)
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess([], self.process.exitcode, stdout=said, stderr=errors)


class Scripts:
    """Runs scripts in forks of a process of its own, which has no threads and nothing open of this one's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Where what they say is kept."""
        self._number = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.warm", "tests.faults.warm"])
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for it, which imports before it is told of any path
        forkserver.ensure_running()

    def start(
        self,
        script: str,
        arguments: list[str],
        *,
        folder: Path = ROOT,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Started:
        """``python SCRIPT ARGUMENTS…`` in the working directory ``folder``.

        Args:
            script: as ``train.py``.
            env: all of its environment; this process's unless given.
            before: called in the process before the script is run; it gets there pickled.
        """
        self._number += 1
        said = self.folder / str(self._number)
        environment = dict(os.environ if env is None else env)
        process = self._context.Process(
            target=_run, args=(script, arguments, folder, said, environment, before, _server())
        )
        for suffix in (".out", ".err"):
            said.with_suffix(suffix).touch()
        process.start()
        return Started(process, said)

    def run(
        self, script: str, arguments: list[str], *, seconds: float = 300.0, **options
    ) -> subprocess.CompletedProcess[str]:
        """``start``, and wait for its end."""
        return self.start(script, arguments, **options).ended(seconds)


def spawn_warm(said: Path | None = None) -> Callable[..., Any]:
    """Stands for ``multiprocessing.get_context``: what it would spawn is forked from the process of the scripts.

    Args:
        said: beside which those processes say what they say; None for where that process does.
    """
    original = multiprocessing.get_context

    class Warm(ForkServerContext):
        def Process(  # type: ignore[override] # noqa: N802
            self, *, target: Callable[..., object], args: tuple[Any, ...]
        ) -> ForkServerProcess:
            place = (Path.cwd(), said, dict(os.environ), _server())
            return ForkServerProcess(target=_spawned, args=(place, target, args))

    return lambda method=None: Warm() if method == "spawn" else original(method)


def _server() -> str:
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    assert address is not None
    return str(address)


def _run(*arguments: Any) -> None:
    from tests import warm

    warm.run_script(*arguments)


def _spawned(place: tuple[Any, ...], target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    from tests import warm

    warm.become(*place)
    target(*arguments)
