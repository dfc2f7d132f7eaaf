"""The sizes of grids and tiles are those that Triton counts."""

import triton

from dma_lab.kernels.sizes import cdiv, next_power_of_2


def test_pieces_and_powers_of_two_are_tritons():
    assert [next_power_of_2(n) for n in range(1, 4100)] == [triton.next_power_of_2(n) for n in range(1, 4100)]
    for size in (1, 3, 64, 128):
        assert [cdiv(n, size) for n in range(300)] == [triton.cdiv(n, size) for n in range(300)]
