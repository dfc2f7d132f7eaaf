"""Held to what dma_lab asks of a backend: causality, documents apart, steps as forward, gradients, costs as counted."""

import pytest

from dma_lab.attention.contract import CHECKS, cases


@pytest.mark.parametrize("case", cases("anchored", {}, {"window": 5, "stride": 3}), ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, case):
    check(case)
