"""``dma-lab bench`` is ``python bench.py`` of the checkout that dma_lab is run from: a wheel holds no benchmarks."""

import runpy
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def run() -> None:
    if not (_CHECKOUT / "benchmarks" / "record.py").is_file():
        print("error: bench is of a checkout (benchmarks/ and tests/): clone the repository for it.", file=sys.stderr)
        raise SystemExit(2)
    sys.path.insert(0, str(_CHECKOUT))
    runpy.run_path(str(_CHECKOUT / "bench.py"), run_name="__main__")
