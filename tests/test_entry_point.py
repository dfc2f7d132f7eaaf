"""What the entry points say before anything is done: one sentence for whatever the command line may hold, status 2."""

import signal
import sys
import time
from functools import partial

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dma_lab.settings
from dma_lab.benchmarks.settings import TrainingSettings
from dma_lab.entry_point import run_entry_point
from dma_lab.evaluation.settings import EvaluateSettings
from dma_lab.exchange.settings import ExportSettings
from dma_lab.report.settings import read_report_settings
from dma_lab.run_summary import Summary
from dma_lab.train.reading import read_plan_settings, read_settings
from tests.made_up import summary

READ = {
    "train": read_settings,
    "plan": read_plan_settings,
    "evaluate": partial(dma_lab.settings.read_settings, EvaluateSettings),
    "report": read_report_settings,
    "export": partial(dma_lab.settings.read_settings, ExportSettings),
    "bench_training": partial(dma_lab.settings.read_settings, TrainingSettings),
}
NEEDED = {"evaluate": ["suite=needle", "checkpoint=run"], "export": ["checkpoint=run", "to=folder"]}


@pytest.fixture
def refusal(monkeypatch, capsys):
    """``refusal(entry_point, arguments)``: the sentence with which the entry point refuses; None if it lets them in."""

    def call(entry_point: str, arguments: list[str], main=None) -> str | None:
        def read(config: DictConfig) -> None:
            main() if main else READ[entry_point](config)

        monkeypatch.setattr(sys, "argv", [f"{entry_point}.py", *NEEDED.get(entry_point, []), *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        GlobalHydra.instance().clear()
        started = time.process_time()
        status = 0
        try:
            run_entry_point(read, entry_point)
        except SystemExit as end:
            status = end.code
        assert time.process_time() - started < 10
        said = capsys.readouterr().err.splitlines()
        if status == 0:
            return None
        assert (status, len(said)) == (2, 1)
        assert said[0].startswith("error: ")
        assert said[0].endswith(".")
        assert len(said[0]) < 500
        return said[0]

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=7b"], "model=7b is not known; choose one of: 1.7b, 10m"),
        (["model=80"], "model=80 is not known; choose one of: 1.7b, 10m, 14k, 1m, 200m, 30m, 37k, 3m, 440k, 680m, 80m"),
        (["attention="], "attention= is not known; choose one of: dma, "),
        (["data=the_pile"], "data=the_pile is not known; choose one of: fineweb_edu, local"),
        (
            ["experiment=chinchila_dma"],
            "experiment=chinchila_dma is not known; choose one of: chinchilla, chinchilla_dma",
        ),
        (["sweep=chinchila"], "sweep=chinchila is not known; choose one of: chinchilla, isoflop"),
        (["hydra/launcher=ray"], "hydra/launcher=ray is not known; choose one of: basic"),
        (["optimizer.lr=1"], "optimizer.lr is no setting here"),
        (["trainer.contxt=128"], "trainer.contxt is no setting here (did you mean trainer.context?)"),
        (["context=256"], "context is no setting here (did you mean trainer.context?)"),
        (
            ["attention=mha", "attention.score=exp"],
            "of attention=… these have it: dma, dma_frozen, dma_random, mqar_dma",
        ),
        (["data=mqar", "data.path=text"], "data.path is no setting here: of data=… these have it: fineweb_edu, local"),
        (["weight_decay=0"], "weight_decay is no setting here (did you mean optimizer.weight_decay?)"),
        (["trainer=[1]"], "trainer=[1] is not known; choose one of: default"),
        (["trainer={a:1}"], "trainer={a:1} is not known"),
        (["attention=null"], "attention=null is not known; choose one of: dma, "),
        (["model=null"], "model=null is not known; choose one of: "),
        (["+foo={a:1}"], "foo is no setting here"),
        (["+trainer.strategy=fsdp"], "+trainer.strategy adds a setting that is there; leave out the +."),
        (["+foo=" + "{a:" * 200 + "1" + "}" * 200], "nests too deep"),
        (["seed=" + "[" * 40 + "]" * 40], "seed=[["),
        (["seed=1" + "0" * 5000], "4300 digits"),
        (["study=${nope}"], "study=${nope} cannot be worked out: Interpolation key 'nope' not found"),
        (["study=${study}"], "study=${study} cannot be worked out: Recursive"),
        (["study=???"], "study must be given, as study="),
        (["~model"], "model.vocab_size"),
        (["study=\udcff"], r"study=\udcff' is no override"),
        (["study=a\x00"], r"study=a\x00' is no override"),
        (["study='a\nb'"], r"study='a\nb': it names the run's directory"),
        (["model.name='东京'"], "model.name=东京: it names the run's directory"),
        (["output_dir='a\tb'"], r"output_dir='a\tb': it holds characters that cannot be printed"),
        (["study"], "study is no override; write setting=value"),
        (["seed=0,1"], "seed=0,1 is several values: put -m before the settings"),
        (["attention=mha,swa"], "attention=mha,swa is several values: put -m before the settings"),
        (["-m", "attention=mha,swaa"], "attention=swaa is not known; choose one of: dma, "),
        (["-m", "attention=mha,swa", "modle=1m"], "modle is no setting here; see conf/"),
        (["-m", "model=14k,37k", "attention=mqa"], "attention=mqa is not known"),
        (["..=3"], "..=3 is no override"),
        (["--config-name", "nope"], "nope"),
        (["attention.name=[1]"], "attention.name=[1]"),
    ],
    ids=lambda value: "".join(value)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_what_makes_no_config_is_one_sentence(refusal, arguments, said):
    assert said in refusal("train", arguments)


@pytest.mark.parametrize(
    ("entry_point", "arguments", "said"),
    [
        ("plan", ["flops_per_second=inf"], "flops_per_second=inf: input should be a finite number"),
        (
            "plan",
            ["flops_per_secnd=1"],
            "flops_per_secnd is no setting here (did you mean flops_per_second?); see conf/",
        ),
        ("export", ["run=outputs"], "run is no setting here; there are: checkpoint, format, license, to."),
        ("export", ["licence=mit"], "licence is no setting here (did you mean license?); there are: checkpoint, "),
        ("plan", ["flops_per_second=true"], "flops_per_second=True: input should be a valid number"),
        ("evaluate", ["checkpoint=[1]"], "checkpoint=[1]: input should be a valid string"),
        ("evaluate", ["checkpoint=null"], "checkpoint=None: input should be a valid string"),
        ("evaluate", ["suite=[1]"], "suite=[1] is not known; choose one of: context, generate"),
        ("evaluate", ["suite.rope_base=inf"], "suite.rope_base=inf: input should be a finite number"),
        ("evaluate", ["suite.lengths=[0]"], "suite.lengths.0=0: input should be greater than 0"),
        ("evaluate", ["+suite.widow=3"], "suite.widow is no setting here; see conf/"),
        ("report", ["runs=null"], "runs=None: input should be a valid string"),
        ("report", ["runs=3"], "runs=3: input should be a valid string"),
        ("report", ["output_dir=[1]"], "output_dir=[1]: input should be a valid string"),
        ("report", ["output_dir="], "output_dir=: string should have at least 1 character"),
        ("report", ["points=a.csv", "archive=b.tar.xz"], "points=a.csv does that alone, and archive=b.tar.xz would be"),
        ("report", ["tune=a.yaml", "archive=b.tar.xz"], "tune=a.yaml does that alone, and archive=b.tar.xz would be"),
        ("report", ["points=a.csv", "watch=true"], "points=a.csv does that alone, and watch=true would be left undone"),
        ("report", ["archive=b.tar.xz", "forecast=c.json"], "archive=b.tar.xz does that alone, and forecast=c.json"),
        ("report", ["larger.name=30m"], "larger names a run to forecast, and no file is given"),
        ("report", ["larger.params=1e9", "watch=true"], "larger names a run to forecast, and no file is given"),
        ("export", ["to={a:1}"], "to={'a': 1}: input should be a valid string"),
        ("export", ["format=onnx"], "format=onnx: input should be 'auto', 'stock' or 'custom'"),
        ("bench_training", ["contexts=128"], "contexts=128: input should be a valid array"),
        ("bench_training", ["contexts=[null]"], "contexts.0=None: input should be a valid integer"),
        ("bench_training", ["steps=many"], "steps=many: input should be a valid integer"),
        ("bench_training", ["results_dir=null"], "results_dir=None: input should be a valid string"),
    ],
    ids=lambda value: "".join(value),
)
def test_every_entry_point_names_the_setting_that_cannot_be(refusal, entry_point, arguments, said):
    assert said in refusal(entry_point, arguments)


@pytest.mark.parametrize("entry_point", READ)
def test_every_entry_point_reads_its_own_config_and_says_what_cannot_be_written(refusal, tmp_path, entry_point):
    assert refusal(entry_point, []) is None
    (tmp_path / "file").write_text("")
    said = refusal(entry_point, [], main=lambda: (tmp_path / "file" / "below").mkdir())
    assert f"{tmp_path}/file/below cannot be read or written (Not a directory)" in said


def test_a_stopped_sweep_is_reported_before_python_exits(monkeypatch, capsys, tmp_path):
    """Whose points ran in other processes, as submitit's do: only then can what the report needs be imported."""
    shown = []

    def main(config: DictConfig) -> list[Summary]:
        if config.seed == 1:
            raise SystemExit(143)
        return [summary(tmp_path / "first")]

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1,2", f"output_dir={tmp_path}"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as end:
        run_entry_point(main, "train", shown.extend)
    assert end.value.code == 143
    assert shown == [tmp_path / "first"]
    assert capsys.readouterr().err.startswith("stopped at: seed=1 ")


@pytest.mark.usefixtures("interrupts_heeded")
def test_an_interrupt_ends_a_sweep_although_omegaconf_made_an_error_of_it(monkeypatch, capsys, tmp_path):
    begun, validate = [], ListConfig._validate_set

    def interrupt(*args: object) -> None:
        validate(*args)
        signal.raise_signal(signal.SIGINT)

    def main(config: DictConfig) -> None:
        begun.append(config.seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ListConfig, "_validate_set", interrupt)  # as the item that it appends is None
            with pytest.raises(OmegaConfBaseException, match="_invalidate_flags_cache") as lost:
                OmegaConf.create({"betas": [0.9, 0.95]})
        raise lost.value

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1", f"output_dir={tmp_path}"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as end:
        run_entry_point(main, "train", lambda runs: None)
    assert end.value.code == 130
    assert begun == [0]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped at: seed=0 ")


@pytest.mark.usefixtures("interrupts_heeded")
def test_an_interrupt_as_the_command_line_is_composed_is_no_mistake_of_the_user_s(monkeypatch, capsys):
    validate = ListConfig._validate_set

    def interrupt(self: ListConfig, *args: object) -> None:
        validate(self, *args)
        if self._key() == "config_sources":  # OmegaConf makes an error of it, which Hydra raises
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ListConfig, "_validate_set", interrupt)
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=0"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as end:
        run_entry_point(lambda config: pytest.fail("it begins"), "train")
    assert end.value.code == 130
    assert capsys.readouterr().err == ""
