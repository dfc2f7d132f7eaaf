"""A finished or interrupted run, opened for evaluation: its model, and the tokens and tokenizer that it learnt from."""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from dma_lab.attention import AttentionConfig
from dma_lab.checkpoints import read_checkpoint, recorded
from dma_lab.data.finding import user_path
from dma_lab.data.store import META_FILE, TokenData, TornCacheError, read_meta
from dma_lab.messages import MishapError, UserError
from dma_lab.model import ModelShape, Transformer
from dma_lab.run_summary import Summary, UnusableSummaryError

_IN_SUMMARY = ("data_fingerprint", "init_from_digest", "precision", "steps")
_MADE_AGAIN = "delete the run's summary.json, and the command that trained it writes both again from its checkpoint"


@dataclass(frozen=True)
class TrainedRun:
    """What a run's directory holds. ``open_run`` makes it."""

    path: Path
    checkpoint: Path
    config: dict[str, Any]
    """config.yaml, resolved."""
    summary: Summary
    step: int
    """Optimizer steps that the weights have seen."""
    weights: dict[str, Tensor]
    """By parameter name, on the CPU."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What defines its training, by name in config.yaml or summary.json, as the checkpoint itself has it."""

    @property
    def context(self) -> int:
        """Tokens per training sequence."""
        return int(self.config["trainer"]["context"])

    @property
    def rope_base(self) -> float | None:
        """None of a backend that has no such option."""
        base = self.config["attention"].get("rope_base")
        return None if base is None else float(base)

    def model(self, max_seq_len: int | None = None, rope_base: float | None = None) -> Transformer:
        """The trained model in float32 on the CPU, in eval mode.

        Args:
            max_seq_len: tokens it can take; the training context unless given. Windows and block sizes stay those of
                the training context.
            rope_base: base of the rotary frequencies; as trained unless given.

        Raises:
            UserError: the weights are not those of config.yaml's model, or its attention has no option ``rope_base``.
        """
        shape = self.shape
        with torch.device("meta"):
            trained = Transformer(shape, AttentionConfig.read(self.config["attention"]))
        self._check_weights(trained)
        # Options left open took their values from training's context.
        options = trained.attention.written()
        if rope_base is not None:
            if "rope_base" not in options:
                raise UserError(
                    f"suite.rope_base={rope_base:g}: attention={options['name']} has no option rope_base; leave it out."
                )
            options["rope_base"] = rope_base
        shape = replace(shape, max_seq_len=max_seq_len or shape.max_seq_len)
        model = Transformer(shape, AttentionConfig.read(options))
        model.load_state_dict(self.weights)
        return model.eval()

    @cached_property
    def data(self) -> TokenData:
        """The token files that the run was trained on: its tokenizer, and the text that validates.

        Raises:
            UserError: they are not where the run had them, or it was trained on no text.
        """
        if "cache_dir" not in self.config["data"]:
            raise UserError(f"{self.path} was trained on data={self.config['data'].get('name')}, which is not text.")
        cache_dir = user_path(self.config["data"]["cache_dir"], "data.cache_dir")
        wanted = self.summary.data_fingerprint
        torn = []
        for meta_file in sorted(cache_dir.glob(f"*/{META_FILE}")):
            try:
                if read_meta(meta_file.parent)["fingerprint"] != wanted:
                    continue
                data = TokenData(meta_file.parent)
                data.load_tokenizer()
            except Exception as error:  # tokenizers raises plain Exception for every fault of a file
                kind = "" if isinstance(error, TornCacheError) else "its tokenizer: "
                torn.append(f"{meta_file.parent} is damaged: {kind}{error}")
                continue
            if data.vocab_size > self.shape.vocab_size:
                raise self._foreign(
                    f"its embedding has {self.shape.vocab_size} rows and the tokenizer {data.vocab_size} tokens"
                )
            return data
        raise UserError(
            f"The tokenizer and tokens of {self.path} (fingerprint {wanted}) are not under data.cache_dir={cache_dir}"
            f"{' (' + '; '.join(torn) + ')' if torn else ''}: the command that trained the run makes them again; or "
            "start from the directory that it was trained in."
        )

    @cached_property
    def shape(self) -> ModelShape:
        rung = self.config["model"]
        names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "tie_embeddings")
        embedding = self.weights.get("embedding.weight")
        if embedding is None:
            raise self._foreign("it has no embedding.weight")
        return ModelShape(
            **{name: rung[name] for name in names},
            d_ff=self.summary.d_ff,  # found by matching to the MHA rung
            vocab_size=embedding.shape[0],
            max_seq_len=self.context,
        )

    def refuse_another_training(self) -> None:
        """Raises UserError where the checkpoint says that it was trained with what config.yaml or the summary has not.

        The warm-up's steps are in neither: the config may have a fraction.
        """
        for setting, value in self.identity.items():
            if setting == "warmup_steps":
                continue
            found: Any = vars(self.summary) if setting in _IN_SUMMARY else self.config
            for part in setting.split("."):
                found = found.get(part) if isinstance(found, dict) else None
            if json.dumps(found, default=str) != json.dumps(value):  # where 2.0 is not 2
                file = "summary" if setting in _IN_SUMMARY else "config"
                raise self._foreign(f"it was trained with {setting}={value} and the {file} has {found}")

    def _check_weights(self, model: Transformer) -> None:
        ours = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        theirs = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                raise self._foreign(
                    f"its {name} is {theirs.get(name, 'absent')} and the config's {ours.get(name, 'absent')}"
                )

    def _foreign(self, why: str) -> UserError:
        return UserError(
            f"{self.checkpoint} is the checkpoint of another config than {self.path / 'config.yaml'}: {why}; give the "
            "directory that the checkpoint was trained in."
        )


def open_run(path: Path, setting: str = "checkpoint") -> TrainedRun:
    """Open a run's directory, or one of the checkpoints in its ``checkpoints/``. Reads tensors and plain values only.

    Args:
        path: as the user gave it, as ``setting``.

    Raises:
        UserError: the directory is no run, has no checkpoint yet, or a file of it cannot be read.
    """
    given = path
    path = user_path(path, setting)
    if path.suffix == ".ckpt":
        checkpoint, path = path, path.parent.parent
    else:
        checkpoint = path / "checkpoints" / "last.ckpt"
    if not path.is_dir():
        raise UserError(f"{setting}={given}: there is no such directory; give a run's, as train.py printed it.")
    for file in (path / "config.yaml", path / "summary.json"):
        if not file.is_file():
            raise UserError(
                f"{setting}={given} is not a run's directory: it has no {file.name}; give one that train.py made."
            )
    if not checkpoint.is_file():
        raise UserError(f"{setting}={given}: the run has no {checkpoint.relative_to(path)}; train it first.")
    config, summary = _read_config(path / "config.yaml"), _read_summary(path / "summary.json")
    try:
        content = read_checkpoint(checkpoint, mmap=True)
    except OSError as error:
        raise MishapError(f"{checkpoint} cannot be read ({error.strerror}): fix that first.") from error
    weights = {name.removeprefix("model."): weight for name, weight in content["state_dict"].items()}
    identity = recorded(content)["identity"]
    run = TrainedRun(path, checkpoint, config, summary, content["global_step"], weights, identity)
    run.refuse_another_training()
    return run


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, AssertionError) as error:
        raise UserError(f"{file} cannot be read ({_first_line(error)}): {_MADE_AGAIN}.") from error
    missing = [node for node in ("model", "attention", "data", "trainer") if not _holds(config, node)]
    if missing:
        raise UserError(f"{file} is not a run's config: it lacks {', '.join(missing)}; {_MADE_AGAIN}.")
    whole: dict[str, Any] = config
    return whole


def _holds(config: Any, node: str) -> bool:
    return isinstance(config, dict) and isinstance(config.get(node), dict)


def _read_summary(file: Path) -> Summary:
    try:
        return Summary.read(file.parent, beside=["config.yaml"])
    except UnusableSummaryError as error:
        raise UserError(f"{file} is not a run's summary: {error}; {_MADE_AGAIN}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({_first_line(error)}): {_MADE_AGAIN}.") from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
