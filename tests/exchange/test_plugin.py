"""A backend of another package through all of it: planned, trained, evaluated at another length, exported, reported."""

import sys

import pytest
from omegaconf import OmegaConf

import dma_lab.settings
from dma_lab.evaluation.evaluate import evaluate
from dma_lab.evaluation.settings import EvaluateSettings
from dma_lab.exchange import export_model, export_run
from dma_lab.messages import UserError
from dma_lab.report.collect import read_run
from dma_lab.seals import unsealed
from dma_lab.train.fit_run import fit_run
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import padded_vocabulary, plan_run
from dma_lab.train.reading import read_settings
from tests.exchange.models import assert_same_logits, distinct_tokens, make_model
from tests.made_up import TINY, configuration, write_corpus
from tests.plugins import anchored as anchored  # fixtures
from tests.plugins import installed as installed


@pytest.fixture(autouse=True)
def modules_apart(monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield
    for name in ("my_module", "anchored_attention"):
        sys.modules.pop(name, None)


def test_a_run_of_it_is_planned_trained_evaluated_exported_and_read(anchored, tmp_path):
    from dma_lab.user_configs import add_user_configs

    add_user_configs([])
    own = ["attention=anchored", "attention.window=8", "trainer.device=cpu", "tokens=2048", f"output_dir={tmp_path}"]
    settings = read_settings(configuration([*TINY, *write_corpus(tmp_path), *own]))
    plan = plan_run(settings, padded_vocabulary(settings.model.vocab_size), resolve_hardware(settings.trainer))
    keys = sum(min(t + 1, 8) + max(0, -(-(t - 7) // 16)) for t in range(64))
    layer = 4 * 2 * 16 * keys  # FLOP of 2 heads of 16, forward, over one sequence of 64
    assert plan.flops.dense_equivalent - plan.flops.executed == 3 * 2 * (4 * 2 * 16 * 64 * 65 // 2 - layer) * 2048 // 64
    summary = fit_run(settings)
    assert (summary.status, summary.attention) == ("finished", "anchored")
    run = tmp_path / summary.run.rpartition("/")[2]

    chosen = ["suite=context", "suite.lengths=[32,128]", f"checkpoint={run}", "device=cpu"]
    record = evaluate(dma_lab.settings.read_settings(EvaluateSettings, configuration(chosen, "evaluate")))
    cells = [entry["cell"] for entry in unsealed(record.read_text())["cells"]]
    assert [(cell["context"], cell["rope_base"]) for cell in cells] == [(32, None), (128, None)]
    with pytest.raises(UserError, match=r"suite.rope_base=500000: attention=anchored has no option rope_base"):
        evaluate(
            dma_lab.settings.read_settings(
                EvaluateSettings, configuration([*chosen, "suite.rope_base=5e5"], "evaluate")
            )
        )

    card = (export_run(run, tmp_path / "folder") / "README.md").read_text()
    assert "the packages `dma_lab` and `anchored-attention 0.1.0` must be installed" in card
    with pytest.raises(UserError, match="format=stock: transformers has no architecture with attention=anchored"):
        export_run(run, tmp_path / "stock", "stock")

    config = OmegaConf.load(run / "config.yaml")
    assert config.attention.package == "anchored-attention 0.1.0"
    assert read_run(run, "run").attention == "anchored"


def test_its_exported_folder_gives_the_same_logits(anchored, tmp_path):
    model = make_model("anchored", {"window": 5, "stride": 3})
    folder = export_model(model, tmp_path / "folder")
    assert_same_logits(folder, model, distinct_tokens(), trust_remote_code=True)


def test_a_buffer_that_no_folder_would_bring_back_is_refused(installed, tmp_path):
    code = """
import torch
from dma_lab.attention.mha import MultiHeadAttention, MultiHeadOptions

class Mine(MultiHeadAttention):
    Options = MultiHeadOptions
    def __init__(self, shape, options):
        super().__init__(shape, options)
        self.register_buffer("table", torch.ones(3), persistent=False)
"""
    installed("my-package", "mine = my_module:Mine", code)
    with pytest.raises(UserError, match=r"attention=mine keeps layers.0.attention.table, .* out of its state_dict"):
        export_model(make_model("mine", {}), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
