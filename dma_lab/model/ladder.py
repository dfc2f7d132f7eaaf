"""The ladder's arithmetic: how many parameters a rung has, and the budget, batch and learning rate that follow.

From 80M up the numbers are those of the paper (arXiv 2508.02124, table 4). Below, one rule extends them downwards.
"""

import math

_REFERENCE_PARAMETERS = 84.9e6
_REFERENCE_LEARNING_RATE = 3e-3
_REFERENCE_TOKENS_PER_STEP = 0.128e6


def reference_parameters(n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, d_ff: int) -> int:
    """Non-embedding parameters of a rung with MHA: what other backends are matched to, and what budgets count.

    A layer holds q and o (2 M H D), k and v (2 M K D), SwiGLU (3 M F), two norms (2 M) and the QK-norm (2 D); one more
    norm ends the model.
    """
    attention = 2 * d_model * (n_heads + n_kv_heads) * head_dim + 2 * head_dim
    return n_layers * (attention + 3 * d_model * d_ff + 2 * d_model) + d_model


def rung_learning_rate(parameters: float) -> float:
    """Peak learning rate below 80M: 3e-3 · (84.9M / N)^(1/6), growing far slower than the table's own trend would."""
    return _REFERENCE_LEARNING_RATE * (_REFERENCE_PARAMETERS / parameters) ** (1 / 6)


def rung_tokens_per_step(parameters: float) -> float:
    """Tokens a step below 80M: 0.128M · (N / 84.9M)^(1/2), the table's own trend (0.128M at 80M, 0.392M at 680M)."""
    return _REFERENCE_TOKENS_PER_STEP * math.sqrt(parameters / _REFERENCE_PARAMETERS)
