"""Files that say themselves whether they are what was written: a changed byte is noticed, not believed."""

import hashlib
import json
import math
from typing import Any

_SEAL = "digest"


def sealed(content: dict[str, Any]) -> str:
    """``content`` as JSON that holds a digest of itself; numbers that are not finite become null."""
    content = json.loads(json.dumps(finite(content), allow_nan=False))  # as it will be read: names are strings
    return json.dumps({**content, _SEAL: digest_of(content)}, indent=2) + "\n"


def unsealed(text: str) -> dict[str, Any]:
    """What was given to ``sealed``. Raises ValueError if ``text`` is not what that made of it."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, dict) or content.pop(_SEAL, None) != digest_of(content):
        raise ValueError("its content is not what was written")
    return content


def finite(value: Any) -> Any:
    """``value`` as JSON's standard has it: numbers within it that are not finite are None."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest_of(content: dict[str, Any], size: int = 16) -> str:
    """``content`` (JSON-able) as ``size`` bytes in hexadecimal: the same for equal content, in whatever order it is."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=size).hexdigest()
