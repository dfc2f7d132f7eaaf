"""Every backend at every rung of the ladder is matched, and the committed table says so."""

import importlib.util
import re
from pathlib import Path

import pytest

from dma_lab.attention import registered_backends
from dma_lab.messages import UserError
from dma_lab.model.accounting import training_flops_per_sequence
from dma_lab.train.plan import matched_model

ROOT = Path(__file__).resolve().parents[2]
RUNGS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("backends_page", ROOT / "docs" / "backends.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_what_its_command_writes_and_all_parameters_agree(docs):
    committed = (ROOT / "docs" / "backends.md").read_text()
    assert docs.page() == committed, "run: python docs/backends.py"
    rows = re.findall(r"^\| (\S+) \| [\d,]+ \| (\S+) \| [\d,]+ \| (\S+) % \|", committed, flags=re.MULTILINE)
    assert {(rung, backend) for rung, backend, _ in rows} == {(r, b) for r in RUNGS for b in registered_backends()}
    assert all(abs(float(percent)) <= 0.5 for *_, percent in rows)


TOO_SMALL = {("14k", "nsa")}
"""What three branches cost there leaves nothing for a feed-forward layer."""


@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_is_matched_in_training_flops(read, rung):
    executed = {}
    for backend in sorted(registered_backends()):
        settings = read([f"model={rung}", f"attention={backend}", "match=flops"])
        if (rung, backend) in TOO_SMALL:
            with pytest.raises(UserError, match=r"it has 25,766,784 training FLOPs .* the rung has 24,809,472"):
                matched_model(settings, settings.model.vocab_size)
            continue
        model = matched_model(settings, settings.model.vocab_size)
        executed[backend] = training_flops_per_sequence(model, settings.trainer.context).executed
    for backend, flops in executed.items():
        assert flops == pytest.approx(executed["mha"], rel=0.005), backend
