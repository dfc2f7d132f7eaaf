"""By which kernels block-sparse attention is computed: by masks, or by lists of queries."""

import pytest

from dma_lab.attention.nsa_sizes import NativeSparseOptions, choose_sizes
from dma_lab.kernels.blocks.attention import by_masks


@pytest.mark.parametrize("block", [16, 64, 100])
@pytest.mark.parametrize("slots", [1, 3, 15, 16, 17, 64])
def test_masks_are_for_sequences_of_at_most_twice_the_chosen_blocks_and_32(block, slots):
    most = max(length for length in range(1, 70 * block) if by_masks(length, slots, block))
    assert most == block * min(2 * slots, 32), "the bits of an int32"
    assert all(by_masks(length, slots, block) for length in range(1, most))


@pytest.mark.parametrize(("context", "masked"), [(256, True), (2048, True), (4096, False), (32_768, False)])
def test_nsas_own_sizes_go_by_masks_up_to_the_papers_training_context(context, masked):
    sizes = choose_sizes(NativeSparseOptions(), context)
    assert by_masks(context, sizes.selected_blocks, sizes.selected_block) == masked
