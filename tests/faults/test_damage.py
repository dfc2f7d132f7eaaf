"""Files of runs and of prepared data with a bit flipped, cut off or gone: every script gives what is right, or why not.

The scripts that read a run must not give a number that the run did not come to: continuing, evaluating, exporting and
reporting are each held against what they give undamaged.
"""

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import SILENTLY_WRONG, SURVIVED
from tests.faults.file_events import Fault
from tests.faults.results import difference, results_in
from tests.faults.scripts import CONTEXT, EXPORT, KILLED, REPORT, Command

BRANCHES = {"schedule.branches": [0.5, 1.0]}


def flipped(file: Path, draw: random.Random) -> str:
    content = bytearray(file.read_bytes())
    place = draw.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)
    return f"bit {place} flipped"


def cut_off(file: Path, draw: random.Random) -> str:
    content = file.read_bytes()
    length = draw.randrange(len(content))
    file.write_bytes(content[:length])
    return f"cut off at {length}"


def overwritten(file: Path, draw: random.Random) -> str:
    """A block of a disk that comes back empty."""
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content))
    size = min(draw.choice([1, 16, 512, 4096]), len(content) - place)
    content[place : place + size] = bytes(size)
    file.write_bytes(content)
    return f"zeros at {place}"


def lost(file: Path, draw: random.Random) -> str:
    file.unlink()
    return "lost"


DAMAGE = (flipped, flipped, flipped, cut_off, overwritten, lost)


def short_and_long(short: int, long: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "number", [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.faults)]
    )


def damaged(files: list[Path], draw: random.Random) -> str:
    done = []
    removable = {file for file in files if may_be_removed(file)}
    for _ in range(draw.choice([1, 1, 1, 2])):
        file = draw.choice([file for file in files if file.exists() and file.stat().st_size])
        kind = draw.choice([kind for kind in DAMAGE if not (kind is lost and file in removable)])
        done.append(f"{file.name} {kind(file, draw)}")
    return ", ".join(done)


def may_be_removed(file: Path) -> bool:
    """Whether the file's absence is no damage: an evaluation's, and checkpoints of a run that has finished."""
    summary = file.parents[1] / "summary.json"
    finished = summary.exists() and b'"status": "finished"' in summary.read_bytes()
    return file.parent.name == "evaluation" or (file.suffix == ".ckpt" and finished)


def files_of(folder: Path) -> list[Path]:
    """A run's, and the token files it was trained on."""
    names = (
        *("config.yaml", "summary.json", "metrics.jsonl", "speed.jsonl", "validation.npz"),
        *("checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/stable.ckpt", "evaluation/context.json"),
    )
    found = [file for name in names for file in sorted(folder.glob(f"runs/*/{name}"))]
    return found + sorted(file for file in folder.glob("cache/*/*") if file.is_file())


@pytest.fixture(scope="module")
def cut(scripts, tiny, uncut, tmp_path_factory) -> Path:
    """The tiny run, killed behind its second checkpoint."""
    folder = tmp_path_factory.mktemp("cut")
    shutil.copytree(uncut / "cache", folder / "cache")
    started = scripts.start(tiny, folder, Fault())
    assert started.ended().returncode == 0
    events = started.events
    for place in range(events // 2, events, 3):
        shutil.rmtree(folder / "runs")
        assert scripts.run(tiny, folder, Fault(place, signal.SIGKILL)).returncode == KILLED
        (run,) = folder.glob("runs/*")
        if (run / "checkpoints" / "previous.ckpt").exists():
            break
    assert len((run / "metrics.jsonl").read_text().splitlines()) < 6
    return folder


@pytest.fixture(scope="module")
def branched(scripts, tiny, uncut, tmp_path_factory) -> Path:
    """Two branches of one training, finished."""
    folder = tmp_path_factory.mktemp("branched")
    shutil.copytree(uncut / "cache", folder / "cache")
    process = scripts.run(tiny.with_(**BRANCHES), folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture
def tried(trials, draw, tmp_path) -> Callable[..., None]:
    """Counts a trial: a copy of a folder is damaged, a script run there, and what it gives compared."""
    numbers = iter(range(10**6))

    def one(
        scripts: Any, command: Command, folder: Path, wrong: Callable[[Path, str], str], files: list[str] | None = None
    ) -> None:
        copy = tmp_path / f"{next(numbers)}"
        shutil.copytree(folder, copy)
        chosen = [file for file in files_of(copy) if files is None or file.name in files]
        fault = f"{command.script}: {damaged(chosen, draw)}"
        process = scripts.run(command, copy)
        end, why = trials.of_process(process)
        if end == SURVIVED and (difference := wrong(copy, process.stderr)):
            end, why = SILENTLY_WRONG, difference
        trials.count(fault, end, why.replace(str(copy), ""))
        shutil.rmtree(copy)

    return one


@short_and_long(12, 300)
@pytest.mark.parametrize("what", ["cut", "uncut"])
def test_a_damaged_run_ends_as_the_undamaged(scripts, tiny, expected, tried, request, what, number):
    for _ in range(number):
        tried(scripts, tiny, request.getfixturevalue(what), lambda folder, said: difference(folder, expected))


@short_and_long(4, 100)
def test_damaged_branches_end_as_the_undamaged(scripts, tiny, branched, tried, tmp_path, number):
    expected = results_in(branched)
    longer = max(expected, key=lambda run: expected[run]["last.ckpt global_step"])
    begun = tmp_path / "begun"
    shutil.copytree(branched, begun)
    shutil.rmtree(begun / "runs" / longer)

    def wrong(folder: Path, said: str) -> str:
        shared = any("does not begin from it" in line or "damaged" in line for line in said.splitlines())
        adjusted = {run: dict(result) for run, result in expected.items()}
        if shared:  # said; then the longer branch took all its steps itself
            adjusted[longer]["summary.json steps_shared"] = json.loads(
                (folder / "runs" / longer / "summary.json").read_text()
            )["steps_shared"]
        # A damaged state that nothing is to begin from any more stays as it is.
        return difference(folder, adjusted, but="stable.ckpt")

    for _ in range(number):
        tried(scripts, tiny.with_(**BRANCHES), begun, wrong)


def reads(script: str, overrides: tuple[str, ...], folder: Path) -> Command:
    (run,) = folder.glob("runs/*")
    return Command(script, overrides).with_(checkpoint=f"runs/{run.name}")


def cells_of(folder: Path) -> Any:
    (file,) = folder.glob("runs/*/evaluation/context.json")
    return json.loads(file.read_text())["cells"]


@pytest.fixture(scope="module")
def evaluated(scripts, uncut, tmp_path_factory) -> Path:
    """The tiny run, finished and evaluated."""
    folder = tmp_path_factory.mktemp("evaluated") / "all"
    shutil.copytree(uncut, folder)
    process = scripts.run(reads("evaluate", CONTEXT, folder), folder)
    assert process.returncode == 0, process.stderr
    return folder


@short_and_long(6, 200)
def test_a_damaged_run_is_evaluated_rightly(scripts, uncut, evaluated, tried, number):
    right = cells_of(evaluated)
    for turn in range(number):
        folder = (uncut, evaluated)[turn % 2]
        command = reads("evaluate", CONTEXT, folder)
        tried(scripts, command, folder, lambda folder, said: "" if cells_of(folder) == right else "other scores")


def exported(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "exported").iterdir()}


@short_and_long(5, 150)
def test_a_damaged_run_is_exported_rightly(scripts, uncut, tried, tmp_path, number):
    undamaged = tmp_path / "undamaged"
    shutil.copytree(uncut, undamaged)
    command = reads("export", EXPORT, undamaged)
    process = scripts.run(command, undamaged)
    assert process.returncode == 0, process.stderr
    right = exported(undamaged)
    for _ in range(number):
        tried(scripts, command, uncut, lambda folder, said: "" if exported(folder) == right else "another folder")


@short_and_long(6, 150)
def test_a_damaged_run_is_reported_rightly(scripts, evaluated, tried, tmp_path, number):
    undamaged = tmp_path / "undamaged"
    shutil.copytree(evaluated, undamaged)
    command = Command("report", REPORT)
    process = scripts.run(command, undamaged)
    assert process.returncode == 0, process.stderr

    def said_in(folder: Path) -> list[bytes]:
        return [(folder / "report" / name).read_bytes() for name in ("report.md", "points.csv", "index.html")]

    def wrong(folder: Path, said: str) -> str:
        found = said_in(folder)
        named = b"cannot be believed" in found[0] or b"cannot be read" in found[0] or b"is missing" in found[0]
        return "" if named or found == said_in(undamaged) else "another report"

    for _ in range(number):
        tried(scripts, command, evaluated, wrong)
