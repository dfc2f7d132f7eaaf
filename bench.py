"""Measure on the machine at hand: ``python bench.py kernels``; conf/bench_*.yaml holds what each suite measures."""

from dma_lab.commands.bench import run

if __name__ == "__main__":
    run()
