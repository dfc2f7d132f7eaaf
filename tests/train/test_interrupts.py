"""A signal at every stage of a sweep: it ends at once, says so, and the same command continues it."""

import functools
import itertools
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from dma_lab.run_summary import Summary
from tests.moments import signal_group_at

# Steps 1 to 4 and 1 to 6; every second one is followed by a validation and a checkpoint.
POINTS = ["tokens=2048,3072", "trainer.log_every=1", "trainer.validate_every=2", "trainer.checkpoint_every=2"]
OF_THE_MOMENT = {"run", "tokens_per_second", "seconds", "peak_memory_bytes"}


def results(sweep: Path) -> dict:
    """What the runs of a sweep came to, but for what was measured on the way."""
    found = {}
    for file in sweep.glob("*/summary.json"):
        summary, run = Summary.read(file.parent), file.parent
        weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        with np.load(run / "validation.npz") as scores:
            arrays = {name: scores[name].tobytes() for name in scores}
        found[summary.tokens] = (
            {name: value for name, value in summary.written().items() if name not in OF_THE_MOMENT},
            (run / "metrics.jsonl").read_bytes(),
            {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
            arrays,
        )
    return found


@pytest.fixture(scope="module")
def uncut(scripts, tiny_run, tmp_path_factory):
    sweep = tmp_path_factory.mktemp("uncut")
    ended = scripts.run("train.py", ["-m", *tiny_run, *POINTS, f"output_dir={sweep}"])
    assert ended.returncode == 0, ended.stderr
    return results(sweep)


LIGHTNING = "lightning.pytorch.trainer.connectors"
MOMENTS = {
    "as a point begins": ("dma_lab.train.sweep:SweepCallback.on_job_start", 2),
    "while its data is prepared": ("dma_lab.train.prepared:prepare_task", 2),
    "while its first summary is written": ("dma_lab.train.runs:RunDirectory.write_summary", 3),
    "while the model is built": ("dma_lab.train.compiling:build_model", 2),
    "while Lightning sets up": ("dma_lab.train.module:LanguageModel.configure_optimizers", 2),
    "while the loader is made": ("dma_lab.data.module:TokenDataModule.train_dataloader", 2),
    "as training begins": ("dma_lab.train.callbacks:RunRecorder.on_train_start", 2),
    "in a step": ("dma_lab.train.module:LanguageModel.training_step", 4 + 3),
    "in a validation": ("dma_lab.train.task:TextTask.score", 2 + 1),
    "while a checkpoint is written": ("dma_lab.train.callbacks:RunRecorder._save", 2 + 2),
    "in the last validation": ("dma_lab.train.task:TextTask.score", 2 + 3),
    "while its last summary is written": ("dma_lab.train.runs:RunDirectory.write_summary", 4),
    "while its figures are printed": ("dma_lab.train.summary:print_summary", 2),
}


SIGNALS = itertools.cycle([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])


@pytest.mark.parametrize(("moment", "sent"), list(zip(MOMENTS.values(), SIGNALS, strict=False)), ids=MOMENTS)
def test_an_interrupted_sweep_ends_and_the_same_command_continues_it(scripts, tiny_run, uncut, tmp_path, moment, sent):
    command = ["-m", *tiny_run, *POINTS, f"output_dir={tmp_path}"]
    ended = scripts.run("train.py", command, before=functools.partial(signal_group_at, *moment, sent))
    said = ended.stdout + ended.stderr
    assert ended.returncode == 128 + sent, said
    assert "failed" not in said
    assert "Traceback" not in said
    assert [folder.name.partition("-")[0] for folder in tmp_path.glob(".*")] == [".sweep"], "what is left of it"
    assert said.count("comparison") == 1, "it is reported as far as it came"
    ended = scripts.run("train.py", command)
    assert ended.returncode == 0, ended.stderr
    assert not list(tmp_path.glob(".*"))
    assert results(tmp_path) == uncut
