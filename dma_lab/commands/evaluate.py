"""What a trained run can do: ``python evaluate.py suite=needle checkpoint=outputs/RUN``; conf/suite/ lists suites."""

from omegaconf import DictConfig

from dma_lab.entry_point import run_entry_point
from dma_lab.phases import phase
from dma_lab.settings import read_settings


def main(config: DictConfig) -> None:
    with phase("importing PyTorch"):  # seconds, for which --help need not wait
        from dma_lab.evaluation.evaluate import evaluate
        from dma_lab.evaluation.settings import EvaluateSettings
    print(f"evaluation: {evaluate(read_settings(EvaluateSettings, config))}")


def run() -> None:
    run_entry_point(main, "evaluate")
