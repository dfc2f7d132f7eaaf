"""What other packages offer: attention backends, as entry points. Nothing of theirs is imported here::

[project.entry-points."dma_lab.attention"]
mine = "my_package:MyAttention"
"""

import functools
from importlib.metadata import EntryPoint, entry_points

GROUP = "dma_lab.attention"


@functools.cache
def plugins() -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by name: more than one where packages clash."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=GROUP), key=offered_by):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def package_of(name: str) -> str | None:
    """The other package that the backend is of, and its version, as ``my-package 0.1.0``; None of dma_lab's own."""
    return next((offered_by(point) for point in plugins().get(name, ())), None)


def offered_by(point: EntryPoint) -> str:
    """The package, and its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"
