"""One colour per backend in every figure: the palette of Okabe and Ito (2008), safe for colour-blind readers."""

import colorsys
from collections.abc import Iterable, Iterator
from itertools import count

_COLOURS = {
    "mha": "#3d3d3d", "swa": "#0072b2", "mla": "#009e73", "nsa": "#cc79a7", "dma": "#d55e00", "moba": "#6b4226",
    "dsa": "#004d4d", "gated_deltanet": "#9e2a9e",
}  # fmt: skip
_FURTHER = (
    *("#56b4e9", "#8a6d00", "#7a3fb5", "#e69f00", "#a3264d", "#4b6b8a", "#86c232", "#00b8a9"),
    *("#0000ff", "#ff0000", "#e1a596", "#005a0f", "#ff00a5", "#9696ff"),
)

SERIES = ("#d55e00", "#0072b2", "#3d3d3d", "#009e73", *_FURTHER)
"""Of curves that stand for no backend, in their order."""
HEAT = ("#ffffff", "#fde3c8", "#f5a35c", "#d55e00", "#6b2b00")
"""Shares from none to all."""
DIVERGING = ("#0b3c5d", "#7fb3d5", "#ffffff", "#f5a35c", "#6b2b00")
"""From less than nothing, over nothing, to more."""
MISSING = "#d4d4d0"
"""Of a heat map's cells without a value: white stands for nothing in both scales."""


def colours_of(backends: Iterable[str]) -> dict[str, str]:
    """The backends have colours of their own; others (controls, a backend's variants) take one in the order they
    come, and no two the same, however many. Of variants of a backend that is not there by its plain name the first is
    it: named by what others set."""
    groups = sorted(set(backends))
    first = {name.split(" ")[0]: name for name in reversed(groups)}
    found = _COLOURS | {first[name]: colour for name, colour in _COLOURS.items() if name in first}
    others = [name for name in groups if name not in found]
    return found | dict(zip(others, _further(), strict=False))


def _further() -> Iterator[str]:
    """One colour after another: those chosen to be far apart, then hues a golden angle apart, each a little darker."""
    yield from _FURTHER
    for number in count():
        red, green, blue = colorsys.hls_to_rgb(number * 0.381966 % 1, 0.3 + 0.3 * 0.97**number, 0.55)
        yield f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def is_backends_own(colour: str) -> bool:
    """Whether it is one of the backends': controls and variants are drawn hollow and dashed."""
    return colour in _COLOURS.values()
