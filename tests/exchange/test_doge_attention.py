"""transformers' Doge on our kernels against its own eager attention, float32 on the CPU."""

import pytest
import torch
from torch import Tensor
from transformers import DogeConfig, DogeForCausalLM, LlamaConfig, LlamaForCausalLM, StaticCache

from dma_lab.exchange.doge_attention import NAME, register
from dma_lab.messages import UserError

SIZE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
register()
register()  # a second time changes nothing


def doge(**settings: object) -> DogeForCausalLM:
    """None of whose weights is zero or one, nor its logits small, so that no mistake hides."""
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig(**SIZE | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens(length: int = 40) -> Tensor:
    """No token twice in a row, so that no two keys of the first layer have one score."""
    return torch.stack([1 + torch.randperm(127, generator=torch.Generator().manual_seed(s))[:length] for s in range(2)])


def logits_and_gradients(model: DogeForCausalLM, implementation: str, scored: Tensor, **inputs: object) -> list[Tensor]:
    model.set_attn_implementation(implementation)
    model.zero_grad()
    logits = model(**inputs).logits[scored]
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def assert_the_same(model: DogeForCausalLM, scored: Tensor, **inputs: object) -> None:
    ours, theirs = (logits_and_gradients(model, name, scored, **inputs) for name in (NAME, "eager"))
    assert theirs[0].std() > 0.1, "too small for the tolerance to mean anything"
    for mine, own in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4 * own.abs().max().item())


@pytest.mark.parametrize("settings", [{"keep_window_size": 11}, {}, {"num_key_value_heads": 4, "keep_window_size": 7}])
def test_logits_and_gradients_are_those_of_eager_attention(settings):
    ids = tokens()
    assert_the_same(doge(**settings), torch.ones_like(ids, dtype=torch.bool), input_ids=ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_are_as_eager_attention_has_them(side):
    ids, mask = tokens(), torch.ones(2, 40, dtype=torch.long)
    padding = slice(0, 13) if side == "left" else slice(27, 40)
    ids[1, padding], mask[1, padding] = 0, 0
    assert_the_same(doge(keep_window_size=9), mask.bool(), input_ids=ids, attention_mask=mask)


def test_packed_texts_are_as_eager_attention_has_them():
    ids = tokens()[:1]
    places = torch.cat((torch.arange(15), torch.arange(25)))[None]
    model = doge(keep_window_size=9)
    assert_the_same(model, torch.ones_like(ids, dtype=torch.bool), input_ids=ids, position_ids=places, use_cache=False)
    with torch.no_grad():
        model.set_attn_implementation(NAME)
        alone, packed = model(ids[:, 15:]).logits, model(ids, position_ids=places, use_cache=False).logits[:, 15:]
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)


@torch.no_grad()
def test_decoding_after_padded_prompts_is_that_of_eager_attention():
    model, ids, mask = doge(keep_window_size=6), tokens(), torch.ones(2, 40, dtype=torch.long)
    ids[0, :5], mask[0, :5] = 0, 0
    written = []
    for implementation in (NAME, "eager"):
        model.set_attn_implementation(implementation)
        out = model(ids[:, :12], attention_mask=mask[:, :12], use_cache=True)
        logits = [out.logits[:, -1:]]
        for t in range(12, 40):  # its own tokens would repeat, and of equal scores eager attention keeps any
            given = {"attention_mask": mask[:, : t + 1], "past_key_values": out.past_key_values}
            out = model(ids[:, t : t + 1], **given)
            logits.append(out.logits)
        written.append(torch.cat(logits, dim=1))
    torch.testing.assert_close(*written, rtol=0, atol=1e-4)
    model.set_attn_implementation(NAME)
    assert model.generate(ids[:, :12], attention_mask=mask[:, :12], max_new_tokens=4, do_sample=False).shape == (2, 16)


def test_what_it_does_not_do_is_refused_in_a_sentence():
    ids, gap = tokens(), torch.ones(2, 40, dtype=torch.long)
    gap[0, 10:14] = 0

    def refused(said: str, model: torch.nn.Module, **inputs: object) -> None:
        model.set_attn_implementation(NAME)
        with pytest.raises(UserError, match=said) as refusal:
            model(**{"input_ids": ids} | inputs)
        assert "\n" not in str(refusal.value)

    refused("padding within a text", doge(), attention_mask=gap)
    refused(r"attention_mask of shape \(batch, tokens\)", doge(), attention_mask=torch.zeros(2, 1, 40, 40))
    refused("attention_dropout=0 ", doge(attention_dropout=0.1).train())
    refused("no sliding_window", doge(sliding_window=8))
    model = doge()
    refused("use DynamicCache", model, past_key_values=StaticCache(model.config, max_cache_len=64))
    with torch.no_grad():
        begun = model(ids[:, :20], use_cache=True).past_key_values
    refused("takes a prompt at once, not 20 tokens after 20", model, input_ids=ids[:, 20:], past_key_values=begun)
    llama = LlamaConfig(**{name: value for name, value in SIZE.items() if name != "pad_token_id"})
    refused("is for Doge models, not LlamaAttention", LlamaForCausalLM(llama))
