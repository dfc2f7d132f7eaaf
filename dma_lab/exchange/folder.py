"""A model of ours as a folder that transformers loads: config.json, weights, the tokenizer's files, a README.md."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dma_lab.attention.rope import Rotary
from dma_lab.data.finding import user_path
from dma_lab.data.store import TokenData
from dma_lab.data.tokenizer import save_for_transformers
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.exchange.configs import NoStockArchitectureError, custom_config, stock_config
from dma_lab.exchange.doge import DogeTransformer
from dma_lab.exchange.model_card import DOGE_TRANSFORMERS, model_card, training_facts
from dma_lab.exchange.weights import stock_weights, untied
from dma_lab.messages import UserError, warn_once
from dma_lab.model import Transformer
from dma_lab.settings import shown

FORMATS = ("auto", "stock", "custom")
MODELING_FILE = Path(__file__).with_name("modeling_dma_lab.py")
_CODE_GOES_ALONG = f"{MODELING_FILE.name} is exported too, for trust_remote_code=True where dma_lab is installed"


def export_run(run_directory: Path, to: Path, format: str = "auto", license: str | None = None) -> Path:
    """Write the model and the tokenizer of a run to the new folder ``to``; returns it.

    Args:
        run_directory: as train.py made it, or one of the checkpoints in its ``checkpoints/``.
        to, format: as ``export_model`` takes them.
        license: an identifier for the weights, which README.md then names.

    Raises:
        UserError: the run cannot be opened, or as ``export_model`` says.
    """
    to = user_path(to, "to")
    _check(to, format)  # before the run is read, which may take a while
    run = open_run(run_directory)
    data = None
    if "cache_dir" in run.config["data"]:
        data = run.data
    else:
        warn_once(f"{run_directory} was trained on no text: no tokenizer is exported.")
    return export_model(run.model(), to, format, data=data, trained=training_facts(run), license=license)


def export_model(
    model: Transformer,
    to: Path,
    format: str = "auto",
    *,
    data: TokenData | None = None,
    trained: Mapping[str, str] | None = None,
    license: str | None = None,
) -> Path:
    """Write the model to the new folder ``to``, which appears whole or not at all; returns it.

    Args:
        to: a path where nothing is, or an empty folder.
        format: ``stock``, an architecture that transformers has; ``custom``, with a modeling file that imports
            dma_lab (``trust_remote_code=True``); ``auto``, stock where one computes the same. Of DMA that is custom:
            Doge, its stock, keeps other keys where scores are equal.
        data: token files whose tokenizer is exported; None for no tokenizer.
        trained: how it was trained, for README.md (``training_facts``).
        license: for README.md; without one it names none.

    Raises:
        UserError: there is something at ``to`` or it cannot be written, or no stock architecture computes what the
            model does and ``format`` is ``stock``; or an imported Doge is to be ``custom``.
    """
    to = user_path(to, "to")
    _check(to, format)
    config, weights, modeling_file = _described(model, format)
    config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if data is not None:
        config |= {"bos_token_id": data.eot_id, "eos_token_id": data.eot_id}
    with _new_folder(to) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "config.json", config)
        if modeling_file is not None:
            shutil.copyfile(modeling_file, folder / modeling_file.name)
        if data is not None:
            save_for_transformers(data.tokenizer_file, folder, model.shape.max_seq_len)
        readme = folder / "README.md"
        readme.write_text(
            model_card(
                config, model.attention, sum(weight.numel() for weight in model.parameters()), trained or {}, license
            ),
            encoding="utf-8",
        )
        for file in folder.iterdir():  # safetensors lets nobody else read what it writes
            file.chmod(readme.stat().st_mode)
    return to


def _described(model: Transformer, format: str) -> tuple[dict[str, Any], dict[str, Tensor], Path | None]:
    """config.json, the weights by name, and the modeling file of the custom format."""
    attention = model.attention.name
    imported = isinstance(model, DogeTransformer)  # which of equal keys it keeps is Doge's affair
    if format != "custom":
        try:
            config = stock_config(model.shape, model.attention)
        except NoStockArchitectureError as reason:
            if format == "stock":
                raise UserError(f"format=stock: {reason}; choose format=custom.") from None
            warn_once(f"{reason}: {_CODE_GOES_ALONG}.")
        else:
            if attention != "dma" or imported or format == "stock":
                if attention == "dma":
                    window = model.attention.written()["window"]
                    warn_once(
                        f"this folder needs transformers {DOGE_TRANSFORMERS} or later: Doge attends to later tokens "
                        f"before that. Past attention.window={window} tokens its logits differ from this "
                        "model's where keys score the same (format=custom computes the same)."
                    )
                return config, stock_weights(model.state_dict(), model.shape, attention), None
            warn_once(
                "among keys of equal score transformers' Doge keeps others than this model: "
                f"{_CODE_GOES_ALONG} (format=stock writes a Doge)."
            )
    if imported:
        raise UserError(f"format={format} has no place for a Doge's residual scales; choose format=stock.")
    if lost := _unsaved_buffers(model):
        raise UserError(
            f"attention={attention} keeps {', '.join(lost)} out of its state_dict (persistent=False), so that a folder "
            "would lack it: register it with persistent=True."
        )
    weights = {f"model.{name}": weight for name, weight in untied(model.state_dict(), model.shape).items()}
    return custom_config(model.shape, model.attention), weights, MODELING_FILE


def _unsaved_buffers(model: Transformer) -> list[str]:
    """Buffers that no file would bring back; rotary tables are computed again."""
    tables = {f"{name}.{table}" for name, module in model.named_modules() if isinstance(module, Rotary)
              for table, _ in module.named_buffers()}  # fmt: skip
    saved = model.state_dict().keys()
    return [name for name, _ in model.named_buffers() if name not in saved and name not in tables]


def _check(to: Path, format: str) -> None:
    if format not in FORMATS:
        raise UserError(f"format={format} is not known; choose one of: {', '.join(FORMATS)}.")
    try:
        if to.exists() and not to.is_dir():
            raise UserError(f"to={to} is a file; give a folder that is not there yet.")
        if to.exists() and any(to.iterdir()):
            raise UserError(f"to={to} holds files already, which are not overwritten; give another folder or empty it.")
    except OSError as error:
        raise UserError(f"to={shown(to)} cannot be read ({error.strerror}); give a folder that can.") from error


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``to`` once it is full."""
    path = to.resolve()
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    except OSError as error:
        raise UserError(f"to={to} cannot be written ({error}); give a folder that can.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
