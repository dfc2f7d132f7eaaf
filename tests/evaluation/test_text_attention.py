"""Attention to a text: the weights make the layer's own output, and the notebook that shows them runs."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dma_lab.attention import build_attention
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.lifetimes import run_lifetimes
from dma_lab.evaluation.text_attention import layer_attention, text_attention
from dma_lab.messages import UserError
from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run
from dma_lab.train.reading import read_settings
from tests.made_up import TINY, configuration, write_corpus

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "read_a_run.ipynb"
TEXT = "abc de fghij. Klm, no pq r st uv wx yz ab cd"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mha", {}),
        ("mha", {"recency": "slope", "qk_norm": False}),
        ("swa", {"window": 5, "sinks": 2}),
        ("dma", {"window": 4, "recent": 2, "recency": "slope"}),
        ("dma", {"window": 4, "scores": "random", "recency": "slope"}),
        ("dma", {"window": 4, "scores": "frozen"}),
    ],
    ids=str,
)
def test_the_weights_are_those_that_make_the_layers_output(name, options):
    torch.manual_seed(0)
    B, N, M = 2, 17, 24
    attention = build_attention(name, d_model=M, n_heads=4, n_kv_heads=2, head_dim=6, max_seq_len=N, **options).double()
    if hasattr(attention, "A"):
        torch.nn.init.normal_(attention.A)
    x = torch.randn(B, N, M, dtype=torch.float64)
    weights, expiry = layer_attention(attention, x)
    assert weights.shape == (B, 4, N, N)
    assert expiry.shape == (B, 2, N)
    values = attention.heads(x)[2].repeat_interleave(2, dim=1)
    mixed = attention.o_proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, attention(x), rtol=1e-9, atol=1e-10)
    for b, head, j in np.ndindex(B, 4, N):
        seen = weights[b, head, :, j].nonzero().flatten().tolist()
        assert seen == list(range(j, int(expiry[b, head // 2, j])))


def test_a_text_is_read_as_the_model_reads_it(trained_run):
    """The second layer's input is what the first made of the text, so one text's weights cannot be had of another."""
    run = open_run(trained_run)
    read = text_attention(run, TEXT)
    assert "".join(read.tokens[1:]) == TEXT.replace(" ", "·")
    assert read.tokens[0] == "<|endoftext|>"
    model = run.model()
    ids = [run.data.eot_id, *run.data.load_tokenizer().encode(TEXT).ids]
    inputs: list[torch.Tensor] = []
    model.blocks[1].attention.register_forward_hook(lambda _, arguments, __: inputs.append(arguments[0]))
    with torch.no_grad():
        model(torch.tensor([ids]))
        expected, _ = layer_attention(model.blocks[1].attention, inputs[0])
    assert read.weights_lhtj.shape == (2, 2, len(ids), len(ids))
    np.testing.assert_allclose(read.weights_lhtj[1], expected[0], rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=r"was trained on 64: give a shorter one"):
        text_attention(run, TEXT * 3)


def test_what_has_no_lifetimes_is_refused(tmp_path):
    fit_run(
        read_settings(
            configuration(
                [*TINY, *write_corpus(tmp_path), "attention=mla", "tokens=512", f"output_dir={tmp_path}/runs"]
            )
        )
    )
    (path,) = (tmp_path / "runs").iterdir()
    with pytest.raises(UserError, match="attention=mla: give a run of dma"):
        run_lifetimes(path)
    with pytest.raises(UserError, match="attends by mla: this reads mha, swa, dma"):
        text_attention(open_run(path), TEXT)


def run_cells(parameters: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Run the notebook with ``parameters`` in place of its own; its names, and what each cell would show."""
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], "kept without outputs"
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names))
        if "parameters" in cell["metadata"].get("tags", []):
            assert parameters.keys() <= names.keys()
            names |= parameters
    return names, shown


def test_the_notebook_shows_a_run(trained_run):
    names, (facts, histograms, map_of_text, outliving) = run_cells({"run": str(trained_run), "text": TEXT, "layer": 1})
    assert facts["val_loss"] == Summary.read(trained_run).val_loss
    for image in (histograms, map_of_text):
        assert image._repr_png_().startswith(b"\x89PNG"), "which is what Jupyter shows"
        assert len(np.unique(np.asarray(image))) > 20, "something is drawn"
    read, window = names["read"], names["lifetimes"].window
    assert window == 32
    lived = [(read.weights_lhtj[1, 0, :, j] > 0).sum() for j in range(len(read.tokens))]
    assert outliving == [(j, read.tokens[j]) for j, queries in enumerate(lived) if queries > window]
