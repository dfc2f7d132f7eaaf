"""DSA against a literal loop over the paper's equations (arXiv 2512.02556) in float64, and against fla-core."""

import pytest
import torch
from fla.ops.dsa.naive import naive_dsa
from torch import Tensor

from dma_lab.attention import build_attention
from dma_lab.attention.dsa import DeepSeekSparseAttention, keep_best
from dma_lab.messages import UserError

M, D, N = 20, 6, 37
HEADS = {"mha": (2, 2), "gqa": (4, 2), "mqa": (3, 1)}
LENGTHS = [1, 21, 4, 11]


def build(heads: tuple[int, int], top_k: int, **options) -> DeepSeekSparseAttention:
    torch.manual_seed(0)
    shape = {"d_model": M, "n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": D, "max_seq_len": 64}
    attention = build_attention("dsa", **shape, top_k=top_k, **options).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    assert isinstance(attention, DeepSeekSparseAttention)
    return attention


def literal_dsa(attention: DeepSeekSparseAttention, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """One document x (N, M) -> (N, M), its divergences summed, and its pairs; a query at a time."""
    (q, k, v), (index_q, index_w, index_k) = attention.heads(x[None]), attention.indexer(x[None].detach())
    H, K = attention.n_heads, attention.n_kv_heads
    outs, divergence, pairs = [], x.new_zeros(()), 0
    for t in range(len(x)):
        score = [index_w[0, :, t] @ (index_q[0, :, t] @ index_k[0, s]).clamp(min=0) for s in range(t + 1)]
        read = sorted(range(t + 1), key=lambda s: (score[s].item(), s))[-attention.top_k :]
        pairs += len(read)
        weights = [torch.stack([q[0, h, t] @ k[0, h * K // H, s] / D**0.5 for s in read]).softmax(0) for h in range(H)]
        outs.append(torch.cat([weights[h] @ v[0, h * K // H, read] for h in range(H)]))
        target = torch.stack(weights).detach().sum(0)
        target, guess = target / target.sum(), torch.stack([score[s] for s in read]).softmax(0)
        divergence = divergence + (target * (target.log() - guess.log())).sum()
    return attention.o_proj(torch.stack(outs)), divergence, pairs


@pytest.mark.parametrize(("heads", "top_k"), [(HEADS["mha"], 1), (HEADS["gqa"], 7), (HEADS["mqa"], 40)])
def test_outputs_losses_and_gradients_are_those_of_the_papers_equations(heads, top_k, monkeypatch):
    monkeypatch.setattr("dma_lab.attention.dsa._QUERY_CHUNK", 16)
    attention, x = build(heads, top_k), torch.randn(N, M, dtype=torch.float64, requires_grad=True)
    inputs, upstream = [x, *attention.parameters()], torch.randn(N, M, dtype=torch.float64)
    out, loss = attention.forward_with_loss(x[None])
    expected_out, divergence, pairs = literal_dsa(attention, x)
    torch.testing.assert_close(out[0], expected_out, rtol=1e-9, atol=1e-10)
    assert torch.equal(attention(x[None]), out)
    torch.testing.assert_close(loss, divergence / N, rtol=1e-9, atol=1e-10)
    for ours, theirs, given in ((out[0], expected_out, upstream), (loss, divergence / N, None)):
        found, expected = (
            torch.autograd.grad(y, inputs, given, allow_unused=True, materialize_grads=True, retain_graph=True)
            for y in (ours, theirs)
        )
        for ours_of, theirs_of in zip(found, expected, strict=True):
            torch.testing.assert_close(ours_of, theirs_of, rtol=1e-8, atol=1e-9)
    assert attention.flops(N).mixing == 4 * heads[0] * D * pairs


def test_the_loss_teaches_the_indexer_alone_and_nothing_else_does():
    attention, x = build((4, 2), 7), torch.randn(1, N, M, dtype=torch.float64, requires_grad=True)
    out, loss = attention.forward_with_loss(x)
    names = {name for name, _ in attention.named_parameters()}
    learning = {}
    for what, value in (("out", out.square().sum()), ("loss", loss)):
        gradients = torch.autograd.grad(value, [x, *attention.parameters()], allow_unused=True, retain_graph=True)
        named = zip(["x", *(name for name, _ in attention.named_parameters())], gradients, strict=True)
        learning[what] = {name for name, gradient in named if gradient is not None and gradient.abs().max() > 0}
    indexer = {name for name in names if name.startswith("indexer.")}
    assert learning == {"out": {"x", *names} - indexer, "loss": indexer}
    optimizer, before = torch.optim.Adam(attention.indexer.parameters(), lr=0.03), loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        attention.forward_with_loss(x.detach())[1].backward()
        optimizer.step()
    assert attention.forward_with_loss(x)[1] < before / 2


def test_documents_are_as_alone():
    attention, x = build((4, 2), 5), torch.randn(1, N, M, dtype=torch.float64)
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))[None]
    out, loss = attention.forward_with_loss(x, ids)
    alone = [literal_dsa(attention, part) for part in x[0].split(LENGTHS)]
    torch.testing.assert_close(out[0], torch.cat([part[0] for part in alone]), rtol=1e-5, atol=1e-6)  # rotary tables
    torch.testing.assert_close(loss, sum(part[1] for part in alone) / N, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [[N], LENGTHS], ids=["one document", "several"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_outputs_and_gradients_are_fla_cores(heads, lengths):
    attention = build(heads, 7, index_heads=12, index_dim=8).float()  # of which some are above 0
    x, upstream = torch.randn(1, N, M, requires_grad=True), torch.randn(1, N, M)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    (q, k, v), (index_q, index_w, index_k) = attention.heads(x), attention.indexer(x)
    scores_of, ends = (index_q.transpose(1, 2), index_k, index_w.transpose(1, 2)), torch.tensor([0, *lengths]).cumsum(0)
    time_first = (part.transpose(1, 2) for part in (q, k, v))
    mixed = naive_dsa(*time_first, *scores_of, topk=7, cu_seqlens=ends)  # ReLU, as the paper's
    expected, found = attention.o_proj(mixed.flatten(2)), attention(x, ids)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    learning = [x, *attention.heads.parameters(), attention.o_proj.weight]
    for ours, theirs in zip(*(torch.autograd.grad(y, learning, upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_of_equal_scores_the_last_are_kept(count):
    score = torch.randint(0, 4, (3, 12, 12), generator=torch.Generator().manual_seed(0)).float()
    visible = torch.ones(12, 12, dtype=torch.bool).tril().expand(3, 12, 12).clone()
    visible[:, 6:, :4] = False
    kept = keep_best(score, visible, count)
    for b, t in torch.cartesian_prod(torch.arange(3), torch.arange(12)).tolist():
        seen = visible[b, t].nonzero().flatten().tolist()
        best = sorted(seen, key=lambda s: (score[b, t, s].item(), s))[-count:]
        assert kept[b, t].nonzero().flatten().tolist() == sorted(best)


def test_a_top_k_that_reaches_everything_is_mha_and_odd_widths_are_refused(capsys):
    attention, x = build((4, 2), 67), torch.randn(2, 64, M, dtype=torch.float64)
    assert "attention.top_k=67 reaches the whole context of 64 tokens: DSA is then MHA" in capsys.readouterr().err
    shape = {"d_model": M, "n_heads": 4, "n_kv_heads": 2, "head_dim": D, "max_seq_len": 64}
    mha = build_attention("mha", **shape).double()
    assert set(mha.load_state_dict(attention.state_dict(), strict=False).unexpected_keys) == {
        f"indexer.{name}" for name, _ in attention.indexer.named_parameters()
    }
    torch.testing.assert_close(attention(x), mha(x), rtol=1e-9, atol=1e-10)
    with pytest.raises(UserError, match=r"attention\.index_dim=5: RoPE turns pairs"):
        build((4, 2), 4, index_dim=5)
