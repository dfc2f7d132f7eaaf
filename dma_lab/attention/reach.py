"""Which options keep every key of the context, so that an attention that was to be sparse is not."""

from collections.abc import Mapping


def whole_context(max_seq_len: int, *kept: Mapping[str, int]) -> str | None:
    """Says of the first of ``kept``, options whose keys are counted together, that they reach all ``max_seq_len``
    tokens; None where none does.
    """
    for options in kept:
        if sum(options.values()) >= max_seq_len:
            named = " and ".join(f"attention.{option}={value}" for option, value in options.items())
            return f"{named} reach{'' if len(options) > 1 else 'es'} the whole context of {max_seq_len} tokens"
    return None
