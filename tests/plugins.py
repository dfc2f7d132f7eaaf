"""Packages that offer a backend, put where Python finds installed ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from dma_lab import plugins
from dma_lab.attention.plugins import _load

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "anchored_attention"


def install(folder: Path, name: str, offers: str, code: str = "", version: str = "0.1.0") -> None:
    """What pip would leave in ``folder`` of a package ``name`` that offers ``anchored = my_module:MyClass``, say."""
    facts = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (facts / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{offers}\n")
    if code:
        module = offers.partition("=")[2].strip().partition(":")[0]
        (folder / f"{module}.py").write_text(code)


def look_again() -> None:
    plugins.plugins.cache_clear()
    _load.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``installed(name, offers, code, version)``: a package for as long as the test lasts."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def add(*arguments: str, **named: str) -> None:
        install(folder, *arguments, **named)
        look_again()

    yield add
    monkeypatch.undo()
    look_again()
    ConfigStore.instance().repo.pop("attention", None)


@pytest.fixture
def anchored(installed: Callable[..., None]) -> None:
    """The backend ``anchored``, of the package in examples/."""
    code = (EXAMPLE / "anchored_attention.py").read_text()
    installed("anchored-attention", "anchored = anchored_attention:AnchoredAttention", code)
