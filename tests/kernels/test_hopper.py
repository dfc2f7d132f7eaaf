"""Which inputs go to the kernels for Hopper, and what is said of the others."""

import pytest
import torch

from dma_lab.kernels.interval.hopper.ring import hopper_supports

BF16 = torch.bfloat16


def heads(D, *, dtype=BF16, H=2):
    return torch.zeros(1, H, 8, D, dtype=dtype)


@pytest.mark.parametrize(("D", "E"), [(64, 64), (128, 128), (128, 64), (64, 128)])
def test_bf16_of_its_widths_is_taken_on_hopper(D, E):
    assert hopper_supports((9, 0), heads(D, H=4), heads(D), heads(E), heads(E, H=4)) is None
    transposed = torch.zeros(1, 8, 4, D, dtype=BF16).transpose(1, 2)
    assert hopper_supports((9, 0), transposed, heads(D), heads(E)) is None


@pytest.mark.parametrize("capability", [(0, 0), (8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_gpus_are_told(capability):
    reason = hopper_supports(capability, heads(64), heads(64), heads(64))
    assert reason == "they need a GPU of compute capability 9.0"


def test_other_dtypes_and_widths_are_told():
    half = heads(64, dtype=torch.float16)
    assert hopper_supports((9, 0), half, half, half) == "they take bfloat16, not torch.float16"
    assert hopper_supports((9, 0), heads(32), heads(32), heads(64)) == "they take head dims 64 and 128, not 32 and 64"
    assert hopper_supports((9, 0), heads(64), heads(64), heads(96)) == "they take head dims 64 and 128, not 64 and 96"


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_rows_that_cannot_be_fetched_whole_are_told(which):
    flat = torch.zeros(8 * 2 * 72 + 1, dtype=BF16)
    shifted = flat[1 : 1 + 8 * 2 * 64].view(1, 2, 8, 64)  # begins two bytes past a multiple of 16
    strided = flat[: 8 * 2 * 72].view(1, 2, 8, 72)[..., :64]
    for misfit in (shifted, strided):
        tensors = [heads(64) for _ in range(4)]
        tensors[which] = misfit
        assert hopper_supports((9, 0), *tensors) == "a tensor's rows do not begin at multiples of 16"
