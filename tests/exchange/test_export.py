"""Exported folders, loaded by plain transformers, give the logits of the model that was exported."""

import os
import re
import runpy
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dma_lab.attention.chance import ChanceScores
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.exchange import export_model, export_run
from dma_lab.messages import UserError, print_once
from dma_lab.model import ModelShape, Transformer
from dma_lab.run_summary import read_summary, write_summary
from tests.report.conftest import vouch

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"n_layers": 2, "d_model": 48, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 80, "vocab_size": 128}
UNTIED = {"tie_embeddings": False}


def make_model(attention: str, options: dict, **shape: object) -> Transformer:
    """A model none of whose weights is zero or one, nor its logits small, so that no mistake hides."""
    model = Transformer(ModelShape(**SHAPE | {"max_seq_len": 64} | shape), attention, options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def distinct_tokens() -> torch.Tensor:
    """(2, 64): no token twice in a row, so that no two of its keys have one score."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(SHAPE["vocab_size"], generator=generator)[:64] for _ in range(2)])


@torch.no_grad()
def assert_same_logits(folder: Path, model: Transformer, tokens: torch.Tensor, **loading: object) -> None:
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **loading)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model(tokens)
    assert expected.std() > 0.1, "too small for the tolerance to mean anything"
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("attention", "options", "shape", "architecture"),
    [
        ("mha", {}, {}, "Qwen3"),
        ("mha", {"rope_base": 500.0}, UNTIED | {"head_dim": 20}, "Qwen3"),
        ("mha", {"qk_norm": False, "rope_base": 500.0}, {"n_kv_heads": 4}, "Llama"),
        ("swa", {"window": 7}, {}, "Qwen3"),
        ("swa", {"window": 7, "full_every": 2}, {"n_layers": 3}, "Qwen3"),
        ("swa", {"qk_norm": False}, {"n_kv_heads": 1}, "Mistral"),
        ("mla", {}, {}, "DeepseekV2"),
        (
            "mla",
            {"kv_rank": 20, "q_rank": 28, "rope_dim": 6, "rope_base": 500.0},
            UNTIED,
            "DeepseekV2",
        ),
        ("dma", {"window": 23}, {}, "Doge"),
        ("dma", {"rope_base": 500.0}, UNTIED | {"head_dim": 20}, "Doge"),
    ],
)
def test_a_stock_architecture_gives_the_same_logits(tmp_path, attention, options, shape, architecture):
    model = make_model(attention, options, **shape)
    folder = export_model(model, tmp_path / "folder", "stock")
    assert_same_logits(folder, model, distinct_tokens())
    assert AutoModelForCausalLM.from_pretrained(folder).config.architectures == [f"{architecture}ForCausalLM"]


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "dma"])
@torch.no_grad()
def test_in_bf16_theirs_is_as_near_to_float32_as_ours(tmp_path, attention):
    """bf16 rounds single logits by far more than 1e-3, each implementation in its own way."""
    options = {"window": 64} if attention == "dma" else {}
    model, tokens = make_model(attention, options), distinct_tokens()
    folder = export_model(model, tmp_path / "folder", "stock")
    exact, ours = model(tokens), model.bfloat16()(tokens)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(tokens).logits
    assert theirs.dtype == torch.bfloat16
    assert (theirs - exact).square().mean().sqrt() < 1.3 * (ours - exact).square().mean().sqrt()


@torch.no_grad()
def test_in_bf16_the_loss_on_validation_text_is_the_same_to_a_thousandth_of_a_nat(trained_run, tmp_path):
    folder, run = export_run(trained_run, tmp_path / "folder", "stock"), open_run(trained_run)
    tokens = torch.from_numpy(run.data.validation_tokens[: 16 * 64].astype("int64")).view(16, 64)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(tokens).logits
    torch.testing.assert_close(loss(theirs), loss(run.model().bfloat16()(tokens)), rtol=0, atol=1e-3)


def test_a_run_becomes_a_folder_in_one_command(scripts, trained_run, tmp_path):
    folder = tmp_path / "deep" / "folder"
    done = scripts.run("export.py", [f"checkpoint={trained_run}", f"to={folder}"])
    assert (done.returncode, done.stdout) == (0, f"export: {folder}\n"), done.stderr
    run = open_run(trained_run)
    text = "def f(x):\n    return '<|endoftext|>' + x  # naïve 🦉"
    ours, theirs = run.data.load_tokenizer(), AutoTokenizer.from_pretrained(folder)
    assert theirs.encode(text) == ours.encode(text).ids
    assert theirs.decode(theirs.encode(text)) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (run.data.eot_id,) * 2
    assert_same_logits(folder, run.model(), torch.tensor([theirs.encode(text)]))
    config = AutoConfig.from_pretrained(folder)
    assert (config.eos_token_id, config.bos_token_id) == (run.data.eot_id,) * 2
    assert list(folder.parent.iterdir()) == [folder], "what was made on the way is left behind"


def test_doge_differs_in_nothing_but_which_of_equally_scored_keys_it_keeps(tmp_path, monkeypatch, capfd):
    print_once.cache_clear()
    model = make_model("dma", {"window": 23})
    folder, tokens = export_model(model, tmp_path / "folder", "stock"), distinct_tokens() // 3
    said = capfd.readouterr().err
    assert "needs transformers 5.18 or later" in said
    assert "Past attention.window=23 tokens its logits differ from this model's where keys score the same" in said
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        difference = (theirs(tokens).logits - model(tokens)).abs().amax((0, 2))
    assert difference[:23].max() < 1e-4, "up to the window they are one"
    assert difference[23:].max() > 1e-2

    def most_recent(scores: torch.Tensor, k: int, **_: object) -> SimpleNamespace:
        order = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
        return SimpleNamespace(indices=scores.shape[-1] - 1 - order[..., :k])

    monkeypatch.setattr(torch, "topk", most_recent)
    assert_same_logits(folder, model, tokens)


def test_dma_is_exported_exactly_unless_stock_is_asked_for(tmp_path, capfd):
    """Half of the context is past the window, and every token stands there three times: many keys score the same."""
    print_once.cache_clear()
    model = make_model("dma", {})
    folder = export_model(model, tmp_path / "folder")
    said = capfd.readouterr().err
    assert "Doge keeps others than this model: modeling_dma_lab.py is exported too" in said
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).attention["window"] == 32
    tokens = distinct_tokens() // 3
    assert_same_logits(folder, model, tokens, trust_remote_code=True)
    with pytest.raises(AssertionError):  # as it would be with other keys
        assert_same_logits(export_model(model, tmp_path / "doge", "stock"), model, tokens)


@torch.no_grad()
def test_doge_does_not_look_ahead_in_any_transformers_that_the_project_takes(tmp_path):
    """Without padding, Doge before 5.18 chose keys without the causal mask."""
    requirement = next(
        Requirement(line)
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["exchange"]
    )
    assert requirement.name == "transformers"
    assert not list(requirement.specifier.filter(["5.16.1", "5.17.0", "5.17.9"]))
    assert list(requirement.specifier.filter(["5.18.0", transformers.__version__]))[-1] == transformers.__version__
    folder = export_model(make_model("dma", {"window": 23}), tmp_path / "folder", "stock")
    assert "**Use transformers 5.18 or later.**" in (folder / "README.md").read_text()
    tokens, changed = distinct_tokens(), distinct_tokens()
    changed[:, -1] = (changed[:, -1] + 7) % 128
    for attention in ("sdpa", "eager"):
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
        torch.testing.assert_close(theirs(changed).logits[:, :-1], theirs(tokens).logits[:, :-1], rtol=0, atol=1e-6)


def test_what_is_exported_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        folder = export_model(make_model("dma", {}), tmp_path / "folder")
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == dict.fromkeys(
        ("README.md", "config.json", "model.safetensors", "modeling_dma_lab.py"), "0o640"
    )


@pytest.mark.parametrize(
    ("attention", "options", "shape", "reason"),
    [
        ("nsa", {}, {}, "transformers has no architecture with attention=nsa"),
        (
            "dma",
            {"qk_norm": False},
            {},
            "Doge always normalises queries and keys, and this model has attention.qk_norm=false",
        ),
        ("dma", {"score": "linear"}, {}, "Doge has the paper's score alone, and this model has attention.score=linear"),
        ("dma", {"recent": 2}, {}, "Doge keeps no key for being recent, and this model has attention.recent=2"),
        ("mha", {"recency": "slope"}, {}, "transformers has no MHA with attention.recency=slope"),
        ("dma", {"recency": "slope"}, {}, "transformers has no DMA with attention.recency=slope"),
        ("mla", {"recency": "slope"}, {}, "transformers has no MLA with attention.recency=slope"),
        ("dma", {"sinks": 2}, {}, "transformers has no DMA with attention.sinks=2"),
        ("dma", {"scores": "random"}, {}, "transformers has no DMA with attention.scores=random"),
        ("dma", {"scores": "frozen"}, {}, "transformers has no DMA with attention.scores=frozen"),
        ("swa", {"sinks": 2}, {}, "transformers has no SWA with attention.sinks=2"),
        ("mha", {"gate": True}, {}, "transformers has no MHA with attention.gate=true"),
        (
            *("swa", {"qk_norm": False, "full_every": 2}, {}),
            "Mistral has a window in every layer, and this model has attention.full_every=2",
        ),
        ("mla", {}, {"d_model": 50}, "DeepSeek-V2 wants d_model=50 to be a multiple of n_heads=4"),
        ("mha", {"qk_norm": False}, {"d_model": 50}, "Llama wants d_model=50 to be a multiple of n_heads=4"),
    ],
)
def test_what_no_stock_architecture_computes_is_refused_with_the_reason(
    tmp_path, capfd, attention, options, shape, reason
):
    model = make_model(attention, options, **shape)
    with pytest.raises(UserError) as refusal:
        export_model(model, tmp_path / "stock", "stock")
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("; choose format=custom.")
    assert not (tmp_path / "stock").exists()
    folder = export_model(model, tmp_path / "auto")
    assert f"{reason}: modeling_dma_lab.py is exported too" in capfd.readouterr().err
    assert (folder / "modeling_dma_lab.py").is_file()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["format=gguf"], "format=gguf: input should be 'auto', 'stock' or 'custom'."),
        (["to={full}"], "to={full} holds files already, which are not overwritten; give another folder or empty it."),
        (["to={file}"], "to={file} is a file; give a folder that is not there yet."),
        (["to={file}/folder"], "to={file}/folder cannot be written"),
        ([f"to={'x' * 300}"], f"to={'x' * 79}… cannot be read (File name too long); give a folder that can."),
        (["to=???"], "to must be given, as to=…; see conf/ for what it is."),
        (["checkpoint=nowhere"], "checkpoint=nowhere: there is no such directory"),
        (["checkpoint={full}"], "checkpoint={full} is not a run's directory: it has no config.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(trained_run, tmp_path, monkeypatch, capsys, overrides, sentence):
    (tmp_path / "full").mkdir()
    places = {"full": str(tmp_path / "full"), "file": str(tmp_path / "full" / "file")}
    Path(places["file"]).write_text("kept")
    given = [f"checkpoint={trained_run}", f"to={tmp_path / 'new'}", *(item.format(**places) for item in overrides)]
    monkeypatch.setattr(sys, "argv", ["export.py", *{item.split("=")[0]: item for item in given}.values()])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "export.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert sentence.format(**places) in said
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*")) == [tmp_path / "full", Path(places["file"])], "something was written"
    assert Path(places["file"]).read_text() == "kept"


def test_a_run_without_its_tokenizer_is_refused(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.data.cache_dir = str(tmp_path / "nothing")
    OmegaConf.save(config, run / "config.yaml")
    vouch(run)
    with pytest.raises(UserError, match=r"The tokenizer and tokens of .* are not under"):
        export_run(run, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_run_on_no_text_goes_without_a_tokenizer(trained_run, tmp_path, capfd):
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.data = {"name": "mqar", "mask_documents": config.data.mask_documents}
    OmegaConf.save(config, run / "config.yaml")
    vouch(run)
    folder = export_run(run, tmp_path / "folder")
    assert "was trained on no text: no tokenizer is exported" in capfd.readouterr().err
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same_logits(folder, open_run(run).model(), distinct_tokens())


def test_a_folder_that_cannot_be_finished_is_not_begun(tmp_path, monkeypatch):
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dma_lab.exchange.folder.shutil.copyfile", full_disk)  # what comes last, after the weights
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        export_model(make_model("nsa", {}), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


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


def test_the_card_says_what_the_model_is_and_how_it_was_trained_and_names_no_licence_of_its_own(trained_run, tmp_path):
    plain = (export_run(trained_run, tmp_path / "plain") / "README.md").read_text()
    summary = read_summary(trained_run)
    model = open_run(trained_run).model()
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", plain, flags=re.MULTILINE))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert rows["parameters"] == f"{total:,}, of which embedding {model.embedding.weight.numel():,}"
    assert rows["attention"] == "qk_norm=True, rope_base=10000.0, recency=None, gate=False"
    assert rows["shape"] == "2 layers of 32, feed-forward 96, 2 heads, vocabulary 320"
    assert rows["data"] == f"local, fingerprint {summary['data_fingerprint']}"
    assert rows["training"] == "step 10 of 10, 5,120 tokens, context 64, seed 0"
    assert rows["validation loss"].startswith(f"{summary['val_loss']:.4f} nats per token, ")
    assert rows["dma_lab"] == f"commit {summary['git_commit']}"
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
    write_summary(run, read_summary(run) | {"status": "interrupted"})
    assert "validation loss" not in (export_run(run, tmp_path / "folder") / "README.md").read_text()
