"""Backends of other packages: held to the contract, named by their version, and refused with one sentence."""

import sys

import pytest
import torch

from dma_lab.attention import AttentionConfig, backend_names, find_backend, registered_backends
from dma_lab.attention.base import AttentionBackend
from dma_lab.attention.contract import CHECKS, Case, cases, noise
from dma_lab.messages import UserError
from tests.plugins import anchored as anchored
from tests.plugins import installed as installed  # fixtures
from tests.plugins import look_again

OFFER = "mine = my_module:Mine"
HEAD = """
from __future__ import annotations
from dataclasses import dataclass, field
from dma_lab.attention import AttentionBackend, AttentionOptions
from dma_lab.attention.mha import MultiHeadAttention, MultiHeadOptions
from dma_lab.settings import Count

"""


@pytest.fixture(autouse=True)
def modules_forgotten():
    yield
    for name in ("my_module", "anchored_attention"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("case", cases("anchored", {}, {"window": 5, "stride": 3}), ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_keeps_the_contract(anchored, check, case):
    check(case)


def test_the_example_attends_to_its_window_and_its_anchors(anchored):
    case = Case("anchored", {"window": 5, "stride": 3})
    attention, x = case.build(), noise(1, 40, 32)
    q, k, v = attention.heads(x)
    t, j = torch.arange(40)[:, None], torch.arange(40)
    seen = (j <= t) & ((t - j < 5) | (j % 3 == 0))
    weights = (q @ k.repeat_interleave(2, 1).mT * 8**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    expected = attention.o_proj((weights @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, rtol=1e-9, atol=1e-10)
    assert attention.flops(40).mixing == 4 * 4 * 8 * int(seen.sum())


def test_a_run_of_it_is_of_its_version(anchored, installed):
    assert "anchored" in backend_names()
    assert "anchored" not in registered_backends()
    config = AttentionConfig.read({"name": "anchored", "window": 8})
    whole = {"name": "anchored", "package": "anchored-attention 0.1.0", "window": 8, "stride": 16}
    assert config.written() == config.defining() == whole
    assert AttentionConfig.read(whole) == config
    with pytest.raises(UserError, match=r"attention.window=x: input should be a valid integer"):
        AttentionConfig.read({"name": "anchored", "window": "x"})
    said = (
        "attention=anchored is of anchored-attention 0.2.0 here, and anchored-attention 0.1.0 is what is installed: "
        "install that version of it."
    )
    with pytest.raises(UserError) as error:
        AttentionConfig.read(whole | {"package": "anchored-attention 0.2.0"})
    assert str(error.value) == said
    with pytest.raises(UserError, match=r"attention=gone is of gone 1.0 here, and that package is not installed"):
        AttentionConfig.read({"name": "gone", "package": "gone 1.0"})


@pytest.mark.parametrize(
    ("offer", "code", "said"),
    [
        (OFFER, "import no_such_module", "my_module:Mine cannot be imported (ModuleNotFoundError: No module named"),
        (OFFER, "", "my_module:Mine cannot be imported (ModuleNotFoundError"),
        (OFFER, "1 / 0", "my_module:Mine cannot be imported (ZeroDivisionError: division by zero)"),
        (OFFER, HEAD + "Mine = 3", "my_module:Mine is no subclass of dma_lab.attention.AttentionBackend"),
        (OFFER, HEAD + "class Mine(AttentionBackend): pass", "lacks cache_bytes, flops, forward, new_cache, step"),
        (OFFER, HEAD + "class Mine(MultiHeadAttention): Options = 3", "Mine.Options is no dataclass that extends"),
        *(
            (
                OFFER,
                f"{HEAD}@dataclass(frozen=True)\nclass O(AttentionOptions):\n    {option}\n"
                "class Mine(MultiHeadAttention): Options = O",
                said,
            )
            for option, said in (
                ("size: Count", "its option size has no default"),
                ("package: Count = 1", "its option package has a name that is taken"),
                ("size: Count = 0", "its option size=0 is not what it declares"),
                ("size: object = field(default_factory=object)", "its option size="),
                ("size: Nothing = 3", "Options cannot be read (NameError"),
            )
        ),
    ],
)
def test_what_is_no_backend_is_one_sentence_and_none_to_who_does_not_ask_for_it(installed, offer, code, said):
    installed("my-package", offer, code)
    with pytest.raises(UserError) as error:
        AttentionConfig.of("mine", {})
    assert str(error.value).startswith("attention=mine of my-package 0.1.0: ")
    assert said in str(error.value)
    assert str(error.value).endswith("; mend or uninstall that package.")
    assert AttentionConfig.of("mha", {}).written()["name"] == "mha"


def test_names_that_clash_are_refused(installed):
    code = HEAD + "class Mine(MultiHeadAttention): Options = MultiHeadOptions"
    installed("my-package", "dma = my_module:Mine", code)
    with pytest.raises(UserError, match=r"attention=dma is a backend of dma_lab and of my-package 0.1.0: give"):
        find_backend("dma")
    installed("other-package", "one = my_module:Mine\ntwo = my_module:Mine")
    installed("third-package", "two = my_module:Mine")
    assert AttentionConfig.of("one", {}).package == "other-package 0.1.0"
    with pytest.raises(UserError, match=r"=two is a backend of other-package 0\.1\.0 and of third"):
        find_backend("two")
    look_again()
    with pytest.raises(UserError, match=r"attention=swa is dma_lab\.attention\.swa\.Sliding"):
        type("Mine", (AttentionBackend,), {}, name="swa")


BROKEN = {
    "causality": """
    def forward(self, x, document_ids=None):
        return super().forward(x, document_ids) + 1e-3 * x.mean(1, keepdim=True)""",
    "documents": """
    def forward(self, x, document_ids=None):
        return super().forward(x)""",
    "shape_and_dtype": """
    def forward(self, x, document_ids=None):
        return super().forward(x, document_ids).float()""",
    "steps_and_cache": """
    def cache_bytes(self, seq_len, dtype):
        return super().cache_bytes(seq_len, dtype) + 1""",
    "gradients": """
    def forward(self, x, document_ids=None):
        return super().forward(x, document_ids) + 0.1 * x.detach()""",
    "flops": """
    def flops(self, seq_len):
        return replace(super().flops(seq_len), projections=7)""",
    "weights": """
    def __init__(self, shape, options):
        super().__init__(shape, options)
        self.scale = nn.Parameter(torch.randn(3))""",
    "options_settled": """
    def forward(self, x, document_ids=None):
        return super().forward(x, document_ids) * self.max_seq_len""",
    "bad_input": """
    def check_input(self, x, document_ids):
        pass""",
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_finds_the_backend_that_breaks_it(installed, check):
    head = HEAD + "import torch\nfrom torch import nn\nfrom dataclasses import replace\n"
    code = f"{head}class Mine(MultiHeadAttention):\n    Options = MultiHeadOptions\n{BROKEN[check.__name__]}\n"
    installed("my-package", OFFER, code)
    with pytest.raises(AssertionError):
        check(Case("mine"))


def test_a_document_is_where_it_lies_to_no_backend(installed):
    """Absolute positions: causal and apart, and yet no document is what it is alone."""
    code = (
        HEAD
        + """
import torch
class Mine(MultiHeadAttention):
    Options = MultiHeadOptions
    def forward(self, x, document_ids=None):
        return super().forward(x, document_ids) * torch.arange(x.shape[1], dtype=x.dtype)[:, None]
"""
    )
    installed("my-package", OFFER, code)
    documents = next(check for check in CHECKS if check.__name__ == "documents")
    with pytest.raises(AssertionError, match="a document at position 1, and alone at 0"):
        documents(Case("mine"))
