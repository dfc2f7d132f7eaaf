"""A training step on the GPU: nothing in it waits for the device, and captured as a graph it is the same to the bit."""

import gc
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from dma_lab.attention import registered_backends
from dma_lab.data.module import TokenDataModule
from dma_lab.model import ModelShape, Transformer
from dma_lab.model.transformer import Block
from dma_lab.train import module as module_file
from dma_lab.train.module import LanguageModel
from dma_lab.train.optim import build_optimizers
from dma_lab.train.settings import AdamWSettings, MuonSettings
from dma_lab.train.step_graph import StepGraph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SHAPE = ModelShape(2, 64, 2, 1, 32, 128, vocab_size=128, max_seq_len=128, tie_embeddings=False)
STEPS, CAPTURED_FROM = 10, 4
BAD_TOKEN = 127
OPTIMIZERS = {
    "adamw": AdamWSettings("adamw", 0.01, 0.0, [0.9, 0.95], 1e-8, 1.0),
    "muon": MuonSettings("muon", 0.01, 0.5, 0.95, 0.0, [0.9, 0.95], 1e-8, 1.0),
}


class Watched(LanguageModel):
    """Keeps every step's figures and whether it changed anything; a captured step that waits is an error."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.figures: list[list[float]] = []
        self.unchanged: list[int] = []
        self.graphs: list[torch.cuda.CUDAGraph] = []
        take_step = self._take_step

        def watched(micro_batches: Any) -> Tensor:
            before = self.state()
            torch.cuda.set_sync_debug_mode("error" if self.global_step >= CAPTURED_FROM else "default")
            try:
                result = take_step(micro_batches)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            self.figures.append(result.tolist())
            if self.global_step and all(map(torch.equal, before, self.state())):
                self.unchanged.append(self.global_step + 1)
            graph = take_step.graph if isinstance(take_step, StepGraph) else None
            if graph is not None and not any(graph is known for known in self.graphs):
                self.graphs.append(graph)
            return result

        self._take_step = watched

    def state(self) -> list[Tensor]:
        states = [state for optimizer in self._optimizers() for state in optimizer.state.values()]
        moments = [value for state in states for value in state.values()]
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *moments)]


def draw(first: int, count: int, bad: tuple[int, ...] = ()) -> dict[str, Tensor | None]:
    """Four sequences per step; documents become many more from the eighth step on."""
    rows, documents = [], []
    for row in range(first, first + count):
        generator = torch.Generator().manual_seed(row)
        rows.append(torch.randint(BAD_TOKEN // 4, (129,), generator=generator))  # which can be learnt
        often = 0.3 if row >= 28 else 0.02
        documents.append((torch.rand(128, generator=generator) < often).cumsum(0))
        if row // 4 + 1 in bad:
            rows[-1][50] = BAD_TOKEN
    tokens = torch.stack(rows)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "document_ids": torch.stack(documents)}


def trained(
    backend: str, optimizer: str = "adamw", *, compiled: bool = False, bad: tuple[int, ...] = (), again: bool = False
) -> Watched:
    torch.compiler.reset()
    module = Watched(
        Transformer(SHAPE, backend),
        make_optimizers=lambda model: build_optimizers(model, OPTIMIZERS[optimizer]),
        learning_rate=lambda step: 0.01 / (step + 1),
        gradient_clip=1.0,
        accumulate=2,
    )
    module.model.activation_checkpointing = again
    with torch.no_grad():
        module.model.embedding.weight[BAD_TOKEN] = torch.inf
    for block in module.model.blocks if compiled else []:
        block.compile(fullgraph=True)
    if compiled:
        module.model.cross_entropy.compile(fullgraph=True)
    trainer = L.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=STEPS, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, TokenDataModule(partial(draw, bad=bad), sequences_per_step=4, accumulate=2))
    assert trainer.global_step == STEPS
    module.learning_rates = [group["lr"].item() for group in module._groups()]
    return module


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("backend", "optimizer"), [*((name, "adamw") for name in sorted(registered_backends())), ("dma", "muon")]
)
def test_a_captured_step_is_the_plain_one_to_the_bit(backend, optimizer, compiled, monkeypatch):
    # What Inductor chooses by timing it chooses once for both.
    with fresh_cache():
        hold(backend, optimizer, compiled, monkeypatch)


def hold(backend, optimizer, compiled, monkeypatch) -> None:
    captured = trained(backend, optimizer, compiled=compiled)
    assert captured.graphs, "a step was captured"
    monkeypatch.setattr(module_file, "StepGraph", lambda take_step, any_process: take_step)
    monkeypatch.setattr(f"{__name__}.CAPTURED_FROM", 10**6)
    plain = trained(backend, optimizer, compiled=compiled)
    assert not plain.graphs
    assert captured.figures[0][0] == plain.figures[0][0]
    assert captured.figures == plain.figures
    assert all(map(torch.equal, captured.state(), plain.state()))
    rates = {"adamw": [0.001] * 2, "muon": [0.001, 0.0005, 0.0005]}[optimizer]
    assert captured.learning_rates == plain.learning_rates == pytest.approx(rates)
    assert captured.unchanged == []
    assert captured.figures[-1][0] < captured.figures[0][0]


def test_more_documents_than_there_is_room_for_are_captured_anew(monkeypatch):
    # Flash-attn takes offsets, of which there are as many as documents; the others take bounds.
    captured = trained("mha")
    assert len(captured.graphs) == 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [2, 7])
def test_a_step_that_is_not_finite_changes_nothing(bad, optimizer):
    """The second step is a plain one, the seventh a captured one."""
    module = trained("mha", optimizer, bad=(bad,))
    assert module.unchanged == [bad]
    assert [figures[2] for figures in module.figures] == [float(step == bad) for step in range(1, 11)]


@pytest.mark.parametrize("backend", sorted(registered_backends()))
def test_activation_checkpointing_is_captured_and_changes_no_bit(backend):
    plain, again = trained(backend), trained(backend, again=True)
    assert again.graphs
    assert again.figures == plain.figures
    assert all(map(torch.equal, again.state(), plain.state()))


@pytest.mark.parametrize("backend", ["dma", "mla"])
@pytest.mark.parametrize("again", [False, True])
def test_a_capture_that_fails_half_way_leaves_no_trace(monkeypatch, backend, again):
    captured = trained(backend, again=again)
    forward, calls = Block.forward, []

    def which_waits(self: Block, *inputs: Any) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            calls.append(inputs)
            if len(calls) == (3 if again else 2):  # with checkpoints in the backward pass, in its thread
                torch.cuda.current_stream().synchronize()
        return forward(self, *inputs)

    monkeypatch.setattr(Block, "forward", which_waits)
    plain = trained(backend, again=again)
    assert captured.graphs
    assert calls
    assert not plain.graphs
    assert plain.figures == captured.figures
    assert all(map(torch.equal, plain.state(), captured.state()))
    torch.rand(2, device="cuda")  # whose generator does not wait for the end of the capture


def test_an_earlier_trainings_graph_is_not_collected_during_a_capture():
    for backend in ("mha", "dma"):
        earlier = [trained(backend)]
        earlier.append(earlier)  # a circle, which is collected whenever Python likes
        del earlier
        threshold = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            assert trained(backend).graphs
        finally:
            gc.set_threshold(*threshold)


def test_a_batch_is_copied_while_the_gpu_works():
    module, gpu = TokenDataModule(draw, sequences_per_step=256, accumulate=1), torch.device("cuda")
    batch = module.on_before_batch_transfer(draw(0, 256), 0)  # of 64 KiB and less, CUDA waits for no copy
    module.transfer_batch_to_device(batch, gpu, 0)  # pinned memory is asked for once, which does wait
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # half a second
    busy = torch.cuda.Event()
    busy.record()
    moved = module.transfer_batch_to_device(batch, gpu, 0)
    assert not busy.query()
    assert torch.equal(moved["tokens"].cpu(), batch["tokens"])
    assert torch.equal(moved["document_ids"].offsets.cpu(), batch["document_ids"].offsets)
