"""A whole optimizer step as one CUDA graph.

A small model's step is several hundred kernels of some microseconds each, more than Python can launch in the time that
they take: at a million parameters a GPU waits for 85 % of the step. A graph launches them all at once. They are the
same kernels on the same numbers, so a step is bit-identical.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dma_lab.kernels import Documents
from dma_lab.messages import warn_once

MicroBatch = dict[str, Any]
_OFFSETS = "offsets"
_PLAIN_STEPS = 3
"""Before the capture: they compile, choose kernels and make the optimizer's state."""
STEPS_UNTIL_REPLAYED = _PLAIN_STEPS + 1


class StepGraph:
    """Calls ``take_step``, and from the fourth call on replays what it does instead.

    Args:
        take_step: micro-batches on the GPU -> a tensor there. It must launch the same kernels whatever numbers its
            tensors hold, and read nothing else that changes from step to step but tensors that stay where they are.
        any_process: whether something is so in any process that takes steps with this one. What they exchange within a
            step must be captured by all or by none.
    """

    def __init__(
        self, take_step: Callable[[Sequence[MicroBatch]], Tensor], any_process: Callable[[bool], bool]
    ) -> None:
        self.take_step, self.any_process = take_step, any_process
        self.graph: torch.cuda.CUDAGraph | None = None
        self._plain_steps = 0
        self._refused = False
        self._side = torch.cuda.Stream()
        """Where the plain steps run, since what autograd keeps of them must not tie a capture to the default one."""

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """What ``take_step`` returns, after its effects."""
        if self._plain_steps < _PLAIN_STEPS:
            self._plain_steps += 1
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                result = self.take_step(micro_batches)
            torch.cuda.current_stream().wait_stream(self._side)
            return result
        if not self._refused and self.any_process(self.graph is None or not self._has_room(micro_batches)):
            self._capture(micro_batches)
            if self.any_process(self.graph is None):
                self.graph, self._refused = None, True
        if self.graph is None:
            return self.take_step(micro_batches)
        for inputs, batch in zip(self._inputs, micro_batches, strict=True):
            given = _tensors(batch)
            for name, room in _tensors(inputs).items():
                _fill(room, given[name])
        self.graph.replay()
        return self._result.clone()

    def _capture(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Record a step on copies of ``micro_batches``; it is not taken. Where that cannot be, ``graph`` stays None."""
        self.graph = None  # and with it its memory, before the next one's is taken
        self._inputs = [_with_room(batch) for batch in micro_batches]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        # A copy of a weight in bf16 that was made before would be stale in every replay.
        torch.clear_autocast_cache()
        try:
            with _nothing_collected(), _own_random_state(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = self.take_step(self._inputs)
            self.graph = graph
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a capture that failed is a failure of its own
            warn_once(
                f"a training step cannot be captured as a CUDA graph ({str(cause).splitlines()[0]}); its kernels are "
                "launched one by one instead, slowly for a small model."
            )
        finally:
            torch.clear_autocast_cache()

    def _has_room(self, micro_batches: Sequence[MicroBatch]) -> bool:
        """Whether every tensor of ``micro_batches`` fits where the graph reads it."""
        for inputs, batch in zip(self._inputs, micro_batches, strict=True):
            rooms, given = _tensors(inputs), _tensors(batch)
            if rooms.keys() != given.keys():
                return False
            for name, room in rooms.items():
                fits = given[name].numel() <= room.numel() if name == _OFFSETS else given[name].shape == room.shape
                if not fits:
                    return False
        return True


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """The graph of an earlier training that is collected during a capture ends the capture."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _own_random_state() -> Iterator[None]:
    """A capture that fails never tells the GPU's generator that it has ended, which then refuses every number: so the
    capture is given another, and what it draws is not missed here."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(before)


def _tensors(batch: MicroBatch) -> dict[str, Tensor]:
    """Those on the GPU that differ from batch to batch, by name."""
    found = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    documents = batch.get("document_ids")
    if isinstance(documents, Documents):
        found |= {"ids": documents.ids, "start_bn": documents.start_bn, "end_bn": documents.end_bn}
        found[_OFFSETS] = documents.offsets
    return found


def _with_room(batch: MicroBatch) -> MicroBatch:
    """A copy, with room for twice as many documents, each of which may be as long as the sequence."""
    copy = {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}
    documents = batch.get("document_ids")
    if isinstance(documents, Documents):
        offsets = documents.offsets.new_empty(2 * documents.offsets.numel())
        _fill(offsets, documents.offsets)
        ids, start_bn, end_bn = documents.ids.clone(), documents.start_bn.clone(), documents.end_bn.clone()
        longest = torch.full_like(documents.longest, ids.shape[1])
        copy["document_ids"] = Documents(ids, start_bn, end_bn, offsets, longest)
    return copy


def _fill(room: Tensor, values: Tensor) -> None:
    """Copy; documents' offsets that are fewer than there is room for are followed by documents without a token."""
    if room.shape == values.shape:
        room.copy_(values)
    else:
        room[: values.numel()].copy_(values)
        room[values.numel() :].copy_(values[-1:].expand(room.numel() - values.numel()))
