"""What a run begins with where that is not chance: weights of another model (``init_from``), of the same shape.

They define the run by their digest, wherever they lie. Optimizer, schedule and data begin anew.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from dma_lab.attention import AttentionConfig
from dma_lab.attention.heads import QKNorm
from dma_lab.exchange.source import Source, open_source
from dma_lab.messages import UserError, warn_once
from dma_lab.model import Initialisation, ModelShape, Transformer
from dma_lab.settings import shown
from dma_lab.train.plan import RunPlan, build_model, padded_vocabulary
from dma_lab.train.settings import TrainSettings

_MODEL_SETTINGS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "tie_embeddings")


@dataclass(frozen=True)
class Beginning:
    """Weights by our names, and where they are from."""

    weights: dict[str, Tensor]
    digest: str
    """Of all of the source's."""
    anew: tuple[str, ...]
    """Parameters that the source has not: they begin as in any run."""
    left: tuple[str, ...]
    """The source's that this model has no place for."""

    @torch.no_grad()
    def load_into(self, model: Transformer) -> None:
        parameters = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, weight in self.weights.items():
            parameters[name].copy_(weight)


def prepare_beginning(
    settings: TrainSettings, plan: RunPlan, *, say: bool, tokenizer_file: Path | None = None
) -> Beginning | None:
    """What ``init_from`` names, for the model of ``plan``; None where it names nothing.

    Args:
        say: whether to tell the user what of it is not used, or used otherwise than it was trained.
        tokenizer_file: of the run's text; None where it is trained on none.

    Raises:
        UserError: it cannot be read, or is of another shape than the run's model.
    """
    if settings.init_from is None:
        return None
    source = open_source(settings.init_from)
    _refuse_another_shape(settings, source, plan.shape)
    with torch.device("meta"):
        ours = build_model(settings, plan.shape).state_dict()
    if plan.shape.tie_embeddings:
        ours.pop("head.weight")
    taken = {name: weight for name, weight in source.weights.items() if name in ours}
    anew = tuple(sorted(ours.keys() - taken.keys()))
    left = tuple(sorted(source.weights.keys() - taken.keys()))
    for name, weight in taken.items():
        if weight.shape != ours[name].shape:
            raise UserError(
                f"init_from={settings.init_from}: its {name} is {tuple(weight.shape)} and here "
                f"{tuple(ours[name].shape)}; set attention={source.attention['name']}, which it was trained with, or "
                "give a folder whose weights are those of its config."
            )
    if (anew or left) and source.attention["name"] == settings.attention.name:
        raise UserError(
            f"init_from={settings.init_from} has attention={settings.attention.name} with other options: "
            f"{_some(anew or left)} is only in {'this model' if anew else 'it'}; give the options that it was trained "
            f"with ({_options(source)})."
        )
    if say:
        remarks = _remarks(settings, plan.shape, source, anew, left)
        if tokenizer_file is not None and source.tokenizer_file is not None:
            remarks += _on_tokens(tokenizer_file, source.tokenizer_file)
        for remark in remarks:
            warn_once(f"init_from={settings.init_from}: {remark}.")
    return Beginning(taken, source.digest, anew, left)


def _refuse_another_shape(settings: TrainSettings, source: Source, ours: ModelShape) -> None:
    """All that differs at once, with what to set. Norms of queries and keys that one has and the other has not would
    make another function of all the weights."""
    theirs, begun = source.shape, f"init_from={settings.init_from}: "
    differ, cure = [], []
    for name in _MODEL_SETTINGS:
        if (value := getattr(theirs, name)) != (own := getattr(ours, name)):
            differ.append(f"{name} is {value} and here {own}")
            cure.append(f"model.{name}={_given(value)}")
    if theirs.d_ff != ours.d_ff:
        matched = settings.match != "none" and ours.d_ff != settings.model.d_ff
        why = f" (match={settings.match} made it so)" if matched else ""
        differ.append(f"d_ff is {theirs.d_ff} and here {ours.d_ff}{why}")
        cure.append(f"model.d_ff={theirs.d_ff} match=none")
    norms = source.attention.get("qk_norm"), settings.attention.written().get("qk_norm")
    if None not in norms and norms[0] != norms[1]:
        differ.append(f"qk_norm is {norms[0]} and here {norms[1]}")
        cure.append(f"attention.qk_norm={_given(norms[0])}")
    if differ:
        raise UserError(f"{begun}its {', its '.join(differ)}; set {' '.join(cure)}.")
    if theirs.vocab_size != ours.vocab_size == padded_vocabulary(theirs.vocab_size):
        raise UserError(
            f"{begun}its vocab_size is {theirs.vocab_size} and here {ours.vocab_size}, in whole sixty-fours; enlarge "
            f"its embeddings with transformers, model.resize_token_embeddings({ours.vocab_size}), and save it again."
        )
    if theirs.vocab_size != ours.vocab_size:
        raise UserError(
            f"{begun}its vocab_size is {theirs.vocab_size} and here {ours.vocab_size}, the tokenizer's in whole "
            "sixty-fours; set data.tokenizer to the tokenizer that the weights were trained with."
        )


def _remarks(
    settings: TrainSettings, shape: ModelShape, source: Source, anew: tuple[str, ...], left: tuple[str, ...]
) -> list[str]:
    """What a user who expects the source's own function would want to know."""
    said = list(source.remarks)
    with torch.device("meta"):
        model = build_model(settings, shape)
        ours, theirs = model.attention.written(), _decided(source)
    if unheeded := _unheeded(settings.init, model, anew):
        said.append(f"{', '.join(unheeded)} changes nothing: what it would decide begins as it is there")
    if anew:
        said.append(f"{len(anew)} parameters are not in it and begin anew: {_some(anew, 8)}")
    if left:
        said.append(f"{len(left)} of its parameters have no place in this model and are left: {_some(left, 8)}")
    changed = [
        f"attention.{name}={_given(theirs[name])} (here {_given(ours[name])})"
        for name in theirs
        if name not in ("name", "package") and name in ours and theirs[name] != ours[name]
    ]
    if changed:
        said.append(f"it was trained with {', '.join(changed)}, which can be set here too")
    if settings.trainer.context > source.shape.max_seq_len:
        base = "" if ours.get("rope_base") is None else "; a larger attention.rope_base may help (docs/evaluation.md)"
        said.append(
            f"trainer.context={settings.trainer.context} is longer than the {source.shape.max_seq_len} tokens that it "
            f"was trained on{base}"
        )
    return said


def _unheeded(init: Initialisation, model: Transformer, anew: tuple[str, ...]) -> list[str]:
    """Of the initial weights' settings, those that were given and that no parameter in ``anew`` begins by."""
    began = {name: model.get_submodule(name.rpartition(".")[0]) for name in anew}
    drawn = [name for name, module in began.items() if isinstance(module, nn.Linear | nn.Embedding)]
    heeded = {
        "std": bool(drawn),
        "output_scale": any(name.endswith(("o_proj.weight", "down_proj.weight")) for name in drawn),
        "qk_gain": any(isinstance(module, QKNorm) for module in began.values()),
    }
    usual = Initialisation()
    given = {name: value for name, value in vars(init).items() if value != getattr(usual, name)}
    return [f"init.{name}={value:g}" for name, value in given.items() if not heeded[name]]


def _on_tokens(ours: Path, theirs: Path) -> list[str]:
    """Whether an embedding's row is of another token here than where it was trained."""
    try:
        tokenizer = Tokenizer.from_file(str(theirs))
    except Exception:  # all that tokenizers raises; a folder's may be of any kind, and its weights are what is taken
        return []
    there, here = (
        {number: token for token, number in own.get_vocab().items()}
        for own in (tokenizer, Tokenizer.from_file(str(ours)))
    )
    common = there.keys() & here.keys()
    if not (other := sum(there[number] != here[number] for number in common)):
        return []
    return [
        f"{other:,} of its {len(common):,} tokens are others than this run's tokenizer has, and so embeddings begin as "
        f"those of other text; set data.tokenizer={theirs} to go on with its own"
    ]


def _decided(source: Source) -> dict[str, Any]:
    """The options of the source's attention, those that its config leaves to the shape decided; as they are of a
    backend that is not installed here."""
    try:
        attention = AttentionConfig.read(source.attention)
    except UserError:
        return source.attention
    return Transformer(source.shape, attention).attention.written()


def _options(source: Source) -> str:
    known = {name: value for name, value in source.attention.items() if name not in ("name", "package")}
    return ", ".join(f"attention.{name}={_given(value)}" for name, value in known.items())


def _given(value: object) -> str:
    """As a command line gives it."""
    return "null" if value is None else shown(str(value).lower() if isinstance(value, bool) else value)


def _some(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
