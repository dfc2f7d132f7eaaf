"""Say what a run will be and cost, before anything is spent: ``python plan.py experiment=chinchilla_dma``."""

from dma_lab.commands.plan import run

if __name__ == "__main__":
    run()
