"""Training: one LightningModule for every backend, and run directories that explain themselves."""

from dma_lab.train.ranks import refuse_unreadable_ranks

refuse_unreadable_ranks()  # before any file of this room imports Lightning
