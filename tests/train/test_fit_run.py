"""Runs end to end on a tiny corpus: they learn, they explain themselves, they refuse what they cannot do."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dma_lab.attention import registered_backends
from dma_lab.messages import UserError
from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    *("attention", "params_total", "params_non_embedding", "tokens", "flops", "flops_executed", "val_loss"),
    *("val_perplexity", "val_bits_per_byte", "tokens_per_second", "seed", "git_commit", "status"),
}
# Small steps and a smooth backend: what differs then is the order of float32's sums, which large steps and DMA's choice
# of keys would amplify (5e-3 was seen).
CALM = ["attention=mha", "optimizer.learning_rate=1e-3"]


@pytest.mark.parametrize("attention", [*sorted(registered_backends()), "dma_random", "hybrid"])
def test_every_backend_learns_more_than_frequencies(read, overrides, tmp_path, attention):
    summary = fit_run(read([*overrides, f"attention={attention}"]))
    assert summary.written().keys() >= PROMISED
    assert summary.attention == attention
    assert f"-{attention}-s0-" in Path(summary.run).name
    assert summary.status == "finished"
    assert summary.val_loss < summary.unigram_entropy - 0.3
    assert summary.val_perplexity == pytest.approx(math.exp(summary.val_loss))
    run = Path(summary.run)
    assert Summary.read(run) == summary
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 61, 5))
    assert [line["step"] for line in lines if "val_loss" in line] == [20, 40, 60]
    assert lines[-1]["val_loss"] == summary.val_loss
    assert lines[-1]["loss"] < lines[0]["loss"]
    scores = np.load(run / "validation.npz")
    assert scores["document_nats"].sum() / scores["document_tokens"].sum() == pytest.approx(summary.val_loss)
    assert scores["position_nats"].sum() == pytest.approx(scores["document_nats"].sum())
    bits = scores["document_nats"].sum() / math.log(2)
    assert bits / scores["document_bytes"].sum() == pytest.approx(summary.val_bits_per_byte)


def test_the_validation_loss_is_that_of_the_saved_weights(read, overrides):
    """An independent pass: the saved weights, one window at a time, the loss by hand."""
    from dma_lab.data.build import prepare_data
    from dma_lab.train.hardware import resolve_hardware
    from dma_lab.train.plan import build_model, plan_run

    settings = read([*overrides, "attention=dma", "data.mask_documents=false"])
    summary = fit_run(settings)
    data = prepare_data(settings.data, summary.tokens)
    model = build_model(settings, plan_run(settings, 320, resolve_hardware(settings.trainer)).shape)
    saved = torch.load(Path(summary.run) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in saved.items()})
    eots = np.flatnonzero(data.validation_tokens[: 2048 + 1] == data.eot_id)
    scored = eots[-1] if eots[-1] >= 0.9 * 2048 else 2048  # a document's end, if one is near
    stream = torch.from_numpy(data.validation_tokens[: scored + 1].astype(np.int64))
    nats = []
    for start in range(0, len(stream) - 1, 64):
        window = stream[start : start + 65]
        with torch.no_grad():
            log_probability = model(window[None, :-1])[0].log_softmax(-1)
        nats.append(-log_probability.gather(1, window[1:, None]).squeeze(1))
    nats = torch.cat(nats).double()
    assert nats.mean().item() == pytest.approx(summary.val_loss, rel=1e-5)
    is_text = stream[1:] != data.eot_id
    text_bytes = len(data.load_tokenizer().decode(stream[1:][is_text].tolist(), skip_special_tokens=False).encode())
    bits, text_bits = (total.sum().item() / math.log(2) / text_bytes for total in (nats, nats[is_text]))
    assert bits == pytest.approx(summary.val_bits_per_byte, rel=1e-5)
    assert text_bits == pytest.approx(summary.val_text_bits_per_byte, rel=1e-5)
    assert not is_text.all()


def test_micro_batches_change_the_arithmetics_order_and_nothing_else(read, overrides, tmp_path):
    calm = [*overrides, *CALM]
    whole = fit_run(read([*calm, f"output_dir={tmp_path / 'whole'}"]))
    split = fit_run(read([*calm, f"output_dir={tmp_path / 'split'}", "trainer.micro_batch_sequences=2"]))
    assert Path(whole.run).name == Path(split.run).name, "micro-batches do not define a run"
    assert split.val_loss == pytest.approx(whole.val_loss, abs=1e-5)


def test_a_corpus_smaller_than_the_budget_is_refused_unless_repeats_are_allowed(read, overrides):
    with pytest.raises(UserError, match=r"epochs.*data\.allow_repeat=true"):
        fit_run(read([*overrides, "tokens=512000"]))
    summary = fit_run(read([*overrides, "tokens=40960", "data.allow_repeat=true"]))
    assert summary.status == "finished"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused(read, overrides):
    with pytest.raises(UserError, match=r"trainer\.device=cuda"):
        fit_run(read([*overrides, "trainer.device=cuda"]))


def test_wandb_runs_offline_without_a_key_and_asks_nothing(run_script, overrides, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "WANDB_SILENT": "true"}
    result = run_script("train.py", [*overrides, f"output_dir={tmp_path / 'runs'}", "logger=wandb"], env=environment)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert list(run.glob("wandb/offline-run-*")), "the offline record lies in the run's directory"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 12


def test_two_processes_train_what_one_trains(run_script, overrides, tmp_path):
    calm = [*overrides, *CALM]
    results = [
        run_script("train.py", [*calm, f"output_dir={tmp_path / str(devices)}", f"trainer.devices={devices}"])
        for devices in (1, 2)
    ]
    assert [result.returncode for result in results] == [0, 0], results[1].stderr
    losses = [
        [
            json.loads(line)["loss"]
            for line in next((tmp_path / str(n)).glob("*/metrics.jsonl")).read_text().splitlines()
        ]
        for n in (1, 2)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_readmes_first_command_trains_on_the_embedded_corpus(tmp_path):
    """The command itself on a thirtieth of its budget, in the environment of the tests, which it leaves as it is."""
    arguments = f"tokens=92160 output_dir={tmp_path}"
    environment_is_made = ["--assume-old=.venv/.ready", f"RUN={sys.executable}"]
    result = subprocess.run(
        ["make", "train", f"ARGS={arguments}", *environment_is_made],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "unigram entropy" in result.stdout
    (run,) = tmp_path.iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["attention"], summary["model"], summary["tokens"]) == ("dma", "nano", 92160)
    assert summary["val_loss"] < summary["unigram_entropy"]
