"""Training: one LightningModule for every backend, and run directories that explain themselves."""
