"""What plain PyTorch keeps for the backward pass grows with the context, not its square: no mask is kept."""

import pytest
import torch

from dma_lab.attention import build_attention


@pytest.mark.parametrize("name", ["moba", "dsa"])
def test_what_is_kept_for_the_backward_pass_is_linear_in_the_context(name, monkeypatch):
    monkeypatch.setattr(f"dma_lab.attention.{name}._QUERY_CHUNK", 128)
    held = []
    for N in (512, 1024):
        layer = build_attention(name, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, max_seq_len=N)
        kept = {}

        def keep(x, kept=kept):
            kept[x.untyped_storage().data_ptr()] = x  # the tensor too, so that its place is not another's
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            layer(torch.randn(1, N, 16, requires_grad=True))
        held.append(sum(x.untyped_storage().nbytes() for x in kept.values()))
    assert held[1] < 2.1 * held[0]
