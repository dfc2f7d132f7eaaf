"""Checkpoints written beside training: steps wait for a copy of the state, a thread brings the copy to the disk.

There is one writer and one copy. A checkpoint that is due while the one before it is being written waits for that:
skipped, it would be missed by whoever asked for one every so many steps, and how much a kill costs would depend on the
disk. Whatever ends training waits too, for what is being written is worth continuing from.
"""

import copy
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from dma_lab.checkpoints import AbandonedError, read_checkpoint, tensors_in, write_checkpoint
from dma_lab.train.runs import RunDirectory


class CheckpointWriter(CheckpointIO):
    """Lightning hands it the state of ``run`` and has it read; ``dma_lab.checkpoints`` says what the files are.

    A context: at its end the thread is over. What went wrong there, an OSError, is raised by whatever is called next.
    Where the context is ended at once (KeyboardInterrupt, SystemExit), an unfinished file is given up.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = threading.Event()
        self._copies: list[Tensor] = []
        """On the CPU, of the checkpoint before; pinned where the state is on a GPU. Used again and again."""

    @property
    def used(self) -> bool:
        """Whether a checkpoint was begun."""
        return bool(self._copies)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._abandoned.set()
        with suppress(*([] if kind is None else [OSError])):  # what ended training goes before it
            self.wait()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: dict[str, bool] | None = None
    ) -> None:
        """Begin to write ``checkpoint``, as it is now, to ``path`` and to make that the run's last one.

        Args:
            storage_options: with ``keep`` the file becomes the run's stable checkpoint too.
        """
        self.wait()
        content, copied = self._copy(checkpoint)
        keep = bool(storage_options and storage_options["keep"])
        self._thread = threading.Thread(target=self._write, args=(content, copied, Path(path), keep), daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Raise what went wrong since; never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until all that was begun is on the disk. A signal's handler may end it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _copy(self, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None]:
        """``checkpoint`` with copies of its tensors, and what to wait for until a GPU has made them.

        The copies are made in the order of the stream that steps run on: after the last one, before the next one
        changes anything, and this process does not wait. Tensors that are one stay one.
        """
        with torch.no_grad():
            copies: dict[tuple[Any, ...], Tensor] = {}
            memo: dict[int, Any] = {}
            on_gpu = False
            for tensor in tensors_in(checkpoint):
                place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
                if place not in copies:
                    copies[place] = self._room(len(copies), tensor).copy_(tensor, non_blocking=True)
                    on_gpu |= tensor.is_cuda
                memo[id(tensor)] = copies[place]
            self._copies = list(copies.values())
        copied = None
        if on_gpu:
            copied = torch.cuda.Event()
            copied.record()
        return copy.deepcopy(checkpoint, memo), copied

    def _room(self, number: int, tensor: Tensor) -> Tensor:
        """Where tensor ``number`` of a checkpoint is copied to."""
        if number < len(self._copies):
            before = self._copies[number]
            if (before.dtype, before.shape, before.stride()) == (tensor.dtype, tensor.shape, tensor.stride()):
                return before
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)

    def _write(self, content: dict[str, Any], copied: torch.cuda.Event | None, path: Path, keep: bool) -> None:
        """What the thread does."""
        try:
            if copied is not None:
                copied.synchronize()
            write_checkpoint(content, path, may_go_on=lambda: not self._abandoned.is_set())
            if keep:  # before the run can continue from behind this step
                self.run.keep(path)
            if self._abandoned.is_set():
                raise AbandonedError
            self.run.advance(path)
        except BaseException as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # room for others, where the disk is full
            if not isinstance(error, AbandonedError):
                self._error = error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink()
