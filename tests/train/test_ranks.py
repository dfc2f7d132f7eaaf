"""Who a process is: the settings decide, and a launcher's variables are believed where they fit."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dma_lab import messages, phases
from dma_lab.messages import UserError
from dma_lab.train.peers import OneRun
from dma_lab.train.ranks import Ranks, find_ranks, is_launched_first, local_rank

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1234"}
BATCH = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SRUN = BATCH | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
TORCHRUN_OF_TWO = TORCHRUN | {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
}
SRUN_OF_TWO = SRUN | {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
JSRUN = {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_LOCAL_RANK": "1"}


@pytest.fixture
def launched(monkeypatch):
    def by(variables: dict[str, str]) -> None:
        for name in {*TORCHRUN_OF_TWO, *SRUN_OF_TWO, *JSRUN}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return by


@pytest.mark.parametrize("variables", [{}, TORCHRUN, SRUN, JSRUN, {"RANK": "1"}, {"LOCAL_RANK": "3"}])
def test_a_process_of_one_device_is_a_run_of_its_own(launched, variables):
    launched(variables)
    assert find_ranks(1) == Ranks(rank=0, count=1, launched=False)


@pytest.mark.parametrize(
    ("variables", "first"),
    [({}, True), (BATCH, True), (TORCHRUN | {"RANK": "0"}, True), (TORCHRUN, False), (SRUN, False), (JSRUN, False)],
)
def test_one_process_of_a_launcher_says_what_all_are_at(launched, monkeypatch, capsys, variables, first):
    launched(variables)
    monkeypatch.setattr(phases, "_SECONDS_UNSAID", 0.0)
    monkeypatch.setattr(messages, "_silent", False)
    if not is_launched_first():
        messages.leave_to_the_first()
    with phases.phase("reading data"):
        time.sleep(0.1)
    messages.warn_once(f"{variables} are slow")
    assert capsys.readouterr().err == (f"dma_lab: reading data\ndma_lab: {variables} are slow\n" if first else "")


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, Ranks(count=2)),
        (TORCHRUN, Ranks(1, 2, True, "here", 1234)),
        (SRUN, Ranks(1, 2, True, "127.0.0.1", 18456)),
        (SRUN | {"MASTER_PORT": "1234", "MASTER_ADDR": "here"}, Ranks(1, 2, True, "here", 1234)),
        # One task of a job that has more, and the batch script itself: nobody else will come.
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Ranks(count=2)),
        (BATCH, Ranks(count=2)),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Ranks(count=2)),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Ranks(count=2)),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Ranks(count=2)),
        # torchrun within a step of one task; what another program left.
        (TORCHRUN | SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Ranks(1, 2, True, "here", 1234)),
        ({"WORLD_SIZE": "8", "MASTER_PORT": "1234"}, Ranks(count=2)),
    ],
)
def test_a_launchers_processes_are_the_run_that_they_were_meant_as(launched, variables, ranks):
    launched(variables)
    assert find_ranks(2) == ranks


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        (TORCHRUN_OF_TWO, Ranks(3, 4, True, "here", 1234, 2)),
        (SRUN_OF_TWO, Ranks(3, 4, True, "gpu07", 18456, 2)),
        (SRUN_OF_TWO | {"MASTER_ADDR": "there"}, Ranks(3, 4, True, "there", 18456, 2)),
    ],
)
def test_processes_of_two_machines_are_one_run(launched, variables, ranks):
    launched(variables)
    found = find_ranks(2, num_nodes=2)
    assert found == ranks
    environment = OneRun(found)
    assert (environment.node_rank(), environment.local_rank()) == (1, 1)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "on each of trainer.num_nodes=2 machines: start them there"),
        (TORCHRUN, "are 4 processes, and that is not what torchrun started (RANK=1, WORLD_SIZE=2)"),
        (
            TORCHRUN_OF_TWO | {"GROUP_WORLD_SIZE": "1"},
            "WORLD_SIZE=4, GROUP_WORLD_SIZE=1): have torchrun start 2 on each",
        ),
        (SRUN_OF_TWO | {"SLURM_PROCID": "2"}, "SLURM_LOCALID=1 of SLURM_PROCID=2"),
        (SRUN_OF_TWO | {"SLURM_STEP_NODELIST": ""}, "MASTER_ADDR is not set"),
    ],
)
def test_other_processes_of_two_machines_are_refused(launched, variables, named):
    launched(variables)
    with pytest.raises(UserError) as refusal:
        find_ranks(2, num_nodes=2)
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    ("devices", "variables", "named"),
    [
        (4, TORCHRUN, "torchrun started (RANK=1, WORLD_SIZE=2)"),
        (4, SRUN, "srun started (SLURM_PROCID=1, SLURM_NTASKS=2)"),
        (2, SRUN | {"SLURM_NNODES": "2"}, "srun started (SLURM_PROCID=1, SLURM_NTASKS=2, SLURM_NNODES=2)"),
        (2, TORCHRUN | {"RANK": "2"}, "torchrun started (RANK=2, WORLD_SIZE=2)"),
        (2, {"RANK": "1"}, "torchrun started (RANK=1)"),
        (2, JSRUN, "MASTER_PORT is not set, and jsrun started 2"),
        (2, {"LOCAL_RANK": "1"}, "LOCAL_RANK=1 is set without RANK"),
        (2, TORCHRUN | {"MASTER_PORT": "tcp"}, "MASTER_PORT=tcp in the environment is no number"),
        (2, SRUN | {"SLURM_NTASKS": "many"}, "SLURM_NTASKS=many in the environment is no number"),
    ],
)
def test_other_processes_are_refused(launched, devices, variables, named):
    launched(variables)
    with pytest.raises(UserError) as refusal:
        find_ranks(devices)
    assert named in str(refusal.value)
    assert str(refusal.value).count(". ") == 0, "one sentence"


@pytest.mark.parametrize(
    ("variables", "place"), [({}, 0), (TORCHRUN, 1), (SRUN, 1), (JSRUN, 1), (SRUN | {"SLURM_LOCALID": "3"}, 3)]
)
def test_the_place_on_the_machine(launched, variables, place):
    launched(variables)
    assert local_rank() == place


def test_a_rank_that_is_no_number_is_refused_before_lightning_reads_it():
    code = "import dma_lab.train.fit_run"
    environment = {"RANK": "x", "PATH": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "error: RANK=x in the environment is no number: unset it.\n")
