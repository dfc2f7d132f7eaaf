"""Kernels compile for the GPU that they are for: the interpreter runs Python, which may do what Triton cannot."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_kernel_compiles_for_an_h100(tmp_path):
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "dma_lab" / "kernels").rglob("*.py")]
    kernels = {name for source in sources for name in re.findall(r"jit\S*\ndef (\w+_kernel)\(", source)}
    assert len(kernels) > 20
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled_kernels"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert set(done.stdout.split()) == kernels
