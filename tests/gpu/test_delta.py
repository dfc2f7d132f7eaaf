"""The gated delta rule on a GPU: fla-core's kernels, where they run, and plain PyTorch give what float64 gives."""

import pytest
import torch
import torch.nn.functional as F

from dma_lab.kernels.choice import noted_kernels
from dma_lab.kernels.delta import fla
from dma_lab.kernels.delta.rule import gated_delta_rule
from dma_lab.kernels.documents import Documents

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
IDS = torch.repeat_interleave(torch.arange(7), torch.tensor([1, 300, 129, 2, 1, 448, 119]))


def given(width, heads=(4, 2), N=1000):
    """q, k, v in bfloat16, log_decay and beta, and the output's gradient."""
    torch.manual_seed(0)
    (H, K), like = heads, {"device": "cuda"}
    q, k = (F.normalize(torch.randn(2, N, K, width, **like), dim=-1).bfloat16() for _ in range(2))
    v, d_out = (torch.randn(2, N, H, width, **like).bfloat16() for _ in range(2))
    return [q, k, v, -(torch.rand(2, N, H, **like) ** 4), torch.rand(2, N, H, **like)], d_out


def run(rule, inputs, d_out):
    inputs = [each.detach().requires_grad_() for each in inputs]
    out = rule(*inputs)
    return [out, *torch.autograd.grad(out, inputs, d_out.to(out))]


@pytest.mark.parametrize("kernels", [True, False], ids=["fla", "PyTorch"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("width", "compiled"), [(16, False), (64, False), (128, False), (64, True)])
def test_outputs_and_gradients_are_those_of_float64(kernels, packed, width, compiled, monkeypatch):
    inputs, d_out = given(width)
    if not kernels:
        monkeypatch.setattr(fla, "unsupported", lambda *_: "this test wants plain PyTorch")
    elif (reason := fla.unsupported(inputs[2], width)) is not None:
        pytest.skip(reason)
    ids = Documents.of(IDS.expand(2, -1)).to(torch.device("cuda")) if packed else None

    def rule(*each):
        return gated_delta_rule(*each, ids)

    with noted_kernels() as names:
        found = run(torch.compile(rule, fullgraph=True) if compiled else rule, inputs, d_out)
    assert names == [f"gated delta rule ({'fla' if kernels else 'PyTorch'})"]
    expected = run(rule, [each.double() for each in inputs], d_out)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        assert (ours.double() - exact).norm() < 0.02 * exact.norm()  # bfloat16 within and without
