"""The card of an exported folder."""

import re
import shutil
from dataclasses import replace

import torch
import yaml

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.exchange import export_run
from dma_lab.run_summary import Summary
from tests.exchange.models import distinct_tokens


def test_the_card_says_what_the_model_is_and_how_it_was_trained_and_names_no_licence_of_its_own(trained_run, tmp_path):
    plain = (export_run(trained_run, tmp_path / "plain") / "README.md").read_text()
    summary = Summary.read(trained_run)
    model = open_run(trained_run).model()
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", plain, flags=re.MULTILINE))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert rows["parameters"] == f"{total:,}, of which embedding {model.embedding.weight.numel():,}"
    assert rows["attention"] == "qk_norm=True, rope_base=10000.0, recency=None, gate=False"
    assert rows["shape"] == "2 layers of 32, feed-forward 96, 2 heads, vocabulary 320"
    assert rows["data"] == f"local, fingerprint {summary.data_fingerprint}"
    assert rows["training"] == "step 10 of 10, 5,120 tokens, context 64, seed 0"
    assert rows["validation loss"].startswith(f"{summary.val_loss:.4f} nats per token, ")
    assert rows["dma_lab"] == f"commit {summary.git_commit}"
    assert rows["run"] == trained_run.name
    metadata = yaml.safe_load(plain.split("---")[1])
    assert metadata == {"library_name": "transformers", "pipeline_tag": "text-generation"}, "no licence"
    # The code of the card loads the folder.
    code = re.search(r"```python\n(.*?)```", plain, flags=re.DOTALL).group(1)
    loaded: dict = {}
    exec(code.replace("FOLDER", str(tmp_path / "plain")), loaded)
    assert loaded["tokenizer"].vocab_size <= 320
    torch.testing.assert_close(loaded["model"](distinct_tokens()).logits, model(distinct_tokens()), rtol=0, atol=1e-4)

    given = (export_run(trained_run, tmp_path / "given", license="cc-by-4.0") / "README.md").read_text()
    assert yaml.safe_load(given.split("---")[1])["license"] == "cc-by-4.0"


def test_the_card_of_an_unfinished_run_claims_no_validation_loss(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    replace(Summary.read(run), status="interrupted").write(run)
    assert "validation loss" not in (export_run(run, tmp_path / "folder") / "README.md").read_text()
