"""Several linear maps as one product against each by itself in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dma_lab.kernels.projections import project


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def drawn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 24, generator=generator).requires_grad_()
    return x, [torch.randn(size, 24, generator=generator).requires_grad_() for size in (48, 12, 12)]


def test_one_product_gives_what_each_gives():
    x, weights = drawn()
    with Products() as forward:
        outputs = project(x, *weights)
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(output.shape, generator=generator) for output in outputs]
    with Products() as backward:
        found = torch.autograd.grad(outputs, (x, *weights), gradients)
    assert (forward.count, backward.count) == (1, 2)
    exact_x, *exact_weights = (tensor.detach().double().requires_grad_() for tensor in (x, *weights))
    exact = [exact_x @ weight.T for weight in exact_weights]
    expected = torch.autograd.grad(exact, (exact_x, *exact_weights), [gradient.double() for gradient in gradients])
    for ours, theirs in zip((*outputs, *found), (*exact, *expected), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_without_gradients_no_weight_is_copied():
    x, weights = drawn()
    with torch.no_grad(), Products() as counted:
        outputs = project(x, *weights)
    assert counted.count == 3
    assert all(
        torch.equal(output, torch.nn.functional.linear(x, w)) for output, w in zip(outputs, weights, strict=True)
    )


@pytest.mark.parametrize("gradients", [True, False])
def test_autocast_decides_the_dtype(gradients):
    x, weights = drawn()
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
        outputs = project(x, *weights)
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    for output, weight in zip(outputs, weights, strict=True):
        torch.testing.assert_close(output, (x.bfloat16() @ weight.bfloat16().T), rtol=2e-2, atol=2e-2)
