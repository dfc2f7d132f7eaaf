"""``init_from``: a run that begins with weights of another, of an exported folder or of transformers' models."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.exchange import export_run
from dma_lab.exchange.folder import export_model
from dma_lab.exchange.source import open_source
from dma_lab.messages import UserError, print_once
from dma_lab.model import ModelShape, Transformer
from dma_lab.report.collect import Run, read_run
from dma_lab.report.conditions import differing
from dma_lab.run_summary import Summary
from dma_lab.train.beginning import prepare_beginning
from dma_lab.train.branches import fit_branches
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.fit_run import fit_run
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import build_model, plan_run
from dma_lab.train.prepared import prepare_run
from dma_lab.train.ranks import find_ranks
from dma_lab.train.timing import Timing

SHORT = ["attention=mha", "tokens=10240", "trainer.checkpoint_every=4"]
LLAMA = ["attention=mha", "attention.qk_norm=false"]
UNTIED = [*LLAMA, "attention.rope_base=500.0", "model.tie_embeddings=false"]
SIZE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_run, read) -> Path:
    """A finished run of MHA."""
    return Path(fit_run(read([*tiny_run, *SHORT, f"output_dir={tmp_path_factory.mktemp('source')}"])).run)


def begun(settings):
    """The model that would be trained."""
    plan = plan_run(settings, 320, resolve_hardware(settings.trainer))
    model = build_model(settings, plan.shape)
    beginning = prepare_beginning(settings, plan, say=True)
    beginning.load_into(model)
    return model.eval(), beginning


def of_transformers(folder: Path, kind: str, **settings: object):
    """A model whose weights are all random, none one or small, so that no mistake hides."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZE | settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("Llama", {}, LLAMA),
        ("Llama", {"tie_word_embeddings": False, "rope_theta": 500.0}, UNTIED),
        ("Qwen3", {"num_key_value_heads": 2}, ["attention=mha", "model.n_kv_heads=2"]),
        ("Mistral", {"sliding_window": 7}, ["attention=swa", "attention.window=7", "attention.qk_norm=false"]),
    ],
    ids=["Llama", "Llama untied", "Qwen3", "Mistral"],
)  # fmt: skip
@torch.no_grad()
def test_a_model_of_transformers_goes_on_as_itself(read, overrides, tmp_path, kind, theirs, ours):
    if rope := theirs.get("rope_theta"):
        theirs = theirs | {"rope_parameters": {"rope_type": "default", "rope_theta": rope}}
    model = of_transformers(tmp_path / "theirs", kind, **theirs)
    trained, beginning = begun(read([*overrides, *ours, f"init_from={tmp_path / 'theirs'}"]))
    tokens = torch.randint(0, 320, (2, 64), generator=torch.Generator().manual_seed(1))
    expected = model(tokens).logits
    assert expected.std() > 0.1, "too small for the tolerance to mean anything"
    torch.testing.assert_close(trained(tokens), expected, rtol=0, atol=1e-4)
    assert (beginning.anew, beginning.left) == ((), ())


def test_a_run_begins_at_the_loss_at_which_its_source_ended(read, overrides, source, tmp_path, monkeypatch, capsys):
    """From the source, its checkpoint, or either export; cut and continued."""
    settings = read([*overrides, *SHORT, f"init_from={source}"])
    ended = Summary.read(source).val_loss

    def cut(self, trainer, *_):
        if trainer.global_step == 10:
            raise SystemExit(1)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_train_batch_start", cut, raising=False)
        with pytest.raises(SystemExit):
            fit_run(settings)
    summary = fit_run(settings)
    assert summary.val_loss_at_start == pytest.approx(ended, abs=1e-6)
    assert abs(summary.val_loss - ended) > 0.01, "it went on"
    assert summary.init_from_anew == ()
    assert f"begins at a validation loss of {ended:.4f}" in capsys.readouterr().err
    folders = [source / "checkpoints" / "last.ckpt"]
    folders += [export_run(source, tmp_path / "exported" / format, format) for format in ("stock", "custom")]
    for folder in folders:
        again = fit_run(read([*overrides, *SHORT, f"init_from={folder}"]))
        assert again.run == summary.run
        assert "finished before" in capsys.readouterr().err
    assert open_run(Path(summary.run)).step == 20, "it can be evaluated"


@pytest.mark.parametrize(
    ("own", "heeded"),
    [
        ([], set()),
        (["attention=dma"], {"std"}),
        (["attention=nsa"], {"std", "qk_gain"}),
    ],
    ids=["all is there", "Δ begins anew", "NSA's branches begin anew"],
)
def test_initial_weights_settings_that_decide_nothing_are_said(read, overrides, source, capsys, own, heeded):
    given = {"std": 0.03, "output_scale": 0.5, "qk_gain": 2.0}
    d_ff = Summary.read(source).d_ff
    settings = [*overrides, *SHORT, *own, "match=none", f"model.d_ff={d_ff}", f"init_from={source}"]

    def weights(*changed: str) -> list[torch.Tensor]:
        return list(begun(read([*settings, *changed]))[0].state_dict().values())

    usual = weights()
    for name, value in given.items():
        capsys.readouterr()
        print_once.cache_clear()
        changed = weights(f"init.{name}={value}")
        decides = not all(map(torch.equal, usual, changed))
        assert decides == (name in heeded), name
        assert (f"init.{name}={value:g} changes nothing" in capsys.readouterr().err) == (not decides), name


def test_tokens_that_are_others_than_the_weights_know_are_said(read, overrides, source, tmp_path, capsys):
    def said(of: Path) -> str:
        print_once.cache_clear()
        prepare_run(read([*overrides, *SHORT, f"init_from={of}"]), find_ranks(1, 1), Timing())
        return capsys.readouterr().err

    folder = export_run(source, tmp_path / "exported")
    assert "tokens are others" not in said(source)
    assert "tokens are others" not in said(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert f"2 of its {len(vocabulary)} tokens are others" in said(folder)
    assert f"set data.tokenizer={folder / 'tokenizer.json'}" in said(folder)
    (folder / "tokenizer.json").write_text("{")
    assert "tokens are others" not in said(folder)


def test_the_report_pairs_no_run_with_one_that_began_otherwise(read, overrides, source):
    chance = fit_run(read([*overrides, *SHORT]))
    from_source = fit_run(read([*overrides, *SHORT, f"init_from={source}"]))
    from_that = fit_run(read([*overrides, *SHORT, f"init_from={from_source.run}"]))
    runs = [read_run(Path(summary.run), "run") for summary in (chance, from_source, from_that)]
    assert all(isinstance(run, Run) for run in runs)
    for ours, theirs in ((0, 1), (1, 2)):
        assert differing(runs[ours].conditions, runs[theirs].conditions) == ["init_from_digest"]
        assert runs[ours].point != runs[theirs].point


def test_branches_begin_with_the_weights_too(read, overrides, source):
    summaries = fit_branches(read([*overrides, *SHORT, f"init_from={source}", "schedule.branches=[0.5,1]"]))
    ended = Summary.read(source).val_loss
    assert [summary.val_loss_at_start for summary in summaries] == pytest.approx([ended] * 2, abs=1e-6)


def test_what_another_attention_adds_begins_anew_and_is_said(read, overrides, source, capsys):
    print_once.cache_clear()
    model, beginning = begun(
        read([*overrides, "attention=dma", "match=none", "attention.window=64", f"init_from={source}"])
    )
    assert beginning.anew == tuple(f"layers.{n}.attention.{name}" for n in (0, 1) for name in ("A", "dt_proj.weight"))
    assert "4 parameters are not in it and begin anew: layers.0.attention.A" in capsys.readouterr().err
    weights = open_run(source).weights
    for name, parameter in model.named_parameters():
        assert name in beginning.anew or torch.equal(parameter, weights[name]), name


def test_of_an_attention_with_other_projections_all_begin_anew(read, overrides, source, capsys):
    print_once.cache_clear()
    _, beginning = begun(read([*overrides, "attention=mla", "match=none", f"init_from={source}"]))
    said = capsys.readouterr().err
    assert "of its parameters have no place in this model and are left: layers.0.attention.heads." in said
    assert {name.split(".")[2] for name in (*beginning.anew, *beginning.left)} == {"attention"}, "nothing else"


def test_options_and_a_longer_context_are_said(read, overrides, source, capsys):
    print_once.cache_clear()
    changed = ["attention=mha", "trainer.context=128", "attention.rope_base=40000.0"]
    begun(read([*overrides, *changed, f"init_from={source}"]))
    said = capsys.readouterr().err
    assert "attention.rope_base=10000.0 (here 40000.0)" in said
    assert "trainer.context=128 is longer than the 64 tokens that it was trained on" in said
    assert "attention.rope_base" in said.splitlines()[-1]


@torch.no_grad()
def test_weights_of_dma_and_their_exports_are_the_same_source(tmp_path):
    shape = ModelShape(2, 32, 2, 1, 16, 96, 320, 64)
    model = Transformer(shape, "dma", {"window": 16}, seed=3)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    stock, custom = (open_source(str(export_model(model, tmp_path / kind, kind))) for kind in ("stock", "custom"))
    assert stock.digest == custom.digest
    for name, weight in stock.weights.items():
        assert torch.equal(weight, model.state_dict()[name])
    assert {name: stock.attention[name] for name in ("name", "window", "qk_norm")} == {
        "name": "dma", "window": 16, "qk_norm": True,
    }  # fmt: skip
    other = dict(stock.weights) | {"norm.weight": stock.weights["norm.weight"] * 1.5}
    assert type(stock)(stock.path, shape, {}, other).digest != stock.digest


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"window": 32}, "attention.window=32 (here 16)"),
        ({}, "attention.window=32 (here 16)"),
        ({"window": 16, "full_every": 2}, "attention.full_every=2 (here null)"),
    ],
)
def test_options_left_open_are_said_by_what_they_come_to(read, overrides, tmp_path, theirs, said, capsys):
    print_once.cache_clear()
    folder = tmp_path / "theirs"
    export_model(Transformer(ModelShape(2, 32, 2, 1, 16, 96, 320, 64), "swa", theirs), folder)
    begun(read([*overrides, "attention=swa", "trainer.context=32", f"init_from={folder}"]))
    assert f"it was trained with {said}, which can be set here too" in capsys.readouterr().err


QWEN3 = {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 7}


@pytest.mark.parametrize(
    ("layers", "attention"),
    [
        ({"layer_types": ["sliding", "full", "sliding", "full"]}, {"name": "swa", "window": 7, "full_every": 2}),
        ({"layer_types": ["sliding", "sliding", "sliding", "full"]}, {"name": "swa", "window": 7, "full_every": 4}),
        ({"layer_types": ["sliding"] * 4}, {"name": "swa", "window": 7}),
        ({"layer_types": ["full"] * 4}, {"name": "mha"}),
        ({"max_window_layers": 0}, {"name": "swa", "window": 7}),
        ({}, {"name": "mha"}),  # the first 28 layers have none
        ({"max_window_layers": 2}, None),
        ({"layer_types": ["sliding", "full", "full", "sliding"]}, None),
    ],
)
@torch.no_grad()
def test_which_layers_of_a_qwen3_have_a_window_is_read_of_its_config(tmp_path, layers, attention):
    if "layer_types" in layers:
        layers = {"layer_types": [f"{kind}_attention" for kind in layers["layer_types"]]}
    theirs = of_transformers(tmp_path, "Qwen3", **QWEN3 | layers, num_hidden_layers=4)
    config = json.loads((tmp_path / "config.json").read_text())
    if "layer_types" not in layers:  # as folders have it that older versions wrote
        config.pop("layer_types")
        (tmp_path / "config.json").write_text(json.dumps(config | QWEN3 | layers))
    if attention is None:
        with pytest.raises(UserError, match=r"layers (0|1), (1|2) \(from 0\) of the weights have no sliding window"):
            open_source(str(tmp_path))
        return
    source = open_source(str(tmp_path))
    assert source.attention == attention | {"qk_norm": True, "rope_base": 10_000.0}
    options = {name: value for name, value in source.attention.items() if name != "name"}
    ours = Transformer(source.shape, source.attention["name"], options)
    ours.load_state_dict(source.weights | {"head.weight": source.weights["embedding.weight"]})
    tokens = torch.randint(0, 320, (2, 64), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_random_scores_go_on_as_they_were_drawn(tmp_path):
    model = Transformer(ModelShape(2, 32, 2, 2, 16, 96, 320, 64), "dma", {"window": 8, "scores": "random"}, seed=3)
    source = open_source(str(export_model(model, tmp_path / "custom")))
    streams = {name: value for name, value in model.state_dict().items() if name.endswith("stream_k")}
    assert any(int(value) % 256 for value in torch.cat(list(streams.values()))), "float32 would hold them"
    for name, value in streams.items():
        assert source.weights[name].tolist() == value.tolist()


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (["model.n_layers=3"], "its n_layers is 2 and here 3; set model.n_layers=2"),
        (["model.n_kv_heads=2"], "its n_kv_heads is 1 and here 2; set model.n_kv_heads=1"),
        (["model.tie_embeddings=false"], "set model.tie_embeddings=true"),
        (["model.d_ff=64"], "its d_ff is 96 and here 64; set model.d_ff=96 match=none"),
        (["attention.gate=true"], r"here 85 \(match=params made it so\); set model.d_ff=96 match=none"),
        (["attention.qk_norm=false"], "its qk_norm is True and here False; set attention.qk_norm=true"),
        (
            ["model.n_layers=3", "model.d_ff=64", "attention.qk_norm=false"],
            "its n_layers is 2 and here 3, its d_ff is 96 and here 64, its qk_norm is True and here False; "
            "set model.n_layers=2 model.d_ff=96 match=none attention.qk_norm=true",
        ),
        (["attention.gate=true", "match=none"], "attention.gate_proj.weight.* is only in this model; give the options"),
    ],
)
def test_another_model_is_refused_with_what_would_do(read, overrides, source, ours, said):
    with pytest.raises(UserError, match=said):
        begun(read([*overrides, "attention=mha", *ours, f"init_from={source}"]))


def test_a_vocabulary_of_another_size_is_refused(read, overrides, tmp_path):
    of_transformers(tmp_path / "theirs", "Qwen3", vocab_size=384)
    with pytest.raises(UserError, match=r"its vocab_size is 384 and here 320.*data\.tokenizer"):
        begun(read([*overrides, "attention=mha", f"init_from={tmp_path / 'theirs'}"]))
    of_transformers(tmp_path / "uneven", "Qwen3", vocab_size=300)
    with pytest.raises(UserError, match=r"its vocab_size is 300 and here 320.*resize_token_embeddings\(320\)"):
        begun(read([*overrides, "attention=mha", f"init_from={tmp_path / 'uneven'}"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "model_type=gpt2; those that can be trained on are llama, qwen3, mistral, doge"),
        ({"attention_bias": True}, "attention_bias=True there"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu there"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type=yarn is not supported"),
        ({"num_hidden_layers": "two"}, "cannot be|is damaged|n_layers"),
        (None, "cannot be read as a model's"),
    ],
)
def test_a_folder_that_holds_no_such_model_is_one_sentence(read, overrides, tmp_path, change, said):
    of_transformers(tmp_path / "theirs", "Qwen3")
    file = tmp_path / "theirs" / "config.json"
    file.write_text("{" if change is None else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=said):
        begun(read([*overrides, "attention=mha", f"init_from={tmp_path / 'theirs'}"]))


def test_weights_that_are_not_those_of_their_config_are_refused(read, overrides, tmp_path):
    of_transformers(tmp_path / "theirs", "Qwen3")
    file = tmp_path / "theirs" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"model.layers.1.mlp.up_proj.weight": torch.ones(95, 32)}, file)
    with pytest.raises(UserError, match=r"its layers.1.feed_forward.up_proj.weight is \(95, 32\) and here \(96, 32\)"):
        begun(read([*overrides, "attention=mha", f"init_from={tmp_path / 'theirs'}"]))


def test_nothing_there_and_scaled_residuals_are_refused(read, overrides, tmp_path):
    with pytest.raises(UserError, match=r"holds no weights: it has neither config\.yaml"):
        begun(read([*overrides, "attention=mha", f"init_from={tmp_path}"]))
    shape = ModelShape(2, 32, 2, 1, 16, 96, 320, 64)
    folder = export_model(Transformer(shape, "dma", {"window": 16}), tmp_path / "doge", "stock")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.input_residual"][3] = 0.5
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"scales its residual stream \(layers\.\d\."):
        open_source(str(folder))
