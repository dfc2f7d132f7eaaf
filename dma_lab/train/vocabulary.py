"""How many tokens a run's text will be spelled with, before there are any."""

from functools import cache

from dma_lab.data.mqar import RecallSettings
from dma_lab.data.spelling import vocabulary_size
from dma_lab.data.tokenizer import load_tokenizer
from dma_lab.train.settings import TrainSettings


def planned_vocabulary(settings: TrainSettings) -> int:
    """Those of ``data.tokenizer``, or as many as a tokenizer is to be trained with, or recall's own.

    Raises:
        UserError: there is no such tokenizer, or it cannot be read.
    """
    data = settings.data
    if isinstance(data, RecallSettings) or data.tokenizer == "bpe":
        return data.vocab_size or settings.model.vocab_size
    return _size_of(data.tokenizer)


@cache  # reading a config asks several times, and a large tokenizer takes a second
def _size_of(tokenizer: str) -> int:
    return vocabulary_size(load_tokenizer(tokenizer))
