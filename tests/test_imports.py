"""What a command imports before it has work for it: seconds for which its user would wait."""

import subprocess
import sys

CALLS = """
import sys
from hydra.core.global_hydra import GlobalHydra
from dma_lab.__main__ import main

def call(*arguments, without, status=0):
    GlobalHydra.instance().clear()
    sys.argv = ["dma-lab", *arguments]
    try:
        main()
        ended = 0
    except SystemExit as end:
        ended = end.code or 0
    assert ended == status, (arguments, ended)
    imported = without & sys.modules.keys()
    assert not imported, (arguments, imported)

LIGHTNING = {"lightning", "torchmetrics", "transformers", "torch._dynamo", "scipy.stats"}
DRAWING = {"matplotlib", "scipy"}
EVERYTHING = {"torch"} | LIGHTNING | DRAWING
call("train", "--help", without=EVERYTHING)
call("plan", "--help", without=EVERYTHING)
call("report", "--help", without=EVERYTHING)
call("export", "--help", without=EVERYTHING)
call("evaluate", "suite=needle", "--help", without=EVERYTHING)
call("bench", "training", "--help", without=EVERYTHING)
call("bench", "kernels", "heads=0", without=EVERYTHING, status=2)
call("report", "status", "runs=nowhere", without=EVERYTHING, status=2)
call("train", "trainer.contxt=1", without=EVERYTHING, status=2)
call("report", "larger.params=0", without=EVERYTHING, status=2)
call("train", "tokens=0", without=LIGHTNING | DRAWING, status=2)
call("export", "checkpoint=nowhere", "to=folder", without=LIGHTNING | DRAWING, status=2)
call("evaluate", "suite=needle", "checkpoint=nowhere", without=LIGHTNING | DRAWING, status=2)
call("report", "runs=nowhere", without=LIGHTNING, status=2)
LIGHTNING -= {"torch._dynamo"}  # PyTorch's own initialisation on the meta device imports it
call("plan", "model=14k", "tokens=49152", "flops_per_second=1e9", without=LIGHTNING)
"""


def test_no_command_imports_what_it_has_no_work_for(tmp_path):
    ended = subprocess.run([sys.executable, "-c", CALLS], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
