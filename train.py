"""Train one run: ``python train.py experiment=chinchilla_dma``. Every setting of conf/ is an override."""

from dma_lab.commands.train import run

if __name__ == "__main__":
    run()
