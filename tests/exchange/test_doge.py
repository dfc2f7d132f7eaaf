"""Doge checkpoints as transformers makes and keeps them, in our model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DogeConfig, DogeForCausalLM

from dma_lab.exchange import export_model, import_doge
from dma_lab.messages import UserError

SIZE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def save_doge(folder: Path, *, shard: str = "1GB", **settings: object) -> DogeForCausalLM:
    """A Doge none of whose weights is zero or one, nor its logits small, so that no mistake hides."""
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig(**SIZE | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def distinct_tokens() -> torch.Tensor:
    """(2, 64): no token twice in a row, so that no two of its keys have one score."""
    return torch.stack([torch.randperm(128, generator=torch.Generator().manual_seed(seed))[:64] for seed in range(2)])


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_window_size": 23, "num_key_value_heads": 2},
        {"keep_window_size": 64, "tie_word_embeddings": True},
        {"keep_window_size": 9, "num_key_value_heads": 1, "head_dim": 20, "shard": "20KB"},
        {"keep_window_size": 9, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}},
    ],
)
@torch.no_grad()
def test_an_imported_doge_gives_the_same_logits_at_once_and_token_by_token(tmp_path, settings):
    theirs, tokens = save_doge(tmp_path, **settings), distinct_tokens()
    expected, model = theirs(tokens).logits, import_doge(tmp_path)
    assert expected.std() > 0.1, "too small for the tolerance to mean anything"
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-4)
    cache = model.new_cache(2)
    steps = torch.cat([model.step(token[:, None], cache) for token in tokens.unbind(1)], dim=1)
    torch.testing.assert_close(steps, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_doge_with_the_config_of_published_ones_is_read(tmp_path):
    theirs, tokens, file = save_doge(tmp_path), distinct_tokens(), tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"], config["keep_window_size"], config["tie_word_embeddings"]
    scaling = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}
    file.write_text(json.dumps(config | {"rope_theta": 10000.0, "rope_scaling": scaling}))
    torch.testing.assert_close(import_doge(tmp_path)(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_imported_doge_is_exported_with_its_residual_scales(tmp_path):
    theirs, tokens = save_doge(tmp_path / "theirs", keep_window_size=23), distinct_tokens()
    back = export_model(import_doge(tmp_path / "theirs"), tmp_path / "back", "stock")
    weights, same = load_file(back / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in same)
    loaded = AutoModelForCausalLM.from_pretrained(back)
    torch.testing.assert_close(loaded(tokens).logits, theirs(tokens).logits)
    with pytest.raises(UserError, match="format=custom has no place for a Doge's residual scales; choose format=stock"):
        export_model(import_doge(back), tmp_path / "custom", "custom")


def spoil(folder: Path, how: str) -> None:
    weights_file, config_file = folder / "model.safetensors", folder / "config.json"
    match how:
        case "pickle":
            torch.save(load_file(weights_file), folder / "pytorch_model.bin")
            weights_file.unlink()
        case "torn":
            weights_file.write_bytes(weights_file.read_bytes()[:-100])
        case "index":
            (folder / "model.safetensors.index.json").write_text('{"weight_map": 1}')
        case "absent" | "foreign" | "shape":
            weights = load_file(weights_file)
            weight = weights.pop("model.layers.1.self_attn.A")
            weights |= {
                "absent": {},
                "foreign": {"model.layers.1.self_attn.B": weight.clone(), "model.layers.1.self_attn.A": weight},
                "shape": {"model.layers.1.self_attn.A": weight[:-1].clone()},
            }[how]
            save_file(weights, weights_file)
        case "no config":
            config_file.unlink()
        case "config":
            config_file.write_text("{")
        case "list":
            config_file.write_text("[]")
        case setting:
            name, value = setting.split("=")
            config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {name: json.loads(value)}))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("pickle", r"model.safetensors is missing, and weights in other formats \(pickles .* are not read"),
        ("torn", r"The weights in .* cannot be read \(SafetensorError"),
        ("index", r"The weights in .* cannot be read"),
        ("absent", r"layers.1.attention.A .* is absent, and by its config.json \(4,\)"),
        ("foreign", r"layers.1.attention.B .* is \(4,\), and by its config.json absent"),
        ("shape", r"layers.1.attention.A .* is \(3,\), and by its config.json \(4,\)"),
        ("no config", r"config.json cannot be read as a Doge's \(FileNotFoundError"),
        ("config", r"config.json cannot be read as a Doge's \(JSONDecodeError"),
        ("list", r"config.json cannot be read as a Doge's \(AttributeError"),
        ('model_type="llama"', r"holds model_type=llama; give a Doge checkpoint"),
        ("is_moe=true", r"is_moe=True is not supported; our model has is_moe=False"),
        ("attention_bias=true", r"attention_bias=True is not supported"),
        ("mlp_bias=true", r"mlp_bias=True is not supported"),
        ('hidden_act="gelu"', r"hidden_act=gelu is not supported"),
        ("rms_norm_eps=1e-5", r"rms_norm_eps=1e-05 is not supported"),
        ("sliding_window=8", r"sliding_window=8 is not supported"),
        ('rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2}', "rope_type=linear is not"),
        ("num_attention_heads=0", r"cannot be read as a Doge's \(ZeroDivisionError"),
        ('hidden_size="wide"', r"cannot be read as a Doge's \(TypeError"),
    ],
)
def test_what_is_no_doge_of_ours_is_refused_in_a_sentence(tmp_path, how, sentence):
    save_doge(tmp_path)
    import_doge(tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(UserError, match=sentence) as refusal:
        import_doge(tmp_path)
    assert "\n" not in str(refusal.value)
