"""What a command is at where there is no progress to show yet: importing, reading data, building a model; on stderr."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from dma_lab.messages import left_to_the_first

_SECONDS_UNSAID = 5.0


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Say ``what`` for as long as the context lasts: on a terminal at once, elsewhere in a line once it has taken some
    seconds."""
    if left_to_the_first():
        yield
        return
    if sys.stderr.isatty():
        with Console(stderr=True).status(what):
            yield
        return
    late = threading.Timer(_SECONDS_UNSAID, print, (f"dma_lab: {what}",), {"file": sys.stderr, "flush": True})
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()
