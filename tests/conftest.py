"""Settings that every test runs under."""

import os

# Before torch is imported: two test processes on two cores each get one, and so do the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
