"""The house: rooms import downwards only, and no file by way of others itself."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the top of the house to its ground.
ROOMS = [
    *("__main__", "commands", "benchmarks", "entry_point", "user_configs"),
    *("report", "train", "exchange", "evaluation", "scaling", "data", "model", "attention", "kernels", "figures"),
]
# Beneath it: what all rooms stand on, and what that stands on.
GROUND = {
    "__init__": set(),
    "messages": set(),
    "plugins": set(),
    "files": set(),
    "locks": set(),
    "phases": {"messages"},
    "processor": set(),
    "progress": set(),
    "seals": set(),
    "settings": {"messages"},
    "threads": set(),
    "checkpoints": {"messages"},
    "run_summary": {"files", "seals", "settings"},
}
FILES = sorted((ROOT / "dma_lab").rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Modules, and names in modules, that a file imports anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute, so that a reader sees the room"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    room = file.relative_to(ROOT / "dma_lab").parts[0].removesuffix(".py")
    parts = [module.split(".") for module in imported(file)]
    rooms = {part[1] for part in parts if part[0] == "dma_lab" and len(part) > 1}
    if room in ROOMS:
        above = set(ROOMS[: ROOMS.index(room)])
        assert not rooms & above, f"{file} imports {rooms & above}, which stand above it"
    else:
        assert rooms <= GROUND[room], f"{file} is the ground and imports {rooms}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    graph = {
        name: {part if part in names else part.rpartition(".")[0] for part in imported(file)} & names.keys() - {name}
        for name, file in names.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


PURE = [
    *(ROOT / "dma_lab" / "scaling").glob("*.py"),
    *(ROOT / "dma_lab" / "model" / f"{name}.py" for name in ("ladder", "matching")),
]


@pytest.mark.parametrize("file", sorted(PURE), ids=lambda file: file.name)
def test_arithmetic_is_free_of_torch(file: Path) -> None:
    assert "torch" not in {name.split(".")[0] for name in imported(file)}
