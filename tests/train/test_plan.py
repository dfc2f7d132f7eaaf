"""Plans against hand arithmetic, without spending memory."""

import functools
import json
import math
from types import SimpleNamespace

import pytest
import torch

from dma_lab.attention import registered_backends
from dma_lab.commands import plan as plan_command
from dma_lab.data.tokenizer import train_tokenizer
from dma_lab.messages import UserError
from dma_lab.model.accounting import estimate_memory
from dma_lab.train.hardware import Hardware, resolve_hardware
from dma_lab.train.micro_batch_size import gpu_micro_batch
from dma_lab.train.plan import matched_model, plan_run
from dma_lab.train.vocabulary import planned_vocabulary
from tests.made_up import as_given, configuration


def plan(read, *overrides):
    settings = read([*overrides])
    return plan_run(settings, settings.model.vocab_size, resolve_hardware(settings.trainer))


@functools.cache
def mha_plan(read, *overrides):
    return plan(read, *overrides, "attention=mha")


@pytest.mark.parametrize(
    ("rung", "attention", "match", "width"),
    [
        # A layer of MLA has 55,328 weights and one of MHA 49,216; a unit of width has 3 · 128: 384 - 15.9.
        ("1m", "mla", "params", 368),
        # DMA's 33 weights per layer are less than a unit of width, 3 · 64.
        ("nano", "dma", "params", 192),
        # A window of 1024 in 2048 saves 524,800 of 2,098,176 pairs, each 4 · 6 · 128 FLOP; a unit of width takes
        # 2 · 3 · 768 per token: 2304 + 170.8. 2472 and 2480 are off by more than a twentieth of a percent.
        ("80m", "swa", "flops", 2476),
    ],
)
def test_matched_widths_are_those_worked_out_by_hand(read, rung, attention, match, width):
    assert plan(read, f"model={rung}", f"attention={attention}", f"match={match}").shape.d_ff == width


def test_a_device_of_several_that_share_holds_its_part_and_what_computes(read):
    shared = ["model=80m", "attention=mha", "optimizer=adamw", "trainer.devices=4", "trainer.strategy=fsdp"]
    memory = plan(read, *shared, "trainer.micro_batch_sequences=4").memory
    alone = plan(read, "model=80m", "attention=mha", "optimizer=adamw", "trainer.micro_batch_sequences=4").memory
    layer = 768 * (768 + 384 + 384 + 768) + 3 * 768 * 2304 + 2 * 768 + 2 * 128
    rest = alone.weights // 4 - 12 * layer
    assert rest % 768 == 0
    assert memory.weights == alone.weights // 4 + 4 * (layer + rest)
    assert memory.gradients == memory.weights
    assert memory.optimizer == alone.optimizer // 4
    assert memory.activations == alone.activations


def test_what_cannot_be_matched_is_refused(read):
    # Five parameters more than MHA in under a hundred, and no narrower feed-forward than one.
    shape = ["model.n_layers=1", "model.d_model=4", "model.n_heads=1", "model.n_kv_heads=1", "model.head_dim=4"]
    with pytest.raises(UserError, match="cannot be matched"):
        plan(read, "attention=dma", "model.d_ff=1", *shape)


def test_the_budget_is_twenty_tokens_a_parameter_in_whole_steps(read):
    nano = plan(read, "model=nano", "attention=dma")
    assert nano.tokens == nano.steps * 3072
    assert abs(nano.tokens - 20 * 148_096) <= 3072 / 2
    assert plan(read, "model=nano", "tokens=30720").steps == 10
    assert plan(read, "model=nano", "tokens_per_parameter=40").steps == pytest.approx(2 * nano.steps, abs=1)


@pytest.mark.parametrize("attention", sorted(registered_backends()))
def test_a_budget_of_flops_is_what_the_mha_rung_takes_and_every_backend_sees_its_tokens(read, attention):
    own = plan(read, "model=3m", f"attention={attention}", "flops=1e15")
    mha = mha_plan(read, "model=3m", "flops=1e15")
    # By hand, the norms left out: 6 per weight and token, causal scores and values, and the head.
    weights = 4 * (256 * 64 * (2 * 4 + 2 * 2) + 3 * 256 * 768) + 256 * 4096
    a_token = 6 * weights + 4 * 3 * (4 * 4 * 64 * 1025 / 2)
    step = 16_384 * a_token
    assert abs(1e15 - mha.steps * step) <= step / 2
    assert own.tokens == mha.tokens == mha.steps * 16_384
    assert abs(mha.flops.dense_equivalent - 1e15) <= step / 2


def test_a_budget_of_flops_that_whole_steps_would_miss_is_refused_with_what_would_do(read):
    with pytest.raises(UserError, match=r"flops=5e\+12 pays for .* give at least (\S+)\.") as refusal:
        plan(read, "model=3m", "attention=dma", "flops=5e12")
    enough = float(str(refusal.value).split()[-1].rstrip("."))
    assert plan(read, "model=3m", "attention=dma", f"flops={enough * 1.01}").steps == 10


def test_flops_are_six_a_parameter_and_token_plus_attention_and_head(read):
    large = plan(read, "model=1.7b", "attention=mha")
    by_rule = 6 * large.parameters.non_embedding * large.tokens
    head = 6 * 2048 * large.shape.vocab_size * large.tokens
    attention = 12 * 28 * 2048 * 1024.5 * large.tokens
    norms = 6 * large.parameters.norms * large.tokens
    assert large.flops.executed == pytest.approx(by_rule - norms + head + attention, rel=1e-3)


def test_plan_prints_every_part_and_its_sum(run_script, overrides, tmp_path):
    result = run_script("plan.py", [*overrides, "attention=dma"])
    assert result.returncode == 0, result.stderr
    for words in (
        "parameters: attention",
        "executed",
        "dense-equivalent",
        "tokens on disk",
        "memory: optimizer",
        "of which validation",
    ):
        assert words in result.stdout
    assert not list(tmp_path.iterdir()), "a plan spends nothing"
    stated = run_script("plan.py", ["model=1.7b", "attention=dma", "flops_per_second=4e14"])
    assert "1,409," in stated.stdout
    assert "as stated" in stated.stdout
    refused = run_script("plan.py", [*overrides, "flops_per_second=-3"])
    assert (refused.returncode, "flops_per_second=-3" in refused.stderr) == (2, True)


def test_train_prints_the_short_plan_first(run_script, overrides, tmp_path):
    result = run_script("train.py", [*overrides, "attention=dma"])
    assert result.returncode == 0, result.stderr
    assert "30,720 tokens" in result.stderr
    (run,) = tmp_path.iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['params_non_embedding']:,} non-embedding" in result.stderr


@pytest.mark.parametrize(
    ("rung", "sequences", "gib", "expected"),
    [
        ("80m", 64, 80, 32),  # 65,536 tokens
        ("80m", 64, 32, 16),
        ("80m", 64, 8, 8),  # 16,384 tokens: what refuses too little memory is not this
        ("80m", 62, 80, 31),
        ("80m", 61, 80, 1),
        ("1.7b", 512, 80, 8),
        ("1m", 28, 80, 28),  # the whole step
    ],
)
def test_a_gpu_takes_as_large_a_micro_batch_as_makes_it_faster(read, rung, sequences, gib, expected):
    settings = read([f"model={rung}", "attention=mha"])
    model = matched_model(settings, settings.model.vocab_size)
    context = settings.trainer.context
    assert gpu_micro_batch(model, sequences, context, torch.bfloat16, gib * 2**30) == expected


def test_seven_tenths_of_the_memory_are_what_the_estimate_of_a_larger_micro_batch_may_take(read):
    settings = read(["model=80m", "attention=mha"])
    model = matched_model(settings, settings.model.vocab_size)
    needed = estimate_memory(model, 16, 2048, torch.bfloat16).total
    assert gpu_micro_batch(model, 64, 2048, torch.bfloat16, math.ceil(needed / 0.7)) == 16
    assert gpu_micro_batch(model, 64, 2048, torch.bfloat16, math.floor(needed / 0.7) - 1) == 8
    needed = estimate_memory(model, 16, 2048, torch.bfloat16, accumulates=False).total
    assert gpu_micro_batch(model, 16, 2048, torch.bfloat16, math.ceil(needed / 0.7)) == 16


@pytest.mark.parametrize("attention", ["mla", "nsa"])
def test_all_backends_of_a_rung_have_micro_batches_of_one_size(read, monkeypatch, attention):
    """They decide how a GPU rounds, and what memory is estimated depends on the width that matching finds."""
    gpu = Hardware(torch.device("cuda"), "H100", "bf16", compile=True)
    there = SimpleNamespace(total_memory=79 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: there)
    settings = [read(["model=680m", f"attention={name}", "match=flops"]) for name in ("mha", attention)]
    ours, theirs = (plan_run(each, 32_768, gpu) for each in settings)
    assert 1 < theirs.accumulate == ours.accumulate


def test_a_plan_counts_activation_checkpointing_as_memory_alone(read):
    plain, again = (
        plan(read, "model=80m", "attention=mha", f"trainer.activation_checkpointing={asked}") for asked in (False, True)
    )
    assert again.memory.activations < plain.memory.activations / 2
    assert again.memory.optimizer == plain.memory.optimizer
    assert again.flops == plain.flops


def test_a_plan_counts_with_the_tokenizer_that_the_run_will_have(read, overrides, tmp_path, monkeypatch, capsys):
    """Not with model.vocab_size, which a given tokenizer and data.vocab_size overrule."""
    train_tokenizer(iter(["".join(map(chr, range(300, 600)))]), 450).save(str(tmp_path / "t.json"))
    given = [*overrides, "attention=mha", "flops_per_second=1e9", f"data.tokenizer={tmp_path / 't.json'}"]
    as_given(monkeypatch, given, "plan")
    plan_command.main(configuration(given, "plan"))
    row = next(row for row in capsys.readouterr().out.splitlines() if "vocabulary" in row)
    assert " 512 " in row, "450 in whole sixty-fours"
    assert planned_vocabulary(read([*overrides, "data.vocab_size=400"])) == 400
    assert planned_vocabulary(read(["experiment=mqar_small", "model.vocab_size=256"])) == 256
