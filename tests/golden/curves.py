"""What every backend's loss is, step by step, in a training that is the same to the bit wherever it can be.

A change that is meant to move losses writes them anew, and shows them in its diff: ``python -m tests.golden.curves``.
"""

import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("curves.json")
STEPS = 50
# Read while torch is loaded. MKL's own choice differs between makers of CPUs; COMPATIBLE is the same on all x86.
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
# At the ladder's rate, which is for twenty times the tokens per step, the curves would be noise, which rounding steers.
SETTINGS = [
    *("model=nano", "model.vocab_size=320", "optimizer.learning_rate=1e-3", "trainer.device=cpu"),
    *("trainer.context=128", "trainer.tokens_per_step=256", f"tokens={256 * STEPS}", "trainer.validation_tokens=2048"),
    *("trainer.log_every=1", f"trainer.validate_every={STEPS}", f"trainer.checkpoint_every={STEPS}"),
]


def train_all() -> dict[str, dict[str, Any]]:
    """``made_with`` (versions and the machine's kind) and ``curves``: by backend the loss of every step and the
    validation's at the end, nats per token."""
    os.environ.update(PINNED)
    import torch

    from dma_lab.attention import registered_backends
    from dma_lab.train.fit_run import fit_run
    from dma_lab.train.reading import read_settings
    from tests.made_up import configuration, write_corpus

    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder))
        for backend in sorted(registered_backends()):
            overrides = [*SETTINGS, *corpus, f"attention={backend}", f"output_dir={folder}/outputs"]
            summary = fit_run(read_settings(configuration(overrides)))
            lines = (Path(summary.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            curves[backend] = [*(json.loads(line)["loss"] for line in lines), summary.val_loss]
    made_with = {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        **{package: version(package) for package in ("numpy", "tokenizers", "lightning")},
    }
    return {"made_with": made_with, "curves": curves}


def write(file: Path) -> None:
    """Train, and write what came of it to ``file``: a line per backend."""
    trained = train_all()
    curves = ",\n".join(f'  "{backend}": {json.dumps(losses)}' for backend, losses in trained["curves"].items())
    text = f'{{"made_with": {json.dumps(trained["made_with"])},\n"curves": {{\n{curves}\n}}}}\n'
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else FILE)
