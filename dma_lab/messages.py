"""How the project speaks to its user: one sentence for a mistake, one line for a surprise."""

import functools
import sys


class UserError(Exception):
    """A mistake of the user's. The message is one sentence: the setting, its value, what would do.

    The doors print it without a traceback and exit with status 2.
    """


@functools.cache
def announce_once(message: str) -> None:
    """Print ``message`` to stderr the first time it is given in this process, and never again."""
    print(f"dma_lab: {message}", file=sys.stderr, flush=True)
