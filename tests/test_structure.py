"""The house: rooms import downwards only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the top of the house to its ground.
ROOMS = ["report", "train", "exchange", "evaluation", "scaling", "data", "model", "attention", "kernels", "figures"]
# Beneath it: what all rooms stand on, and what that stands on.
GROUND = {
    "messages.py": set(),
    "plugins.py": set(),
    "files.py": set(),
    "locks.py": set(),
    "phases.py": {"messages"},
    "seals.py": set(),
    "threads.py": set(),
    "checkpoints.py": {"messages"},
    "run_summary.py": {"files", "seals"},
}
FILES = sorted((ROOT / "dma_lab").rglob("*.py"))


def rooms_imported(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute, so that a reader sees the room"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if part[0] == "dma_lab" and len(part) > 1}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    room = file.relative_to(ROOT / "dma_lab").parts[0]
    imported = rooms_imported(file)
    if room in ROOMS:
        above = set(ROOMS[: ROOMS.index(room)])
        assert not imported & above, f"{file} imports {imported & above}, which stand above it"
        assert "entry_point" not in imported, f"{file} imports the entry point, which stands above the house"
    elif room in GROUND:
        assert imported <= GROUND[room], f"{file} is the ground and imports {imported}"


PURE = [
    *(ROOT / "dma_lab" / "scaling").glob("*.py"),
    *(ROOT / "dma_lab" / "model" / f"{name}.py" for name in ("ladder", "matching")),
]


@pytest.mark.parametrize("file", sorted(PURE), ids=lambda file: file.name)
def test_arithmetic_is_free_of_torch(file: Path) -> None:
    assert "torch" not in {
        name.split(".")[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
