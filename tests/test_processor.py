"""A CPU's name: its maker and AVX-512, by which matrix products' kernels are chosen."""

import platform

import pytest

from dma_lab.processor import processor


@pytest.mark.parametrize(
    ("cpuinfo", "said"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t: avx512f\n\nprocessor\t: 1\n",
            ", AuthenticAMD, AVX-512",
        ),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2\n", ", GenuineIntel"),
        ("processor\t: 0\nFeatures\t: asimd sve\n", ""),
        (None, ""),
    ],
)
def test_a_cpu_is_named_by_what_its_libraries_choose_kernels_by(tmp_path, cpuinfo, said):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert processor(path) == platform.machine() + said
