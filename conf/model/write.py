"""Writes this folder's files, the rungs of the ladder: ``python conf/model/write.py``.

A rung is given a shape, a vocabulary and a context; the rest follows by the rule of dma_lab/model/ladder.py. It stands
in the files as numbers, so that an override changes what it names and nothing else: model.n_layers=3 leaves the batch.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from dma_lab.model.ladder import reference_parameters, rung_learning_rate, rung_tokens_per_step  # noqa: E402

_PAGE = """\
# {about}
# Written by python conf/model/write.py; dma_lab/model/ladder.py has the rule.
name: {name}
n_layers: {n_layers}
d_model: {d_model}
n_heads: {n_heads}
n_kv_heads: {n_kv_heads}
head_dim: {head_dim}
d_ff: {d_ff}  # of the MHA rung; `match` widens or narrows it for the other backends
vocab_size: {vocab_size}  # of the tokenizer trained on the corpus; another tokenizer brings its own
tie_embeddings: true
# What the rung is trained with unless overridden:
context: {context}
tokens_per_step: {tokens_per_step}  # {sequences} sequences
learning_rate: {learning_rate}
"""


@dataclass(frozen=True)
class Rung:
    """What is given. From 80M up it is the paper's table 4 (arXiv 2508.02124), its batches in whole sequences."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    context: int
    about: str
    learning_rate: float | None = None
    """Peak; by the rule unless given."""
    sequences: int | None = None
    """A step; by the rule unless given."""

    def page(self) -> str:
        """The text of its file: two query heads a key/value head, a feed-forward three times as wide as the model."""
        shape = {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_heads // 2,
            "head_dim": self.d_model // self.n_heads,
            "d_ff": 3 * self.d_model,
        }
        parameters = reference_parameters(**shape)
        sequences = self.sequences or round(rung_tokens_per_step(parameters) / self.context)
        return _PAGE.format(
            about=self.about,
            name=self.name,
            **shape,
            vocab_size=self.vocab_size,
            context=self.context,
            tokens_per_step=sequences * self.context,
            sequences=sequences,
            learning_rate=self.learning_rate or round(rung_learning_rate(parameters), 4),
        )


_BELOW, _PAPER = "below the ladder: for laws that a CPU can find", "the paper's table 4"
RUNGS = (
    Rung("14k", 2, 24, 2, 512, 128, _BELOW),
    Rung("37k", 3, 32, 2, 512, 128, _BELOW),
    Rung("83k", 3, 48, 2, 512, 128, _BELOW),
    # By the rule nano had 21 sequences and 1m 27; 20 and 28 split over 2 and 4 devices too.
    Rung("nano", 3, 64, 2, 1024, 256, "a laptop's CPU, minutes", sequences=20),
    Rung("440k", 4, 96, 4, 512, 256, "a laptop's CPU, half an hour"),
    Rung("1m", 5, 128, 4, 2048, 512, "a laptop's CPU, an hour or two", sequences=28),
    Rung("3m", 4, 256, 4, 4096, 1024, "a CPU overnight, or any GPU"),
    Rung("10m", 6, 384, 6, 8192, 2048, "one GPU"),
    Rung("30m", 9, 512, 8, 16384, 2048, "one GPU"),
    Rung("80m", 12, 768, 6, 32768, 2048, _PAPER, learning_rate=3e-3, sequences=64),
    Rung("200m", 16, 1024, 8, 32768, 2048, _PAPER, learning_rate=2e-3, sequences=96),
    Rung("680m", 24, 1536, 12, 32768, 2048, _PAPER, learning_rate=1e-3, sequences=192),
    Rung("1.7b", 28, 2048, 16, 32768, 2048, _PAPER, learning_rate=1e-3, sequences=512),
)

if __name__ == "__main__":
    for rung in RUNGS:
        (FOLDER / f"{rung.name}.yaml").write_text(rung.page(), encoding="utf-8")
