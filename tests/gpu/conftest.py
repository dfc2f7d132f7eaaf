"""Processes that share the GPU tests of a machine begin with different GPUs of it, which each still sees all of."""

import os

import torch

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # gw0, gw1, …; before any of them asks CUDA for a device
    set_by_user = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = set_by_user.split(",") if set_by_user else [str(gpu) for gpu in range(torch.cuda.device_count())]
    if gpus:
        first = int(worker.removeprefix("gw")) % len(gpus)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first:] + gpus[:first])
