"""Trainings by several processes, each with all of the weights or with a part, against one process."""

import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from dma_lab.train.fit_run import fit_run
from dma_lab.train.ranks import Ranks
from tests.several import assert_close, train, train_together
from tests.train.test_launch import CALM, ROOT, lines_of, summary_of, the_other_process_gets

KIND = ("cpu", "dma", torch.float64)
"""In which another order of sums shows nowhere."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_steps_and_checkpoints_are_those_of_one_process(strategy, tmp_path):
    whole, parts, three, again = (tmp_path / f"{name}.ckpt" for name in ("whole", "parts", "three", "again"))
    expected = train(Ranks(), *KIND, 6, None, whole)
    assert [skipped for *_, skipped in expected] == [0, 1, 0, 0, 0, 0]
    assert all(norm > 0.5 for _, norm, _ in expected), "gradients are clipped"
    trainings = [(*steps, strategy) for steps in ((6, None, parts), (3, None, three), (6, three, again))]
    found, _, continued = train_together(tmp_path, 2, *KIND, *trainings)
    assert list(chain(*found)) == pytest.approx(list(chain(*expected)), abs=1e-9)
    ours, theirs, later = (torch.load(file, weights_only=False) for file in (parts, whole, again))
    for part in ("state_dict", "optimizer_states", "divergence_watch"):
        assert_close(ours[part], theirs[part], 1e-9)
    assert continued == found[3:]
    assert all(torch.equal(later["state_dict"][name], weight) for name, weight in ours["state_dict"].items())
    alone = train(Ranks(), *KIND, 6, three, again)
    assert list(chain(*alone)) == pytest.approx(list(chain(*expected[3:])), abs=1e-9)


@pytest.mark.slow
def test_a_run_goes_on_with_any_strategy_on_any_number_of_devices(warm_peers, read, tiny_run, tmp_path):
    """Sharded by two and stopped, then each with all of it, then by one."""
    expected = fit_run(read([*tiny_run, *CALM, f"output_dir={tmp_path / 'alone'}"]))
    here = [*tiny_run, *CALM, f"output_dir={tmp_path / 'here'}"]
    stops = []
    for strategy in ("fsdp", "ddp"):
        settings = read([*here, "trainer.devices=2", f"trainer.strategy={strategy}"])
        at_step = stops[-1] + 5 if stops else 5
        with the_other_process_gets(signal.SIGTERM, tmp_path / "here", at_step), pytest.raises(SystemExit):
            fit_run(settings)
        (run,) = (tmp_path / "here").iterdir()
        stops.append(summary_of(run)["step"])
    finished = fit_run(read([*here, "trainer.strategy=fsdp"]))
    assert 5 <= stops[0] < stops[1] < finished.step == 100
    losses, wanted = ([line["loss"] for line in lines_of(Path(run.run))] for run in (finished, expected))
    assert losses == pytest.approx(wanted, abs=1e-5)
    assert finished.val_loss == pytest.approx(expected.val_loss, abs=1e-5)


@pytest.mark.slow
def test_torchruns_processes_share_a_compiled_model(read, tiny_run, tmp_path):
    short = [*CALM, "tokens=5120", "trainer.activation_checkpointing=true"]
    expected = fit_run(read([*tiny_run, *short, f"output_dir={tmp_path / 'alone'}"]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    together = ["trainer.devices=2", "trainer.strategy=fsdp", "trainer.compile=true"]
    command = [*torchrun, "train.py", *tiny_run, *short, *together, f"output_dir={tmp_path / 'here'}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    (run,) = (tmp_path / "here").iterdir()
    assert summary_of(run)["compiled"]
    losses, wanted = ([line["loss"] for line in lines_of(folder)] for folder in (run, Path(expected.run)))
    assert losses == pytest.approx(wanted, abs=1e-5)
