"""What causal attention is asked for, as far as it decides which implementation can do it."""

import importlib
from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """Shapes, dtype and machine of one call; D is the head dim of q and k, E that of v."""

    device: str
    """Its type: ``cuda``, ``cpu``, ..."""
    capability: tuple[int, int]
    """Compute capability of a CUDA device, (0, 0) of others."""
    dtype: torch.dtype
    H: int
    K: int
    D: int
    E: int
    single: bool = False
    """Whether the sequence is one token."""
    window: int | None = None
    whole: bool = True
    """Whether the window, if there is one, reaches over the whole sequence."""
    packed: bool = False
    """Whether documents are kept apart."""
    deterministic: bool = False
    """Whether PyTorch's deterministic algorithms are asked for."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, packed: bool = False) -> "Problem":
        """That of ``causal_attention(q, k, v, window=window)``, with document ids if ``packed``."""
        (_, H, N, D), on_cuda = q.shape, q.device.type == "cuda"
        return cls(
            device=q.device.type,
            capability=torch.cuda.get_device_capability(q.device) if on_cuda else (0, 0),
            dtype=q.dtype,
            H=H,
            K=k.shape[1],
            D=D,
            E=v.shape[3],
            single=N == 1,
            window=window,
            whole=window is None or window >= N,
            packed=packed,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )

    @property
    def half(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float16)

    def __str__(self) -> str:
        widths = f"{self.D}" if self.D == self.E else f"{self.D} and {self.E}"
        window = "" if self.window is None else f", a window of {self.window}"
        packed = ", documents packed" if self.packed else ""
        return f"{str(self.dtype).removeprefix('torch.')}, {self.H}/{self.K} heads of {widths}{window}{packed}"


def not_importable(module: str) -> str | None:
    """Why ``module`` cannot be imported, if it cannot. It is imported for good, so ask where it would be used."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if module.startswith(f"{error.name}") else f"it cannot be imported: {error}"
    except Exception as error:  # whatever a package meets that was built for other versions of what it needs
        return f"it cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
    return None
