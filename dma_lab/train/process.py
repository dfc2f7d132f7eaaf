"""The process that trains, for whoever asks where a run is: what summary.json says of a run while it is running."""

import os
import socket
import time
from typing import Any


def this_process() -> dict[str, Any]:
    """Machine, process, and since when in seconds since 1970."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def device_in_words(kind: str, index: int | None, devices: int) -> str:
    """As ``nvidia-smi`` numbers it: ``cuda:3``, ``2 x cuda``, ``cpu``."""
    if devices > 1:
        return f"{devices} x {kind}"
    if kind == "cpu":
        return kind
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    place = index or 0
    return f"{kind}:{visible[place] if place < len(visible) else place}"
