"""A checkpoint of a GPU's state, copied in the order of its stream: no step after it is in it."""

import pytest
import torch

from dma_lab.checkpoints import read_checkpoint
from dma_lab.train.checkpoint_writer import CheckpointWriter
from dma_lab.train.runs import RunDirectory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_steps_that_are_queued_behind_a_checkpoint_are_not_in_it(tmp_path):
    run = RunDirectory(tmp_path / "a")
    run.checkpoint.parent.mkdir(parents=True)
    weight, momentum = torch.zeros(2**26, device="cuda"), torch.zeros(2**26, device="cuda")
    content = {
        "state_dict": {"weight": weight},
        "optimizer_states": [{"state": {0: {"momentum": momentum}}}],
        "global_step": 4,
        "callbacks": {"RunRecorder": {"run": "a", "identity": {}, "lines": {}}},
    }
    with CheckpointWriter(run) as writer:
        for number in range(3):
            path = run.checkpoint.with_suffix(".partial")
            writer.save_checkpoint(content, path, storage_options={"keep": number == 1})
            for _ in range(50):
                weight.add_(1)
                momentum.add_(1)
    for file, value in ((run.stable, 50), (run.previous, 50), (run.checkpoint, 100)):
        found = read_checkpoint(file)
        assert found["state_dict"]["weight"].eq(value).all()
        assert found["optimizer_states"][0]["state"][0]["momentum"].eq(value).all()
