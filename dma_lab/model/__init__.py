"""The transformer that every backend is trained in, and the arithmetic of what it costs.

Dimension letters: B batch, N sequence, M model dim, F feed-forward width, V vocabulary.
"""

from dma_lab.model.transformer import Initialisation, ModelShape, Transformer

__all__ = ["Initialisation", "ModelShape", "Transformer"]
