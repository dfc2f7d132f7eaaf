"""A run's directory to its model and tokenizer, and the sentence for every directory that is not one."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from dma_lab.attention import attention_options, registered_backends
from dma_lab.checkpoints import read_checkpoint, recorded, write_checkpoint
from dma_lab.data.batches import validation_batches
from dma_lab.evaluation.checkpoint import TrainedRun, open_run
from dma_lab.evaluation.local_sets import local_benchmarks
from dma_lab.evaluation.perplexity import score_validation
from dma_lab.exchange import export_run, import_doge
from dma_lab.messages import UserError
from dma_lab.model import ModelShape, Transformer
from dma_lab.run_summary import Summary
from dma_lab.seals import sealed, unsealed
from tests.made_up import rewrite_summary, summary


def test_the_loaded_model_scores_what_training_scored(trained_run):
    run = open_run(trained_run)
    summary = json.loads((trained_run / "summary.json").read_text())
    score = score_validation(
        run.model(),
        validation_batches(run.data, context=64, sequences=8, max_tokens=2048),
        n_documents=len(run.data.validation_document_starts),
        mask_documents=True,
        device=torch.device("cpu"),
    )
    assert score.loss == pytest.approx(summary["val_loss"], rel=1e-6)
    assert (run.step, run.context) == (40, 64)
    with np.load(trained_run / "validation.npz") as stored:
        np.testing.assert_allclose(score.document_nats, stored["document_nats"], rtol=1e-6)


def test_the_tokenizer_is_the_one_that_made_the_tokens(trained_run):
    data = open_run(trained_run).data
    tokenizer = data.load_tokenizer()
    ids = data.validation_tokens[1 : data.validation_document_starts[1]].tolist()
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False).ids == ids


@pytest.mark.parametrize("attention", sorted(registered_backends()))
def test_a_longer_context_changes_nothing_within_the_shorter_one(attention):
    shape = ModelShape(
        n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, vocab_size=64, max_seq_len=64
    )
    model = Transformer(shape, attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # A of DMA starts at zero, where windows hide mistakes
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    given = {"window": None, "rope_base": 10_000.0}.items()
    options = {option: value for option, value in given if option in attention_options(attention)}
    config = {
        "model": vars(shape),
        "attention": {"name": attention, **options},
        "trainer": {"context": 64},
    }
    run = TrainedRun(Path("run"), Path("run/last.ckpt"), config, summary(Path("run"), d_ff=48), 1, model.state_dict())
    tokens = torch.randint(64, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        longer = run.model(max_seq_len=1024)
        torch.testing.assert_close(longer(tokens), model(tokens), rtol=0, atol=0)
        assert longer(tokens.repeat(1, 4)).shape == (2, 256, 64)
        if "rope_base" not in options:
            with pytest.raises(
                UserError, match=f"suite.rope_base=500000: attention={attention} has no option rope_base"
            ):
                run.model(rope_base=500_000.0)
            return
        other_base = run.model(rope_base=500_000.0)(tokens)
    assert not torch.allclose(other_base, model(tokens))


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


def save_config(run: Path, config: DictConfig) -> None:
    """Makes it what the run's summary vouches for."""
    summary = Summary.read(run)
    OmegaConf.save(config, run / "config.yaml")
    summary.write(run)


def spoil(run: Path, how: str) -> Path:
    """Make ``run`` what the test's case says; returns the path to give."""
    checkpoint = run / "checkpoints" / "last.ckpt"
    config = OmegaConf.load(run / "config.yaml")
    match how:
        case "absent":
            return run / "nowhere"
        case "no run":
            shutil.rmtree(run)
            run.mkdir()
        case "untrained":
            checkpoint.unlink()
        case "another width" | "another depth" | "another backend":
            node, value = {
                "another width": ("model.d_model", 64),
                "another depth": ("model.n_layers", 3),
                "another backend": ("attention", {"name": "mha", "qk_norm": True, "rope_base": 10_000.0}),
            }[how]
            OmegaConf.update(config, node, value, merge=False)
            save_config(run, config)
        case "another score":
            OmegaConf.update(config, "attention.score", "linear")
            save_config(run, config)
        case "another training" | "another step's number":
            content = read_checkpoint(checkpoint)
            name, value = ("optimizer.eps", 0.5) if how == "another training" else ("steps", 41)
            recorded(content)["identity"][name] = value
            write_checkpoint(content, checkpoint)
        case "not finite":
            content = read_checkpoint(checkpoint)
            content["state_dict"]["model.embedding.weight"][3, 4] = float("inf")
            write_checkpoint(content, checkpoint)
        case "flipped":
            content = bytearray(checkpoint.read_bytes())
            content[len(content) // 3] ^= 16
            checkpoint.write_bytes(content)
        case "width as text":
            config.model.d_model = "32"
            save_config(run, config)
        case "summary of something else":
            rewrite_summary(run, d_ff="96", data_fingerprint=None)
        case "torn":
            checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        case "pickle":
            checkpoint.write_bytes(pickle.dumps(Harmful()))
        case "torch pickle":
            torch.save({"state_dict": {}, "global_step": 1, "more": Harmful()}, checkpoint)
        case "empty":
            checkpoint.write_bytes(b"")
        case "config":
            (run / "config.yaml").write_bytes(b"\xff\xfe: [")
        case "config of something else":
            save_config(run, OmegaConf.create({"model": "gpt2"}))
        case "edited config":
            config.attention.rope_base *= 2
            OmegaConf.save(config, run / "config.yaml")
        case "a digit of the summary":
            text = (run / "summary.json").read_text()
            (run / "summary.json").write_text(text.replace('"seed": 0', '"seed": 1'))
        case "summary":
            (run / "summary.json").write_text("{")
        case "other tokens":
            rewrite_summary(run, data_fingerprint="0" * 32)
        case "no tokens":
            config.data.cache_dir = str(run / "cache")
            save_config(run, config)
        case "no tokenizer":
            shutil.copytree(config.data.cache_dir, run / "cache")
            next((run / "cache").glob("*/tokenizer.json")).unlink()
            config.data.cache_dir = str(run / "cache")
            save_config(run, config)
        case "another version's tokens":
            shutil.copytree(config.data.cache_dir, run / "cache")
            file = next((run / "cache").glob("*/meta.json"))
            meta = unsealed(file.read_text(encoding="utf-8"))
            meta["separator_id"] = meta.pop("eot_id")
            file.write_text(sealed(meta), encoding="utf-8")
            config.data.cache_dir = str(run / "cache")
            save_config(run, config)
        case "flipped tokens" | "flipped facts":
            shutil.copytree(config.data.cache_dir, run / "cache")
            name = "validation.tokens" if how == "flipped tokens" else "meta.json"
            file = next((run / "cache").glob(f"*/{name}"))
            content = bytearray(file.read_bytes())
            content[content.index(b"entropy") + 12 if how == "flipped facts" else 40] ^= 1
            file.write_bytes(content)
            config.data.cache_dir = str(run / "cache")
            save_config(run, config)
    return run


def test_the_home_of_nobody_is_said(trained_run):
    run = open_run(trained_run)
    with pytest.raises(UserError, match="checkpoint=~no-such-user/run names no user's home here"):
        open_run(Path("~no-such-user/run"))
    config = run.config | {"data": run.config["data"] | {"cache_dir": "~no-such-user/x"}}
    with pytest.raises(UserError, match=r"data\.cache_dir=~no-such-user/x names no user's home here"):
        _ = replace(run, config=config).data
    with pytest.raises(UserError, match=r"suite\.path=~no-such-user/sets names no user's home here"):
        local_benchmarks("~no-such-user/sets", 1024)
    with pytest.raises(UserError, match="to=~no-such-user/model names no user's home here"):
        export_run(trained_run, Path("~no-such-user/model"))
    with pytest.raises(UserError, match="folder=~no-such-user/doge names no user's home here"):
        import_doge(Path("~no-such-user/doge"))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("absent", "no such directory"),
        ("no run", "is not a run's directory: it has no config.yaml"),
        ("untrained", "the run has no checkpoints/last.ckpt; train it first"),
        ("another width", "another config .* trained with model.d_model=32 and the config has 64"),
        ("another depth", "another config .* trained with model.n_layers=2 and the config has 3"),
        ("another backend", "another config .* trained with attention.name=dma and the config has mha"),
        ("another score", r"another config .* it was trained with attention.score=exp and the config has linear"),
        ("another training", r"another config .* optimizer.eps=0.5 and the config has 1e-0?8"),
        ("another step's number", "another config .* steps=41 and the summary has 40"),
        ("width as text", "another config .* trained with model.d_model=32 and the config has 32"),
        ("not finite", r"no checkpoint that can be read safely \(its weights .* are not finite"),
        ("flipped", r"no checkpoint that can be read safely \(.*checksum"),
        ("summary of something else", "gives no usable d_ff, data_fingerprint"),
        ("torn", "no checkpoint that can be read safely"),
        ("pickle", "no checkpoint that can be read safely"),
        ("torch pickle", "no checkpoint that can be read safely"),
        ("empty", "no checkpoint that can be read safely"),
        ("config", "config.yaml cannot be read"),
        ("config of something else", "lacks model, attention, data, trainer"),
        ("summary", "summary.json cannot be read"),
        ("edited config", r"summary.json cannot be read .*config.yaml beside it is not what was written"),
        ("a digit of the summary", "summary.json cannot be read .*its content is not what was written"),
        ("other tokens", r"trained with data_fingerprint=\w+ and the summary has 0{32}"),
        ("no tokens", r"The tokenizer and tokens of .* are not under data.cache_dir="),
        ("no tokenizer", r"The tokenizer and tokens of .* is damaged.*tokenizer.json"),
        (
            "another version's tokens",
            r"The tokenizer .* has no eot_id: another version of dma_lab wrote it.* makes them",
        ),
        ("flipped tokens", r"The tokenizer and tokens of .* is damaged: validation.tokens is not what was written"),
        ("flipped facts", r"The tokenizer and tokens of .* is damaged: meta.json: .* not what was written"),
    ],
)
def test_what_is_no_run_is_refused_in_a_sentence(run_copy, how, sentence):
    def use(path: Path) -> None:
        run = open_run(path)
        run.model()
        run.data.load_tokenizer()

    use(run_copy)
    with pytest.raises(UserError, match=sentence) as refusal:
        use(spoil(run_copy, how))
    assert "\n" not in str(refusal.value)
