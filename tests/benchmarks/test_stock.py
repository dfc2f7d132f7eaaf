"""The stock model that is timed beside ours: of equal shape, work and loss."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dma_lab.benchmarks.stock import stock_loss, stock_model
from dma_lab.model import ModelShape, Transformer

SHAPE = ModelShape(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=96, vocab_size=64, max_seq_len=48)


@pytest.fixture(scope="module")
def stock():
    torch.manual_seed(0)
    return stock_model(SHAPE)


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(64, (2, 49), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def test_its_weights_and_matrix_products_are_those_of_mha(stock):
    ours, (tokens, targets) = Transformer(SHAPE, "mha"), draw()
    gains = 2 * SHAPE.n_layers * SHAPE.head_dim  # of QK-norm, which Llama does not have
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in stock.parameters()) + gains
    flops = []
    for model in (lambda: ours(tokens), lambda: stock(input_ids=tokens)):
        with FlopCounterMode(display=False) as counter:
            model()
        flops.append(counter.get_flop_counts()["Global"])
    assert flops[0][torch.ops.aten.mm] == flops[1][torch.ops.aten.mm]
    with FlopCounterMode(display=False) as counter:
        stock_loss(stock, tokens, targets).backward()
    assert counter.get_flop_counts()["Global"][torch.ops.aten.mm] == 3 * flops[0][torch.ops.aten.mm]


def test_its_loss_is_that_of_our_targets_and_initially_ours(stock):
    tokens, targets = draw()
    loss = stock_loss(stock, tokens, targets)
    logits = stock(input_ids=tokens).logits
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert abs(loss - Transformer(SHAPE, "mha").losses(tokens, targets)[0]) < 0.05  # both near log 64
