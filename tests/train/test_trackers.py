"""TensorBoard and trackio: the lines of metrics.jsonl under their names, each step once, also of a continued run."""

import json
from pathlib import Path

import pytest

from dma_lab.messages import UserError, print_once
from dma_lab.train import run_log
from dma_lab.train.branches import fit_branches
from dma_lab.train.callbacks import RunRecorder
from dma_lab.train.fit_run import fit_run
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import LoggerSettings
from dma_lab.train.trackers import require_logger

SHORT = ["attention=mha", "tokens=10240", "trainer.log_every=3", "trainer.checkpoint_every=4"]


@pytest.fixture
def tracker(request, monkeypatch, tmp_path):
    """``read(run)``: by name, [(step, value)] as the tracker's own reader gives them."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, as trackio is imported
    why = f"needs the package: pip install 'dma-lab[{request.param}]'"
    pytest.importorskip(request.param, reason=why)
    if request.param == "tensorboard":
        from tensorboard.backend.event_processing.plugin_event_accumulator import (
            EventAccumulator,  # what the server reads with
        )

        def events(run: Path) -> dict[str, list[tuple[int, float]]]:
            read = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
            tags = [tag for tag in read.Tags()["tensors"] if tag != "config/text_summary"]
            return {tag: [(event.step, tensor(event)) for event in read.Tensors(tag)] for tag in tags}

        def tensor(event) -> float:
            from tensorboard.util.tensor_util import make_ndarray

            return make_ndarray(event.tensor_proto).item()

        return request.param, events
    from trackio.sqlite_storage import SQLiteStorage

    def rows(run: Path) -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for row in SQLiteStorage.get_logs("dma_lab", run.name):
            for name in row.keys() - {"step", "timestamp"}:
                found.setdefault(name, []).append((row["step"], row[name]))
        return found

    return request.param, rows


def assert_all_lines_once(run: Path, read) -> None:
    logged = read(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines
    for name in ("loss", "grad_norm", "val_loss", "learning_rate"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert sorted(logged[name]) == expected, name
    assert [step for step, _ in sorted(logged["tokens_per_second"])] == [line["step"] for line in lines]


trackers = pytest.mark.parametrize("tracker", ["tensorboard", "trackio"], indirect=True)


@trackers
def test_branches_and_a_continued_run_log_every_step_once(read, overrides, monkeypatch, tracker):
    """Cut after step 7, when a line of step 6 is logged and the checkpoint is of 4. A branch begins with another's."""
    name, logged = tracker
    settings = read([*overrides, *SHORT, f"logger={name}", "schedule.branches=[0.5,1]"])

    def cut(self, trainer, *_):
        if trainer.global_step == 7:  # of the shorter one, whose 10 steps are no multiple of a checkpoint's
            raise SystemExit(1)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_train_batch_start", cut, raising=False)
        with pytest.raises(SystemExit):
            fit_branches(settings)
    summaries = fit_branches(settings)
    assert summaries[1].steps_shared > 3, "its first lines are the shorter one's"
    for summary in summaries:
        assert_all_lines_once(Path(summary.run), logged)


@pytest.mark.parametrize("tracker", ["trackio"], indirect=True)
def test_lines_that_a_killed_process_logged_and_did_not_send_are_logged_again(read, overrides, tmp_path, tracker):
    name, logged = tracker
    from dma_lab.train.trackio_run import trackio_log

    settings, run = read([*overrides, f"logger={name}"]), RunDirectory(tmp_path / "killed-0")
    run.path.mkdir()
    for lines, on_disk in (([1, 2], 0), ([2, 3, 4, 5], 4)):  # killed when it had written, and not sent, 3 and 4
        with trackio_log(settings, run, on_disk) as log:
            for step in lines:
                log.add({"step": step, "loss": 1.0 / step}, step)
    assert sorted(logged(run.path)["loss"]) == [(step, 1.0 / step) for step in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("train", [fit_run, lambda settings: fit_branches(settings)], ids=["run", "branches"])
@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_before_anything_is_read(
    read, overrides, monkeypatch, name, train, tmp_path
):
    monkeypatch.setattr("dma_lab.train.trackers.find_spec", lambda package: None)
    settings = read([*overrides, *SHORT, f"logger={name}", "schedule.branches=[0.5,1]"])
    with pytest.raises(UserError, match=rf"logger={name} needs .* pip install 'dma-lab\[{name}\]'"):
        train(settings)
    assert not list(tmp_path.glob("*-*"))


def test_names_of_nested_numbers_are_wandbs():
    line = {"step": 3, "loss": 1.5, "note": "text", "none": None, "val_accuracy_by_pairs": {"4": 0.5, "8": {"a": 1}}}
    assert run_log.numbers(line) == {
        "step": 3,
        "loss": 1.5,
        "val_accuracy_by_pairs.4": 0.5,
        "val_accuracy_by_pairs.8.a": 1,
    }


@pytest.mark.parametrize(
    ("logger", "unheeded"),
    [("local", ["project", "entity"]), ("tensorboard", ["project", "entity"]), ("trackio", ["entity"]), ("wandb", [])],
)
def test_settings_that_a_logger_does_not_take_are_said(logger, unheeded, monkeypatch, capsys):
    monkeypatch.setattr("dma_lab.train.trackers.find_spec", lambda name: name)
    print_once.cache_clear()
    require_logger(LoggerSettings(logger, project=None, entity=None))
    assert not capsys.readouterr().err
    require_logger(LoggerSettings(logger, project="mine", entity="mine"))
    said = [f"dma_lab: logger.{name}=mine changes nothing: logger={logger} has no {name}.\n" for name in unheeded]
    assert capsys.readouterr().err == "".join(said)
