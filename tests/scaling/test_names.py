"""What the room offers by name, and at what price."""

import subprocess
import sys

import pytest

import dma_lab.scaling


def test_every_name_is_there():
    for name in dma_lab.scaling.__all__:
        assert getattr(dma_lab.scaling, name).__name__ == name
    with pytest.raises(ImportError, match="fit_everything"):
        from dma_lab.scaling import fit_everything  # noqa: F401


def test_the_room_is_entered_without_scipy():
    code = "import sys, dma_lab.scaling; assert 'scipy' not in sys.modules; from dma_lab.scaling import fit_parametric"
    subprocess.run([sys.executable, "-c", code], check=True)
