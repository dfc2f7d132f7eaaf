"""What a process does to files, event by event, and a fault at one of them.

Events are calls on files below ``root``: opening, making directories, writing (every write that reaches the system),
fsync, renaming and unlinking. Before event number n the process is killed, or signalled, or the event fails with an
errno as the system would report it, that once or from then on. No fault here cuts the power.
"""

import builtins
import errno
import io
import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_AUDITED = {
    "open": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.link": (0, 1),
    "os.truncate": (0,),
    "fcntl.flock": (),
}
"""Python's own audit events, and which of their arguments are paths."""
_TAKES_NO_ROOM = {"os.remove", "os.rmdir", "read", "fcntl.flock"}


@dataclass(frozen=True)
class Fault:
    """What happens at event number ``at``; 0 for nothing, ever."""

    at: int = 0
    number: int = 0
    """A signal's, or an errno where ``is_error``."""
    is_error: bool = False
    lasting: bool = False
    """An error that stays."""
    torn: bool = False
    """Of a write, half is written before it."""

    def __str__(self) -> str:
        if self.is_error:
            what = f"{errno.errorcode[self.number]}{' from there on' if self.lasting else ''}"
        else:
            what = signal.Signals(self.number).name if self.number else "nothing"
        return f"{what} at file event {self.at}{', torn' if self.torn else ''}"


class FileEvents:
    """Counts this process's file events below ``root`` from its making on. There is no way back: fork before."""

    def __init__(self, root: Path, fault: Fault) -> None:
        self.root, self.fault = str(root), fault
        self.count = 0
        self._patched = False
        self._process = os.getpid()
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            os.fstat(descriptor)
            if self._below(os.readlink(f"/proc/self/fd/{descriptor}")):
                self._event("os.fsync")
            fsync(descriptor)

        os.fsync = counted_fsync
        events, opened = self, io.open

        class CountedFile(io.FileIO):
            def write(self, data: Any) -> int:
                events._event("write", lambda: io.FileIO.write(self, memoryview(data).cast("B")[: len(data) // 2]))
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                events._event("os.truncate")
                return super().truncate(size)

        def counted_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            is_path = isinstance(file, str | os.PathLike)
            if not (is_path and set(mode) & set("wax+") and self._below(os.fspath(file))):
                return opened(file, mode, *arguments, **options)
            names = ("buffering", "encoding", "errors", "newline", "closefd", "opener")
            options |= dict(zip(names, arguments, strict=False))
            raw = CountedFile(file, mode.replace("b", "").replace("t", ""))
            if options.get("buffering") == 0:
                return raw
            stream = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            if "b" in mode:
                return stream
            text = io.TextIOWrapper(stream, options.get("encoding"), options.get("errors"), options.get("newline"))
            text.mode = mode  # type: ignore[misc]
            return text

        io.open = builtins.open = counted_open  # type: ignore[assignment]

    def _below(self, path: Any) -> bool:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        return not isinstance(path, int) and os.path.abspath(os.fspath(path)).startswith(self.root)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        paths = _AUDITED.get(event)
        if paths is None or os.getpid() != self._process:
            return
        if event == "fcntl.flock":
            self._event(event)
            return
        if event == "open" and not isinstance(arguments[0], str | bytes | os.PathLike):
            return  # a descriptor that was open already
        relative = arguments[-1] not in (-1, None) and event in ("os.remove", "os.rmdir")  # to an open directory
        if not relative and not any(self._below(arguments[place]) for place in paths):
            return
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            event = "open" if writes else "read"
        self._event(event, filename=arguments[0])

    def _event(self, what: str, half: Callable[[], object] | None = None, filename: Any = None) -> None:
        fault = self.fault
        self.count += 1
        if self.count != fault.at and not (fault.lasting and self.count > fault.at > 0):
            return
        if fault.is_error and self.count > fault.at and fault.number == errno.ENOSPC and what in _TAKES_NO_ROOM:
            return
        if fault.torn and half is not None:
            half()
        if fault.is_error:
            said = os.strerror(fault.number)
            raise OSError(fault.number, said) if filename is None else OSError(fault.number, said, filename)
        os.kill(os.getpid(), fault.number)


def handles() -> list[str]:
    """What this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            kind = stat.S_IFMT(os.stat(f"/proc/self/fd/{name}").st_mode)
        except OSError:
            continue  # the listing's own
        found.append(target if kind in (stat.S_IFREG, stat.S_IFDIR) else target.partition(":")[0])
    return sorted(found)
