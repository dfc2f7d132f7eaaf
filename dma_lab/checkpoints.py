"""Checkpoints as files: any change to one is noticed when it is opened.

A checkpoint is what ``torch.save`` writes, a zip archive, and ``torch.load`` reads it as any other. The archive's
comment holds the checksum of all bytes before it (PyTorch reads past the archive's own CRCs, which do not cover its
directory either). So a file is complete in itself: there is no second one that a crash could leave behind.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from dma_lab.messages import UserError

_MARK = b"sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_NO_COMMENT = bytes(2)
"""An archive's end without one: the comment's length."""


class DamagedCheckpointError(UserError):
    """A file that is no checkpoint, or not what was written, or of a state that cannot be gone on from."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is no checkpoint that can be read safely ({reason}); give another one, or delete it and the run's "
            "summary.json and give the command that trained it again."
        )
        self.path, self.reason = path, reason


class AbandonedError(Exception):
    """A checkpoint that was not written to its end, as that was asked for."""


class _DamageError(Exception):
    """What is wrong with a file that is being read, as a clause."""


def write_checkpoint(content: dict[str, Any], path: Path, *, may_go_on: Callable[[], bool] = lambda: True) -> None:
    """Write ``content`` to ``path`` with its checksum, on the disk for good.

    Args:
        may_go_on: asked again and again; once it says no, ``AbandonedError`` is raised.

    Raises:
        OSError: as the system reports it; ``path`` is then not whole.
    """
    try:
        with path.open("wb") as file:
            stream = _SealedStream(file, may_go_on)
            torch.save(content, cast(BinaryIO, stream))
            stream.seal()
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        if isinstance(error.__context__, OSError | AbandonedError):
            raise error.__context__ from None  # PyTorch's writer says less than the file said
        raise


class _SealedStream:
    """PyTorch writes an archive to it, from front to back. It takes the checksum on the way: nothing is read again."""

    def __init__(self, file: BinaryIO, may_go_on: Callable[[], bool]) -> None:
        self._file, self._may_go_on = file, may_go_on
        self._digest = hashlib.sha256()
        self._held = b""
        """The last two bytes so far: the archive's are the length of its comment, which it has none of yet."""

    def write(self, data: bytes) -> int:
        if not self._may_go_on():
            raise AbandonedError
        view = memoryview(data).cast("B")
        if len(view) < len(_NO_COMMENT):
            view = memoryview(self._held + bytes(view))
        else:
            self._put(self._held)
        end = max(0, len(view) - len(_NO_COMMENT))
        self._put(view[:end])
        self._held = bytes(view[end:])
        return len(data)

    def flush(self) -> None:
        """Nothing: PyTorch asks for it, and the file is flushed once it is sealed."""

    def seal(self) -> None:
        assert self._held == _NO_COMMENT
        self._put(_COMMENT_BYTES.to_bytes(len(_NO_COMMENT), "little"))
        self._file.write(_MARK + self._digest.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """The content of a run's checkpoint, on the CPU: tensors and plain values only.

    Args:
        mmap: leave tensors in the file, which must stay, until they are used.

    Raises:
        DamagedCheckpointError: a byte is not as it was written, or it is no run's, or not all of it is finite.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as stream:
        try:
            _verify(stream)
            content: dict[str, Any] = torch.load(
                path if mmap else stream, map_location="cpu", weights_only=True, mmap=mmap
            )
            missing = {"global_step"} - content.keys() | {"run", "identity", "lines"} - recorded(content).keys()
            if missing:
                raise _DamageError(f"it lacks {', '.join(sorted(missing))}")
            if not all_finite(tensors_in([content["state_dict"], content["optimizer_states"]])):
                raise _DamageError("its weights or its optimizer's state are not finite")
        except _DamageError as error:
            raise DamagedCheckpointError(path, str(error)) from None
        except Exception as error:  # a file of anything makes the readers raise anything
            raise DamagedCheckpointError(path, _first_line(error)) from error
    return content


def recorded(content: dict[str, Any]) -> dict[str, Any]:
    """What the run's recorder (dma_lab/train/callbacks.py) keeps in a checkpoint."""
    kept: dict[str, Any] = content["callbacks"]["RunRecorder"]
    return kept


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is infinite or NaN. Waits once for each device."""
    flags: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        flags.setdefault(tensor.device, []).append(tensor.isfinite().all())
    return all(bool(torch.stack(group).all()) for group in flags.values())


def tensors_in(node: Any) -> Iterator[Tensor]:
    """The tensors of nested dictionaries, lists and tuples, one by one, in their order."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict):
        yield from tensors_in(list(node.values()))
    elif isinstance(node, list | tuple):
        for member in node:
            yield from tensors_in(member)


def _verify(stream: BinaryIO) -> None:
    """Leave ``stream`` at its start. Raises _DamageError unless it ends with the checksum of what comes before."""
    length = stream.seek(0, os.SEEK_END) - _COMMENT_BYTES
    if length < 0 or _MARK + _digest(stream, length) != stream.read():
        raise _DamageError("its content is not that of its checksum")
    stream.seek(0)


def _digest(stream: BinaryIO, length: int) -> bytes:
    """SHA-256 of the first ``length`` bytes, in hex; leaves ``stream`` behind them."""
    digest = hashlib.sha256()
    stream.seek(0)
    while length and (block := stream.read(min(length, 2**20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
