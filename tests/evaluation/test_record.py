"""A suite's record: of which weights and machine it is, killed and continued, one writer at a time."""

import fcntl
import json
import re
from dataclasses import replace

import pytest
import torch

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.messages import UserError
from dma_lab.processor import CPUINFO, processor
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.evaluations import evaluations
from tests.evaluation.killed import kill_and_continue
from tests.evaluation.needles import NEEDLE


def test_a_record_says_of_which_weights_and_machine_it_is_and_the_report_shows_no_others(run_suite, run_copy):
    (kept,) = run_suite("context", "suite.lengths=[64]")
    run = open_run(run_copy)
    machine = {name: kept["cell"][name] for name in ("hardware", "precision", "torch")}
    assert machine["hardware"] == f"CPU ({processor()}, {torch.backends.cpu.get_cpu_capability()})"
    makers = re.findall(r"^vendor_id\s*: (\S+)", CPUINFO.read_text(), flags=re.MULTILINE)
    assert all(maker in machine["hardware"] for maker in makers), "as a training names it"
    assert (machine["precision"], machine["torch"], kept["cell"]["step"]) == ("fp32", torch.__version__, run.step)
    settings = {name: kept["cell"][name] for name in ("context", "stride", "tokens", "mask_documents", "rope_base")}
    others = {name: weight.clone() for name, weight in run.weights.items()}
    others["layers.1.attention.A"][0] += 1e-3
    with EvaluationRecord(replace(run, weights=others), "context", machine) as record:
        assert record.scores(settings) is None, "the same step, other weights"
        record.add(settings, kept["scores"] | {"perplexity": 1.0})
    with EvaluationRecord(run, "context", machine | {"hardware": "NVIDIA H200"}) as record:
        assert record.scores(settings) is None
    assert len(run_suite("context", "suite.lengths=[64]")) == 2, "nothing was computed again"
    (runs,) = cohorts(read_runs(run_copy)[0]).values()
    (figure,) = evaluations(runs).blocks
    assert [series.y for series in figure.series if series.kind == "points"] == [[kept["scores"]["perplexity"]]]


def test_a_killed_evaluation_keeps_its_cells_and_goes_on(scripts, run_copy):
    file = run_copy / "evaluation" / "needle.json"
    command = ["suite=needle", f"checkpoint={run_copy}", "device=cpu", *NEEDLE]
    command += ["suite.depths=[0.0,0.25,0.5,0.75,1.0]", "suite.lengths=[600]"]
    kept, done = kill_and_continue(scripts, command, file, 5, "gain")
    cells = json.loads(file.read_text())["cells"]
    assert len(cells) == 5
    assert cells[: len(kept)] == kept
    assert str(file) in done.stdout.replace("\n", "")


def test_a_record_is_written_by_one_process_and_a_damaged_one_is_named(run_suite, run_copy):
    folder = run_copy / "evaluation"
    folder.mkdir()
    with (folder / "generate.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another evaluation"):
            run_suite("generate")
    (folder / "generate.json").mkdir()
    with pytest.raises(UserError, match=r"suite=generate on .* was stopped by the file system \(.*Is a directory"):
        run_suite("generate")
    (folder / "generate.json").rmdir()
    (folder / "generate.json").write_text('{"cells": [1]}')
    with pytest.raises(UserError, match=r"generate.json is damaged .* delete it"):
        run_suite("generate")
