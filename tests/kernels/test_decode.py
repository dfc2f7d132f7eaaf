"""Decoding over the bounded cache, plain PyTorch."""

import pytest
import torch

from dma_lab.kernels import admit_key, interval_attention_decode


@pytest.mark.parametrize(("window", "recent"), [(1, 0), (1, 1), (7, 0), (7, 3), (4, 20), (100, 2)])
def test_token_by_token_equals_the_whole_sequence(window, recent, score_kind, make_scores, decode_and_compare):
    decode_and_compare(make_scores(score_kind, 2, 2, 40), window, recent, "torch")


@pytest.mark.parametrize(("window", "recent"), [(1, 0), (4, 0), (9, 3)])
def test_scores_that_are_not_finite_keep_their_order(window, recent, make_scores, decode_and_compare):
    decode_and_compare(make_scores("not finite", 1, 2, 40), window, recent, "torch")


def cache(S=5, dtype=torch.float32):
    k, v = torch.zeros(1, 2, S, 8, dtype=dtype), torch.zeros(1, 2, S, 6, dtype=dtype)
    return k, v, torch.zeros(1, 2, S), torch.full((1, 2, S), -1, dtype=torch.int32)


def test_bad_input_is_refused_by_name():
    new = torch.zeros(1, 2, 8), torch.zeros(1, 2, 6), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="arrived_cache has 5 slots and window"):
        admit_key(*cache(), *new, 0, 4)
    with pytest.raises(ValueError, match=r"^v has shape"):
        admit_key(*cache(), new[0], new[0], new[2], 0, 5)
    k, v, _, arrived = cache()
    with pytest.raises(ValueError, match=r"^q must have shape"):
        interval_attention_decode(torch.zeros(1, 3, 1, 8), k, v, arrived)
    with pytest.raises(ValueError, match=r"^v_cache is"):
        interval_attention_decode(torch.zeros(1, 4, 1, 8), k, v.double(), arrived)
    with pytest.raises(ValueError, match=r"^bias must have shape"):
        interval_attention_decode(torch.zeros(1, 4, 1, 8), k, v, arrived, bias=torch.zeros(1, 4, 5))
