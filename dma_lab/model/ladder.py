"""The ladder's arithmetic: how many parameters a rung has, and on how many tokens it is trained."""

from typing import Any

from omegaconf import OmegaConf

from dma_lab.settings import CONFIG_DIR

_SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")


def rung_parameters(name: str) -> int | None:
    """Non-embedding parameters, with MHA, of the rung in conf/model/ of this name; None where there is none."""
    file = CONFIG_DIR / "model" / f"{name}.yaml"
    if not file.exists():
        return None
    rung: Any = OmegaConf.load(file)
    return reference_parameters(*(int(rung[part]) for part in _SHAPE))


def tokens_per_parameter() -> float:
    """Training tokens per non-embedding parameter where a run says nothing else."""
    return float(OmegaConf.load(CONFIG_DIR / "train.yaml").tokens_per_parameter)


def reference_parameters(n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, d_ff: int) -> int:
    """Non-embedding parameters of a rung with MHA: what other backends are matched to, and what budgets count.

    A layer holds q and o (2 M H D), k and v (2 M K D), SwiGLU (3 M F), two norms (2 M) and the QK-norm (2 D); one more
    norm ends the model.
    """
    attention = 2 * d_model * (n_heads + n_kv_heads) * head_dim + 2 * head_dim
    return n_layers * (attention + 3 * d_model * d_ff + 2 * d_model) + d_model
