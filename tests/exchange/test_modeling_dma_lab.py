"""The code that comes along with an export, loaded by plain transformers, computes what the model does."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from dma_lab.attention.chance import ChanceScores
from dma_lab.exchange import export_model
from tests.exchange.models import assert_same_logits, distinct_tokens, make_model

CUSTOM = [
    ("mha", {"qk_norm": False}),
    ("swa", {"window": 7, "rope_base": 500.0}),
    ("mla", {"kv_rank": 20, "q_rank": 28}),
    ("nsa", {"selected_blocks": 4, "rope_base": 500.0}),
    ("dma", {"window": 9, "recent": 3, "score": "linear", "qk_norm": False}),
    ("dma", {"window": 23, "sinks": 2}),
]


@pytest.fixture(params=CUSTOM, ids=lambda case: f"{case[0]}-{len(case[1])}")
def custom(request, tmp_path, monkeypatch):
    """The exported model, and as transformers loads it with the code that came along."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    attention, options = request.param
    model = make_model(attention, options, tie_embeddings=attention != "mla")
    folder = export_model(model, tmp_path / "folder", "custom")
    return model, folder


def test_the_code_that_comes_along_gives_the_same_logits(custom):
    model, folder = custom
    tokens = distinct_tokens() // 3  # tokens come again: of equally scored keys it keeps those that we keep
    assert_same_logits(folder, model, tokens, trust_remote_code=True)


@pytest.mark.parametrize(
    ("attention", "options"),
    [("dma", {"scores": "random", "window": 9}), ("swa", {"full_every": 2, "window": 9, "sinks": 2})],
)
def test_controls_come_back_as_they_went(tmp_path, monkeypatch, attention, options):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = make_model(attention, options)
    for module in model.modules():
        if isinstance(module, ChanceScores):  # streams that a model of seed 0 would not draw
            module.draw(torch.Generator().manual_seed(9))
    folder = export_model(model, tmp_path / "folder", "custom")
    assert_same_logits(folder, model, distinct_tokens(), trust_remote_code=True)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(custom):
    model, folder = custom
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens, mask = distinct_tokens(), torch.ones(2, 64, dtype=torch.long)
    mask[0, :11] = mask[1, -11:] = 0
    logits = theirs(tokens, attention_mask=mask).logits
    for row in range(2):
        torch.testing.assert_close(
            logits[row, mask[row] == 1], model(tokens[row, mask[row] == 1][None])[0], rtol=0, atol=1e-4
        )


@torch.no_grad()
def test_generate_takes_the_likeliest_tokens_of_our_model(custom):
    model, folder = custom
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    expected = distinct_tokens()[:, :40]
    prompts = expected.clone()
    for _ in range(8):
        expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), dim=1)
    found = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=8, do_sample=False)
    assert found.tolist() == expected.tolist()


def test_labels_give_the_loss_of_the_next_token(custom):
    model, folder = custom
    theirs, tokens = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True), distinct_tokens()
    expected = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(theirs(tokens, labels=tokens).loss, expected)


@torch.no_grad()
def test_a_trainer_that_accumulates_divides_by_all_its_targets(custom):
    """transformers' Trainer leaves that to every model that takes keywords, and no longer divides by its batches."""
    model, folder = custom
    theirs, tokens = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True), distinct_tokens()
    labels = tokens.where(torch.arange(64) >= torch.tensor([[20], [40]]), -100)  # as many as no batch of its own has
    total = (labels[:, 1:] != -100).sum()
    losses = [
        theirs(tokens[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=total).loss for row in range(2)
    ]
    expected = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(sum(losses), expected)


@torch.no_grad()
def test_texts_packed_by_their_positions_do_not_see_each_other(custom):
    model, folder = custom
    theirs, tokens = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True), distinct_tokens()[:1]
    lengths = (1, 23, 40)
    packed = torch.cat([torch.arange(length) for length in lengths])[None]
    logits = theirs(tokens, position_ids=packed).logits
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-4)
    whole = theirs(tokens, position_ids=torch.arange(64)[None]).logits
    torch.testing.assert_close(whole, model(tokens), rtol=0, atol=1e-4)
