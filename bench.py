"""Measure on the machine at hand: ``python bench.py kernels``, ``decode``, ``training``, ``gpu_tests`` or ``faults``;
conf/bench_*.yaml holds what each measures, and every setting there is an override.
"""

import sys

from benchmarks.decode import bench_decode
from benchmarks.faults import record_faults
from benchmarks.gpu_tests import record_gpu_tests
from benchmarks.kernels import bench_kernels
from benchmarks.training import bench_training
from dma_lab.door import open_door

SUITES = {
    "kernels": bench_kernels,
    "decode": bench_decode,
    "training": bench_training,
    "gpu_tests": record_gpu_tests,
    "faults": record_faults,
}

if __name__ == "__main__":
    suite = sys.argv.pop(1) if len(sys.argv) > 1 else "nothing"
    if suite not in SUITES:
        print(f"error: {suite} is no benchmark; choose one of: {', '.join(SUITES)}.", file=sys.stderr)
        raise SystemExit(2)
    open_door(SUITES[suite], f"bench_{suite}")
