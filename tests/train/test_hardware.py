"""What a summary says of the machine and of the kernels, and that it forgets no machine that took a step."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dma_lab.attention import build_attention
from dma_lab.checkpoints import read_checkpoint, recorded, write_checkpoint
from dma_lab.train.continuing import Start, prepare_start
from dma_lab.train.fit_run import fit_run
from dma_lab.train.rung import rung_name
from dma_lab.train.runs import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


def test_a_summary_names_machine_kernels_and_model_and_every_machine_that_took_steps(read, overrides, capfd):
    settings = read([*overrides, "attention=mha", "data.mask_documents=false", "tokens=10240", "trainer.context=32"])
    first = fit_run(settings)
    assert first.cpu_capability == torch.backends.cpu.get_cpu_capability()
    assert (first.compiled, first.earlier_machines) == (False, ())
    assert first.kernels == "PyTorch's SDPA"
    assert first.rung == "nano n_layers=2 d_model=32 head_dim=16 d_ff=96"

    # The same run, its steps taken on another machine, and continued here.
    run = RunDirectory(Path(first.run))
    theirs = f"{first.hardware}, AVX1, fp32, PyTorch {torch.__version__}"
    content = read_checkpoint(run.checkpoint)
    assert recorded(content)["machines"] == [theirs.replace("AVX1", first.cpu_capability)]
    recorded(content)["machines"] = [theirs, "one before that"]
    write_checkpoint(content, run.checkpoint)
    (run.path / "summary.json").unlink()
    second = fit_run(settings)
    assert second.earlier_machines == (theirs, "one before that")
    assert f"were taken on {theirs}; one before that" in capfd.readouterr().err

    # And what branches from it.
    run.keep(run.checkpoint)
    branch = RunDirectory(run.path.with_name("branch"))
    branch.checkpoint.parent.mkdir(parents=True)
    start = prepare_start(branch, lambda step: recorded(content)["identity"], [(run.path, 20)])
    assert start == Start(20, [theirs, "one before that"])


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "14k"),
        ({"n_layers": 3}, "14k n_layers=3"),
        ({"d_ff": 288, "tie_embeddings": False}, "14k d_ff=288 tie_embeddings=False"),
        ({"vocab_size": 4096, "context": 64}, "14k"),  # no part of the shape
        ({"name": "mine"}, "mine n_layers=2 d_model=24 n_heads=2 n_kv_heads=1 head_dim=12 d_ff=72 tie_embeddings=True"),
    ],
    ids=str,
)
def test_a_rung_is_called_what_it_is(read, changed, name):
    model = vars(read(["model=14k"]).model)
    assert rung_name(model | changed) == name


INTERVAL = "interval attention (PyTorch)"
RAN = {  # with document ids, and without
    "mha": (INTERVAL, "PyTorch's SDPA"),
    "mla": (INTERVAL, "PyTorch's SDPA"),
    "swa": (INTERVAL, INTERVAL),
    "dma": (INTERVAL, INTERVAL),
    "nsa": 2 * (f"{INTERVAL}, block-sparse attention (PyTorch)",),
    "moba": 2 * ("block-sparse attention (PyTorch)",),
    "dsa": 2 * ("token-sparse attention (PyTorch)",),
    "gated_deltanet": 2 * ("gated delta rule (PyTorch)",),
}


@pytest.mark.parametrize("name", sorted(RAN))
def test_kernels_are_named_as_they_ran(name):
    layer = build_attention(name, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, max_seq_len=64)
    packed, unpacked = RAN[name]
    assert layer.kernels(64, packed=True, bf16=False) == packed
    assert layer.kernels(64, packed=False, bf16=True) == unpacked


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the capabilities are those of x86")
def test_make_train_asks_for_what_every_machine_has_and_lets_its_user_choose():
    for given, expected in (({}, "avx2"), ({"ATEN_CPU_CAPABILITY": "default"}, "default")):
        environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"} | given
        code = "import os; print('capability', os.environ.get('ATEN_CPU_CAPABILITY'))"
        command = ["make", "train", "--old-file=setup", f'RUN={sys.executable} -c "{code}" #']
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert f"capability {expected}" in done.stdout.splitlines()
