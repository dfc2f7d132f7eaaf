"""Checkpoints as files: any change to one is noticed when it is opened.

A checkpoint is what ``torch.save`` writes, a zip archive, and ``torch.load`` reads it as any other. The archive's
comment holds the checksum of all bytes before it (PyTorch reads past the archive's own CRCs, which do not cover its
directory either). So a file is complete in itself: there is no second one that a crash could leave behind.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dma_lab.messages import UserError

_MARK = b"sha256 "
_COMMENT_BYTES = len(_MARK) + 64


class DamagedCheckpointError(UserError):
    """A file that is no checkpoint, or not what was written, or of a state that cannot be gone on from."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is no checkpoint that can be read safely ({reason}); give another one, or delete it and the run's "
            "summary.json and give the command that trained it again."
        )
        self.path, self.reason = path, reason


class _DamageError(Exception):
    """What is wrong with a file that is being read, as a clause."""


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write ``content`` to ``path`` with its checksum, on the disk for good.

    Raises:
        OSError: as the system reports it; ``path`` is then not whole.
    """
    try:
        with path.open("w+b") as stream:
            torch.save(content, stream)
            # The archive's last two bytes are the length of its comment, which it has none of yet.
            stream.seek(-2, os.SEEK_END)
            stream.write(_COMMENT_BYTES.to_bytes(2, "little"))
            stream.write(_MARK + _digest(stream, stream.tell()))
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None  # PyTorch's writer says less than the file said
        raise


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
            if not all_finite(_tensors([content["state_dict"], content["optimizer_states"]])):
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


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict):
        yield from _tensors(list(node.values()))
    elif isinstance(node, list | tuple):
        for member in node:
            yield from _tensors(member)


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
