"""Every backend at every rung of the ladder is matched, in what it is asked to be, and the committed table says so."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dma_lab.attention import registered_backends
from dma_lab.messages import UserError
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import plan_run
from tests.made_up import configuration

ROOT = Path(__file__).resolve().parents[2]
RUNGS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("backends_page", ROOT / "docs" / "backends.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_what_its_command_writes_and_all_parameters_agree(docs, monkeypatch):
    monkeypatch.setattr(docs, "compose", lambda name, overrides: configuration(overrides, name))
    committed = (ROOT / "docs" / "backends.md").read_text()
    assert docs.page() == committed, "run: python docs/backends.py"
    rows = re.findall(r"^\| (\S+) \| [\d,]+ \| (\S+) \| [\d,]+ \| (\S+) % \|", committed, flags=re.MULTILINE)
    assert {(rung, backend) for rung, backend, _ in rows} == {(r, b) for r in RUNGS for b in registered_backends()}
    assert all(abs(float(percent)) <= 0.5 for *_, percent in rows)


TOO_SMALL = {("14k", "nsa")}
"""What three branches cost there leaves nothing for a feed-forward layer."""


@pytest.mark.parametrize("rung", RUNGS)
def test_every_backend_is_matched_at_every_rung(read, rung):
    by_parameters, by_flops = {}, {}
    for backend in sorted(registered_backends()):
        settings = read([f"model={rung}", f"attention={backend}"])
        hardware, vocab_size = resolve_hardware(settings.trainer), settings.model.vocab_size
        by_parameters[backend] = plan_run(settings, vocab_size, hardware)
        if (rung, backend) in TOO_SMALL:
            with pytest.raises(UserError, match=r"it has 25,766,784 training FLOPs .* the rung has 24,809,472"):
                plan_run(replace(settings, match="flops"), vocab_size, hardware)
            continue
        by_flops[backend] = plan_run(replace(settings, match="flops"), vocab_size, hardware)
    mha = by_parameters["mha"]
    assert len({plan.reference_parameters for plan in by_parameters.values()}) == 1
    for backend, plan in by_parameters.items():
        assert plan.parameters.non_embedding == pytest.approx(mha.reference_parameters, rel=0.005), backend
        assert (plan.tokens, plan.steps) == (mha.tokens, mha.steps), backend
    for backend, plan in by_flops.items():
        assert plan.flops.executed == pytest.approx(mha.flops.executed, rel=0.005), backend
        assert (plan.tokens, plan.steps) == (mha.tokens, mha.steps), backend
    if rung == "80m":
        assert by_flops["dma"].shape.d_ff > mha.shape.d_ff, "what sparsity saves goes into the feed-forward"
