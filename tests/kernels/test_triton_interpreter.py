"""The Triton kernels on the CPU: the cases run in a process of their own, under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dma_lab.kernels import interval_attention, prefix_topk_expiry


@pytest.mark.parametrize("what", [["selection", "block"], ["interval", "key_list"]], ids=" and ".join)
def test_kernels_under_the_interpreter(what):
    cases = [str(Path(__file__).with_name(f"interpreter_{each}_cases.py")) for each in what]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


def test_cpu_tensors_are_refused_without_the_interpreter():
    x = torch.ones(1, 1, 4, 16)
    with pytest.raises(ValueError, match="impl='triton' with tensors on cpu"):
        interval_attention(x, x, x, torch.full((1, 1, 4), 4, dtype=torch.int32), impl="triton")
    with pytest.raises(ValueError, match="impl='triton' with tensors on cpu"):
        prefix_topk_expiry(torch.ones(1, 1, 4), 2, impl="triton")


def test_float64_is_refused_by_the_kernels_by_name():
    x = torch.ones(1, 1, 4, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"impl='triton'.*q is torch\.float64"):
        interval_attention(x, x, x, torch.full((1, 1, 4), 4, dtype=torch.int32), impl="triton")
