"""Runs of several processes: signalled, one or all of them, at any moment, and continued; started twice at once; under
the variables of launchers, fitting and contradictory. The right result, or one sentence."""

import functools
import random
import shutil
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from dma_lab.train.ranks import find_ranks
from tests.faults.conftest import SILENTLY_WRONG, SURVIVED, TRACEBACK, short_and_long, worst
from tests.faults.file_events import Fault
from tests.faults.results import difference, results_in
from tests.faults.scripts import Command, FaultyStarted
from tests.moments import signal_at

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL)
MOMENTS = (
    *(("dma_lab.train.module:LanguageModel.training_step", number) for number in range(1, 13)),
    ("dma_lab.train.launch:_connect", 1),
    *(("dma_lab.train.task:TextTask.score", number) for number in (1, 2)),
    *(("dma_lab.train.callbacks:RunRecorder._save", number) for number in (1, 2, 3)),
    *(("dma_lab.train.runs:RunDirectory.write_summary", number) for number in (1, 2)),
)
"""Of the tiny run's first process, once it has started the other."""


@pytest.fixture(scope="module")
def pair(tiny) -> Command:
    return tiny.with_(trainer__devices=2)


@pytest.fixture(scope="module")
def expected_of_pair(scripts, pair, uncut, tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(uncut / "cache", folder / "cache")
    process = scripts.run(pair, folder)
    assert process.returncode == 0, process.stderr
    return results_in(folder)


@pytest.fixture
def launch(scripts, pair) -> Callable[..., list[FaultyStarted]]:
    """Both processes of the pair, as torchrun or srun would start them."""

    def started(folder, launcher: str, befores: tuple[Callable[[], object] | None, ...] = (None, None)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        return [
            scripts.start(pair, folder, environment=variables(launcher, rank) | {"MASTER_PORT": port}, before=before)
            for rank, before in enumerate(befores)
        ]

    return started


def variables(launcher: str, rank: int) -> dict[str, str]:
    return {
        "torchrun": {"RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": f"{rank}", "MASTER_ADDR": "127.0.0.1"},
        "srun": {
            "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": f"{rank}",
            "SLURM_LOCALID": f"{rank}", "SLURM_NODELIST": "localhost", "SLURM_NNODES": "1",
        },
        "jsrun": {
            "JSM_NAMESPACE_RANK": f"{rank}", "JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_LOCAL_RANK": f"{rank}",
        },
        "mpirun": {
            "OMPI_COMM_WORLD_RANK": f"{rank}", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": f"{rank}",
        },
    }[launcher]  # fmt: skip


@short_and_long(8, 200)
def test_one_or_both_of_a_pair_signalled_and_continued(
    scripts, pair, expected_of_pair, trials, continued, draw, workplace, number
):
    for turn in range(number):
        folder, sent = workplace(), SIGNALS[turn % len(SIGNALS)]
        (function, call), to = draw.choice(MOMENTS), draw.choice(["first", "others", "both"])
        before = functools.partial(signal_at, function, call, sent, to)
        process = scripts.start(pair, folder, before=before).ended(60)
        ends = [trials.of_cut(process, sent)]
        if process.returncode == 0 and (wrong := difference(folder, expected_of_pair)):
            ends.append((SILENTLY_WRONG, wrong))
        ends.append(continued(pair, folder, expected_of_pair))
        what = f"{sent.name} to {to} at {function.rpartition(':')[2]} {call}"
        trials.count(what, *worst(ends, folder))
        shutil.rmtree(folder, ignore_errors=True)


@short_and_long(3, 100)
def test_one_of_a_launchers_pair_signalled_and_continued(
    launch, pair, expected_of_pair, trials, continued, draw, workplace, number
):
    for turn in range(number):
        folder, sent, signalled = workplace(), SIGNALS[turn % len(SIGNALS)], draw.randrange(2)
        function, call = "dma_lab.train.module:LanguageModel.training_step", draw.randint(1, 12)
        befores: list[Any] = [None, None]
        befores[signalled] = functools.partial(signal_at, function, call, sent, "first")
        launcher = draw.choice(["torchrun", "srun", "jsrun", "mpirun"])
        processes = [process.ended(60) for process in launch(folder, launcher, tuple(befores))]
        ends = [trials.of_cut(process, sent) for process in processes]
        ends.append(continued(pair, folder, expected_of_pair))
        trials.count(f"{sent.name} to {launcher}'s {signalled} at step {call}", *worst(ends, folder))
        shutil.rmtree(folder, ignore_errors=True)


@short_and_long(4, 100)
def test_started_twice_or_more_at_once(
    scripts, tiny, pair, expected, expected_of_pair, trials, continued, draw, workplace, number
):
    for turn in range(number):
        folder, count = workplace(), draw.choice([2, 2, 3])
        command, right = (pair, expected_of_pair) if turn % 4 == 3 else (tiny, expected)
        if draw.random() < 0.5:
            shutil.rmtree(folder / "cache")
        killed = draw.random() < 0.3
        faults = [Fault(draw.randint(1, 150), signal.SIGKILL) if killed else None, *[None] * (count - 1)]
        processes = [process.ended() for process in [scripts.start(command, folder, fault) for fault in faults]]
        ends = [trials.of_cut(process, signal.SIGKILL) for process in processes[:killed]]
        ends += [trials.of_process(process) for process in processes[killed:]]
        if not killed and SURVIVED not in [end for end, _ in ends]:
            ends.append((TRACEBACK, "none of them trained"))
        if not killed and (wrong := difference(folder, right)):
            ends.append((SILENTLY_WRONG, wrong))
        ends.append(continued(command, folder, right))
        what = f"{count} of {command.settings.get('trainer.devices', 1)} processes{', one killed' * killed}"
        trials.count(what, *worst(ends, folder))
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "launcher",
    ["srun", *(pytest.param(name, marks=pytest.mark.faults) for name in ("torchrun", "jsrun", "mpirun"))],
)
def test_what_a_launcher_starts_is_one_run(launch, expected_of_pair, trials, workplace, launcher):
    folder = workplace()
    ends = [trials.of_process(process.ended()) for process in launch(folder, launcher)]
    if wrong := difference(folder, expected_of_pair):
        ends.append((SILENTLY_WRONG, wrong))
    assert {end for end, _ in ends} == {SURVIVED}, ends
    trials.count(launcher, *worst(ends, folder))


def drawn(draw: random.Random) -> dict[str, str]:
    """Variables of one launcher or two, of which some are missing, others hold what does not fit."""
    found: dict[str, str] = {}
    for launcher in draw.sample(["torchrun", "srun", "jsrun", "mpirun"], draw.choice([1, 1, 2])):
        found |= variables(launcher, draw.randrange(2))
    for name in draw.sample(sorted(found), draw.choice([0, 1, 2])):
        if draw.random() < 0.5:
            del found[name]
        elif name not in ("MASTER_ADDR", "SLURM_NODELIST"):
            found[name] = draw.choice(["0", "1", "2", "3", "4", "-1", "many", "", " 2", "1e3", "9" * 30])
    return found


@short_and_long(500, 20_000)
def test_whatever_a_launcher_says_a_process_is_part_of_the_run_or_refuses(trials, wrong, draw, monkeypatch, number):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(number):
        environment, devices = drawn(draw), draw.choice([1, 2, 4])
        if draw.random() < 0.7:
            environment["MASTER_PORT"] = "29500"

        def one(environment: dict[str, str] = environment, devices: int = devices) -> None:
            with monkeypatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                ranks = find_ranks(devices)
            if ranks.count != devices or not 0 <= ranks.rank < devices or ranks.launched > (devices > 1):
                raise wrong(f"{ranks}")

        trials.try_here(f"devices={devices}, {environment}", one)


def shorten_meeting() -> None:
    import dma_lab.train.launch

    dma_lab.train.launch._TIMEOUT = timedelta(seconds=3)


@short_and_long(5, 200)
def test_alone_under_any_launchers_variables(
    scripts, tiny, pair, expected, expected_of_pair, trials, draw, workplace, number
):
    """With one device it is the run; with two it starts the other, or says that nobody comes."""
    for turn in range(number):
        folder, environment = workplace(), drawn(draw) | {"MASTER_PORT": "0"}
        command, right = [(tiny, expected), (pair, expected_of_pair)][turn % 2]
        process = scripts.start(command, folder, environment=environment, before=shorten_meeting).ended(60)
        ends = [trials.of_process(process)]
        if process.returncode == 0 and (wrong := difference(folder, right)):
            ends.append((SILENTLY_WRONG, wrong))
        trials.count(f"devices={turn % 2 + 1}, {environment}", *worst(ends, folder))
        shutil.rmtree(folder)
