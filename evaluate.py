"""What a trained run can do: ``python evaluate.py suite=needle checkpoint=outputs/RUN``; conf/suite/ lists suites."""

from dma_lab.commands.evaluate import run

if __name__ == "__main__":
    run()
