"""A clock that a test winds, for what a module measures: seconds are exact, and no busy machine moves them."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class WoundClock:
    """Stands in for ``time.perf_counter`` of ``module``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        self.now, self._monkeypatch = 0.0, monkeypatch
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def wind(self, owner: Any, name: str, seconds: Callable[[int], float]) -> None:
        """The n-th call of ``owner.name`` (1 is the first) takes ``seconds(n)``."""
        original, calls = getattr(owner, name), []

        def timed(*args: Any, **options: Any) -> Any:
            calls.append(1)
            self.now += seconds(len(calls))
            return original(*args, **options)

        self._monkeypatch.setattr(owner, name, timed)
