"""Several GPUs that train one run together, against one of them."""

import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch

from dma_lab.train.ranks import Ranks
from tests.several import assert_close, train, train_together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
KIND = ("cuda", "mha", torch.float32)


def test_sharded_steps_are_those_of_one_gpu_and_go_on_with_another_number(tmp_path):
    """Two GPUs, and from a checkpoint of all of them (4, where a step's 4 sequences divide so) two and one."""
    cards = 4 if torch.cuda.device_count() >= 4 else 2
    whole, parts, three, again = (tmp_path / f"{name}.ckpt" for name in ("whole", "parts", "three", "again"))
    expected = train(Ranks(), *KIND, 6, None, whole)
    train_together(tmp_path, cards, *KIND, (3, None, three))
    found, continued = train_together(tmp_path, 2, *KIND, (6, None, parts), (6, three, again))
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    # Newton-Schulz is in bfloat16 on a GPU, which carries the order of sums into every update.
    assert list(chain(*found)) == pytest.approx(list(chain(*expected)), abs=5e-3)
    ours, theirs = (torch.load(file, weights_only=False) for file in (parts, whole))
    assert_close(ours["state_dict"], theirs["state_dict"], 2e-3)
    for losses in (continued, train(Ranks(), *KIND, 6, three, again)):
        assert list(chain(*losses)) == pytest.approx(list(chain(*expected[3:])), abs=5e-3)


def test_steps_of_several_gpus_are_captured_and_those_of_one(tmp_path):
    """Captured anew by both, though one alone has more documents than there is room for (``tests.several.draw``)."""
    files = {name: tmp_path / f"{name}.ckpt" for name in ("whole", "copies", "three", "again")}
    expected = train(Ranks(), *KIND, 6, None, files["whole"])
    trainings = (6, None, files["copies"]), (3, None, files["three"]), (6, files["three"], files["again"])
    found, _, continued = train_together(tmp_path, 2, *KIND, *((*training, "ddp") for training in trainings))
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert list(chain(*found)) == pytest.approx(list(chain(*expected)), abs=5e-3)
    # In these three steps one training replays what the other launches; sums of gradients have no order of their own.
    assert list(chain(*continued)) == pytest.approx(list(chain(*found[3:])), abs=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_of_two_gpus_ends_once_it_is_finished_and_says_everything_once(tmp_path, strategy):
    settings = (
        *("model=14k", "attention=mha", "trainer.context=128", "trainer.tokens_per_step=512", "tokens=8192"),
        *("trainer.validation_tokens=4096", "trainer.devices=2", f"trainer.strategy={strategy}"),
        *(f"output_dir={tmp_path}", f"data.cache_dir={tmp_path}/data"),
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "train.py", *settings], cwd=root, capture_output=True, text=True)
    since = time.time()
    assert ended.returncode == 0, ended.stderr
    (summary,) = tmp_path.glob("*/summary.json")
    assert since - summary.stat().st_mtime < 12, "processes wait for each other's end"
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(said) == len(set(said))
    assert "destroy_process_group" not in ended.stderr
