"""A checkpoint is what was written, to the bit, or it is not read."""

import random
import zipfile
from pathlib import Path

import pytest
import torch

from dma_lab.checkpoints import DamagedCheckpointError, read_checkpoint, write_checkpoint


def content_with(weight, moment=0.5):
    return {
        "state_dict": {"weight": torch.tensor(weight), "ids": torch.arange(3)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.tensor([moment, 0.0])}}}],
        "global_step": 4,
        "callbacks": {
            "RunRecorder": {"run": "a", "identity": {"seed": 0}, "lines": {"metrics.jsonl": '{"step": 4}\n'}}
        },
    }


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(content_with([1.0, 2.0]), path)
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_read_is_what_was_written_for_us_and_for_others(checkpoint, mmap):
    for content in (read_checkpoint(checkpoint, mmap=mmap), torch.load(checkpoint, weights_only=True, mmap=mmap)):
        assert content["state_dict"]["weight"].tolist() == [1.0, 2.0]
        assert content["callbacks"] == content_with([1.0, 2.0])["callbacks"]
    assert zipfile.ZipFile(checkpoint).testzip() is None


def test_a_flipped_bit_and_a_cut_are_noticed_wherever(checkpoint):
    whole = checkpoint.read_bytes()
    draw = random.Random(0)
    for byte in [*draw.sample(range(len(whole)), 150), *range(len(whole) - 150, len(whole))]:
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(checkpoint)
    for length in [0, 1, *draw.sample(range(2, len(whole)), 50)]:
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(checkpoint)
    checkpoint.write_bytes(whole + b"\0")
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize(("weight", "moment"), [([1.0, float("nan")], 0.5), ([1.0, 2.0], float("inf"))])
def test_a_state_that_is_not_finite_is_refused(checkpoint, weight, moment):
    write_checkpoint(content_with(weight, moment), checkpoint)
    with pytest.raises(DamagedCheckpointError, match="not finite"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"callbacks": {}}, "KeyError: 'RunRecorder'"),
        ({"callbacks": {"RunRecorder": {"run": "a"}}}, "it lacks identity, lines"),
        ({"state_dict": 3, "global_step": None}, None),
    ],
)
def test_a_file_of_anothers_is_refused_in_a_sentence(checkpoint, changes, said):
    content = content_with([1.0]) | changes
    if said is None:
        del content["optimizer_states"]
        said = "optimizer_states"
    write_checkpoint(content, checkpoint)
    with pytest.raises(DamagedCheckpointError, match=said) as refusal:
        read_checkpoint(checkpoint)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_is_said_by_the_file():
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint({"weight": torch.zeros(1_000_000)}, Path("/dev/full"))
