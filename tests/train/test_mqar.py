"""Recall through the one pipeline: same run directory, same promises, scored by accuracy."""

import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dma_lab.data.mqar import recall_validation
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.messages import UserError
from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import build_model, plan_run
from dma_lab.train.reading import read_settings
from tests.made_up import configuration

SHORT = ["experiment=mqar_small", "tokens=20480", "trainer.log_every=5", "trainer.validate_every=10"]


def test_a_run_explains_itself_by_accuracy(read, tmp_path):
    settings = read([*SHORT, "data.size.pairs=[2,8]", "trainer.validation_tokens=4096", f"output_dir={tmp_path}"])
    summary = fit_run(settings)
    run = Path(summary.run)
    assert Summary.read(run) == summary
    assert summary.status == "finished"
    assert summary.unigram_entropy == math.log(128)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_accuracy" in line] == [10, 20]
    assert lines[-1]["val_accuracy_by_gap"] == summary.val_accuracy_by_gap
    assert lines[-1]["loss"] < lines[0]["loss"]

    # An independent pass: the saved weights, one example at a time.
    model = build_model(settings, plan_run(settings, 256, resolve_hardware(settings.trainer)).shape)
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in saved.items()})
    nats, right = {2: [], 8: []}, {2: [], 8: []}
    for batch in recall_validation(settings.data, examples=64, sequences=1):
        with torch.no_grad():
            log_probability = model(batch["tokens"])[0].log_softmax(-1)
        for position in batch["gaps"][0].nonzero().flatten():
            answer = batch["targets"][0, position]
            nats[int(batch["pairs"])].append(-log_probability[position, answer].item())
            right[int(batch["pairs"])].append(bool(log_probability[position].argmax() == answer))
    assert np.mean(nats[2] + nats[8]) == pytest.approx(summary.val_loss, rel=1e-5)
    assert summary.val_accuracy_by_pairs == {"2": np.mean(right[2]), "8": np.mean(right[8])}
    assert np.load(run / "recall.npz")["total"].sum(1).tolist() == [2 * 32, 8 * 32]
    assert open_run(run).identity["data_fingerprint"] == summary.data_fingerprint


def test_a_continued_run_ends_where_the_uncut_one_ends(read, tmp_path, monkeypatch):
    """Cut by an error in its first validation, a checkpoint and three lines later."""
    overrides = [*SHORT, "attention=mqar_dma", "trainer.log_every=1", "trainer.checkpoint_every=7"]
    uncut = fit_run(read([*overrides, f"output_dir={tmp_path / 'uncut'}"]))
    cut = read([*overrides, f"output_dir={tmp_path / 'cut'}"])
    with monkeypatch.context() as patch:
        patch.setattr("dma_lab.train.task.score_recall", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit_run(cut)
    gc.collect()  # the error's frames hold the run's lock, as a live process does
    continued = fit_run(cut)
    ours, theirs = Path(continued.run), Path(uncut.run)
    assert ours.name == theirs.name
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    weights = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (ours, theirs)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_micro_batches_change_the_arithmetics_order_and_nothing_else(read, tmp_path):
    losses = []
    for micro in ("null", "2"):
        overrides = [f"trainer.micro_batch_sequences={micro}", f"output_dir={tmp_path / micro}"]
        summary = fit_run(read([*SHORT, "data.size.pairs=[2,8]", *overrides]))
        lines = (Path(summary.run) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["data.size.pairs=20"], "data.size.pairs=20 needs 80 tokens"),
        (["data.size.pairs=many"], "data.size.pairs=many: input should be a valid integer"),
        (["data.filler=text"], "data.filler=text: input should be 'random', 'blank' or 'noise'"),
        (["+data.tokenizer=bpe"], "data.tokenizer is no setting here"),
        (["+data.size.width=3"], "data.size.width is no setting here"),
        (["data.size.length=32"], "data.size.length=32 is not trainer.context=64"),
        (["trainer.validation_tokens=63"], "trainer.validation_tokens=63 holds 0 examples"),
        (["data.size.pairs=[2,4,8]"], "a micro-batch of 16 sequences does not hold 3 numbers of pairs equally often"),
        (["attention=mla", "+attention.qk_norm=false"], "attention.qk_norm is no option of attention=mla"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_is_refused_in_one_sentence(read, tmp_path, wrong, said):
    with pytest.raises(UserError) as refusal:
        fit_run(read([*SHORT, f"output_dir={tmp_path}", *wrong]))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_experiment_is_a_grid_of_which_a_part_may_be_named(run_script, tmp_path):
    """Two sizes by two backends, a step each: one command, one table, windows of as many tokens as there are pairs."""
    sizes = "{length: 64, pairs: 4},{length: 128, pairs: 16}"
    part = [
        "model.d_model=64",
        "attention=mqar_mha,mqar_dma",
        "model.vocab_size=256",
        "tokens=16384",
        "trainer.validation_tokens=1024",
    ]
    result = run_script("train.py", ["experiment=mqar", f"data.size={sizes}", *part, f"output_dir={tmp_path}"])
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout[result.stdout.index("comparison") :]
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert sorted((run["model"], run["attention"], run["context"]) for run in summaries) == [
        ("128x16-d64", "dma", 128),
        ("128x16-d64", "mha", 128),
        ("64x4-d64", "dma", 64),
        ("64x4-d64", "mha", 64),
    ]
    windows = [yaml.safe_load(path.read_text())["attention"]["window"] for path in tmp_path.glob("*dma*/config.yaml")]
    assert sorted(windows) == [4, 16]


def test_every_point_of_the_grid_can_be_planned(read):
    """The paper's point is one of them: 512 pairs in 2048 tokens, windows of 512."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    read(["experiment=mqar"])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3"):
        grid = compose("train", ["experiment=mqar"], return_hydra_config=True).hydra.sweeper.params
    attentions = [name.strip() for name in grid.attention.split(",")]
    assert {name.removeprefix("mqar_") for name in attentions} == {"mha", "swa", "mla", "nsa", "dma"}
    assert "{length: 2048, pairs: 512}" in grid["data.size"]
    for name in attentions:
        settings = read(
            ["experiment=mqar", "data.size={length: 2048, pairs: 512}", f"attention={name}", "model.d_model=256"]
        )
        plan = plan_run(settings, settings.data.vocab_size, resolve_hardware(settings.trainer))
        assert (plan.shape.d_model, plan.shape.max_seq_len, plan.sequences_per_step) == (256, 2048, 8)
        assert settings.attention.written().get("window", 512) == 512


def test_the_papers_size_is_a_sweep_of_its_own():
    """512 pairs in 2048 tokens and windows of 512, backends x widths x rates x seeds."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3"):
        hydra = compose("train", ["experiment=mqar_paper"], return_hydra_config=True).hydra
        assert hydra.mode.name == "MULTIRUN"
        params = [f"{name}={values}" for name, values in hydra.sweeper.params.items()]
        (points,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(params), None)
    of_one_seed = [point for point in points if "seed=1" in point and "optimizer.learning_rate=0.002" in point]
    found = [read_settings(configuration(["experiment=mqar_paper", *point])) for point in of_one_seed]
    assert len(points) == 6 * 3 * 3 * 3
    attentions = {(own.attention.name, own.attention.written().get("recency")) for own in found}
    assert attentions == {("dma", "slope"), *((name, None) for name in ("mha", "swa", "mla", "nsa", "dma"))}
    assert len({(*attention, own.model.d_model) for own in found for attention in attentions}) == 18 == len(found)
    for own in found:
        assert (own.study, own.seed, own.optimizer.learning_rate) == ("mqar_paper", 1, 0.002)
        assert (own.data.size.length, own.data.pairs, own.trainer.context) == (2048, [512], 2048)
        assert own.attention.written().get("window", 512) == 512
        assert own.model.head_dim == own.model.d_model <= 256, "as wide as the GPU kernels take"
    plan = plan_run(found[0], found[0].data.vocab_size, resolve_hardware(found[0].trainer))
    assert (plan.tokens, plan.steps) == (131_072_000, 8000)


@pytest.mark.slow
def test_mha_learns_recall_on_a_cpu_and_a_short_window_does_not(read, tmp_path):
    mha = fit_run(read(["experiment=mqar_small", f"output_dir={tmp_path}"]))
    assert mha.val_accuracy > 0.99
    assert min(mha.val_accuracy_by_gap.values()) > 0.97
    swa = fit_run(read(["experiment=mqar_small", "attention=mqar_swa", f"output_dir={tmp_path}"]))
    assert swa.val_accuracy < 0.3
    assert swa.val_accuracy_by_gap["33-64"] < 0.1
