"""Writes this folder's files, the rungs of the ladder: ``python conf/model/write.py``.

A rung is a shape, a vocabulary and a context. Learning rate and batch are the recipe's (dma_lab/train/recipe.py).
"""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
_PAGE = """\
# {about}
# Written by python conf/model/write.py.
name: {name}
n_layers: {n_layers}
d_model: {d_model}
n_heads: {n_heads}
n_kv_heads: {n_kv_heads}
head_dim: {head_dim}
d_ff: {d_ff}  # of the MHA rung; `match` widens or narrows it for the other backends
vocab_size: {vocab_size}  # of the tokenizer trained on the corpus; another tokenizer brings its own
tie_embeddings: true
context: {context}  # trained with unless overridden
"""


@dataclass(frozen=True)
class Rung:
    """What is given. From 80M up it is the paper's table 4 (arXiv 2508.02124)."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    context: int
    about: str

    def page(self) -> str:
        """The text of its file: two query heads per key/value head, a feed-forward three times as wide as the model."""
        shape = {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_heads // 2,
            "head_dim": self.d_model // self.n_heads,
            "d_ff": 3 * self.d_model,
        }
        return _PAGE.format(
            about=self.about,
            name=self.name,
            **shape,
            vocab_size=self.vocab_size,
            context=self.context,
        )


_BELOW, _PAPER = "below the ladder: for laws that a CPU can find", "the paper's table 4"
RUNGS = (
    Rung("14k", 2, 24, 2, 512, 128, _BELOW),
    Rung("37k", 3, 32, 2, 512, 128, _BELOW),
    Rung("83k", 3, 48, 2, 512, 128, _BELOW),
    Rung("nano", 3, 64, 2, 1024, 256, "a laptop's CPU, minutes"),
    Rung("440k", 4, 96, 4, 512, 256, "a laptop's CPU, half an hour"),
    Rung("1m", 5, 128, 4, 2048, 512, "a laptop's CPU, an hour or two"),
    Rung("3m", 4, 256, 4, 4096, 1024, "a CPU overnight, or any GPU"),
    Rung("10m", 6, 384, 6, 8192, 2048, "one GPU"),
    Rung("30m", 9, 512, 8, 16384, 2048, "one GPU"),
    Rung("80m", 12, 768, 6, 32768, 2048, _PAPER),
    Rung("200m", 16, 1024, 8, 32768, 2048, _PAPER),
    Rung("680m", 24, 1536, 12, 32768, 2048, _PAPER),
    Rung("1.7b", 28, 2048, 16, 32768, 2048, _PAPER),
)

if __name__ == "__main__":
    for rung in RUNGS:
        (FOLDER / f"{rung.name}.yaml").write_text(rung.page(), encoding="utf-8")
