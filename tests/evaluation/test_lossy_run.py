"""A run whose tokenizer loses text: losses as of any run, and no bits per byte anywhere."""

import json

import numpy as np
import pytest
import torch

from dma_lab.evaluation import evaluate as evaluation
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.settings import EvaluateSettings
from dma_lab.exchange.model_card import training_facts
from dma_lab.run_summary import Summary
from dma_lab.settings import read_settings
from dma_lab.train.fit_run import fit_run
from dma_lab.train.reading import read_settings as read_train_settings
from dma_lab.train.summary import print_summary
from tests import lossy
from tests.made_up import TINY, configuration, write_corpus


def test_a_run_of_tokens_that_lose_text_reports_no_bits_per_byte(tmp_path, capsys):
    lossy.bert().save(str(tmp_path / "tokenizer.json"))
    own = [f"data.tokenizer={tmp_path / 'tokenizer.json'}", "attention=mha", "trainer.device=cpu", "tokens=6144"]
    settings = [*TINY, *write_corpus(tmp_path), *own, f"output_dir={tmp_path / 'outputs'}"]
    summary = fit_run(read_train_settings(configuration(settings)))
    print_summary(summary)
    assert "none: the tokenizer loses capital letters, accents" in " ".join(capsys.readouterr().out.split())
    (path,) = (tmp_path / "outputs").iterdir()
    held = (path / "summary.json").read_text() + (path / "metrics.jsonl").read_text()
    assert "bits_per_byte" not in held
    assert Summary.read(path).tokenizer_loses == summary.tokenizer_loses
    run = open_run(path)
    assert run.data.tokenizer_loses == summary.tokenizer_loses
    assert training_facts(run)["tokenizer"].startswith("loses capital letters")

    # Where documents end is told by the EOT, here by a pass over each window by hand.
    sums, context = np.load(path / "validation.npz"), run.context
    scored = int(sums["document_tokens"].sum())
    stream = torch.from_numpy(run.data.validation_tokens[: scored + 1].astype(np.int64))
    assert not sums["document_bytes"].any()
    ends = []
    for start in range(0, scored, context):
        window = stream[start : start + context + 1]
        documents = (window[:-1] == run.data.eot_id).cumsum(0, dtype=torch.int32)[None]
        with torch.no_grad():
            nats = -run.model()(window[None, :-1], documents)[0].log_softmax(-1).gather(1, window[1:, None])[:, 0]
        ends += nats[window[1:] == run.data.eot_id].tolist()
    assert sum(ends) == pytest.approx(sums["document_end_nats"].sum(), rel=1e-4)
    assert 0 < sum(ends) < 0.5 * sums["document_nats"].sum()

    chosen = ["suite=context", f"checkpoint={path}", "device=cpu", f"suite.lengths=[{context}]"]
    file = evaluation.evaluate(read_settings(EvaluateSettings, configuration(chosen, "evaluate")))
    (cell,) = json.loads(file.read_text())["cells"]
    assert "bits" not in json.dumps(cell)
    slid = np.load(file.parent / cell["scores"]["sums"])
    assert 0 < slid["document_end_nats"].sum() < 0.5 * slid["document_nats"].sum()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert row.split("│")[-2].strip() == "–"
