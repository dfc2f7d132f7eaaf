"""What cannot be exported is refused in a sentence, and leaves nothing behind."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dma_lab.exchange import export_model, export_run
from dma_lab.messages import UserError
from tests.exchange.models import make_model
from tests.report.conftest import vouch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("attention", "options", "shape", "reason"),
    [
        ("nsa", {}, {}, "transformers has no architecture with attention=nsa"),
        (
            "dma",
            {"qk_norm": False},
            {},
            "Doge always normalises queries and keys, and this model has attention.qk_norm=false",
        ),
        ("dma", {"score": "linear"}, {}, "Doge has the paper's score alone, and this model has attention.score=linear"),
        ("dma", {"recent": 2}, {}, "Doge keeps no key for being recent, and this model has attention.recent=2"),
        ("mha", {"recency": "slope"}, {}, "transformers has no MHA with attention.recency=slope"),
        ("dma", {"recency": "slope"}, {}, "transformers has no DMA with attention.recency=slope"),
        ("mla", {"recency": "slope"}, {}, "transformers has no MLA with attention.recency=slope"),
        ("dma", {"sinks": 2}, {}, "transformers has no DMA with attention.sinks=2"),
        ("dma", {"scores": "random"}, {}, "transformers has no DMA with attention.scores=random"),
        ("dma", {"scores": "frozen"}, {}, "transformers has no DMA with attention.scores=frozen"),
        ("swa", {"sinks": 2}, {}, "transformers has no SWA with attention.sinks=2"),
        ("mha", {"gate": True}, {}, "transformers has no MHA with attention.gate=true"),
        (
            *("swa", {"qk_norm": False, "full_every": 2}, {}),
            "Mistral has a window in every layer, and this model has attention.full_every=2",
        ),
        ("mla", {}, {"d_model": 50}, "DeepSeek-V2 wants d_model=50 to be a multiple of n_heads=4"),
        ("mha", {"qk_norm": False}, {"d_model": 50}, "Llama wants d_model=50 to be a multiple of n_heads=4"),
    ],
)
def test_what_no_stock_architecture_computes_is_refused_with_the_reason(
    tmp_path, capfd, attention, options, shape, reason
):
    model = make_model(attention, options, **shape)
    with pytest.raises(UserError) as refusal:
        export_model(model, tmp_path / "stock", "stock")
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("; choose format=custom.")
    assert not (tmp_path / "stock").exists()
    folder = export_model(model, tmp_path / "auto")
    assert f"{reason}: modeling_dma_lab.py is exported too" in capfd.readouterr().err
    assert (folder / "modeling_dma_lab.py").is_file()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["format=gguf"], "format=gguf: input should be 'auto', 'stock' or 'custom'."),
        (["to={full}"], "to={full} holds files already, which are not overwritten; give another folder or empty it."),
        (["to={file}"], "to={file} is a file; give a folder that is not there yet."),
        (["to={file}/folder"], "to={file}/folder cannot be written"),
        ([f"to={'x' * 300}"], f"to={'x' * 79}… cannot be read (File name too long); give a folder that can."),
        (["to=???"], "to must be given, as to=…; see conf/ for what it is."),
        (["checkpoint=nowhere"], "checkpoint=nowhere: there is no such directory"),
        (["checkpoint={full}"], "checkpoint={full} is not a run's directory: it has no config.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(trained_run, tmp_path, monkeypatch, capsys, overrides, sentence):
    (tmp_path / "full").mkdir()
    places = {"full": str(tmp_path / "full"), "file": str(tmp_path / "full" / "file")}
    Path(places["file"]).write_text("kept")
    given = [f"checkpoint={trained_run}", f"to={tmp_path / 'new'}", *(item.format(**places) for item in overrides)]
    monkeypatch.setattr(sys, "argv", ["export.py", *{item.split("=")[0]: item for item in given}.values()])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "export.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert sentence.format(**places) in said
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*")) == [tmp_path / "full", Path(places["file"])], "something was written"
    assert Path(places["file"]).read_text() == "kept"


def test_a_run_without_its_tokenizer_is_refused(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.data.cache_dir = str(tmp_path / "nothing")
    OmegaConf.save(config, run / "config.yaml")
    vouch(run)
    with pytest.raises(UserError, match=r"The tokenizer and tokens of .* are not under"):
        export_run(run, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_cannot_be_finished_is_not_begun(tmp_path, monkeypatch):
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dma_lab.exchange.folder.shutil.copyfile", full_disk)  # what comes last, after the weights
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        export_model(make_model("nsa", {}), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
