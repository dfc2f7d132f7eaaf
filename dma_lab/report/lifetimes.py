"""The lifetimes of a finished DMA run: noted in its directory, or measured from its last checkpoint and noted then."""

from pathlib import Path

import torch

from dma_lab.data.batches import validation_batches
from dma_lab.data.store import TokenData, TornCacheError
from dma_lab.evaluation.lifetimes import Lifetimes, measure_lifetimes
from dma_lab.report.collect import Run
from dma_lab.scaling.ladder import reference_parameters
from dma_lab.train.plan import build_model, matched_shape
from dma_lab.train.settings import read_settings

_TOKENS = 8192
"""Validation tokens looked at, or one sequence where that is longer."""


class UnmeasurableError(Exception):
    """The run's lifetimes cannot be had; the message says why."""


def run_lifetimes(run: Run) -> Lifetimes:
    """Lifetimes on the first validation tokens, written to the run's lifetimes.npz the first time.

    Raises:
        UnmeasurableError: checkpoint or token files are gone, or they do not fit the run.
    """
    noted, checkpoint = run.path / "lifetimes.npz", run.path / "checkpoints" / "last.ckpt"
    try:
        if noted.exists():
            return Lifetimes.load(noted)
        if not checkpoint.exists():
            raise UnmeasurableError(f"{checkpoint} is gone")
        lifetimes = _measure(run, checkpoint)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UnmeasurableError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    lifetimes.save(noted)
    return lifetimes


def _measure(run: Run, checkpoint: Path) -> Lifetimes:
    settings = read_settings(run.config)
    data = _token_data(Path(settings.data.cache_dir).expanduser(), run.summary["data_fingerprint"])
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("model."): value for name, value in weights.items()}
    rung = settings.model
    reference = reference_parameters(
        rung.n_layers, rung.d_model, rung.n_heads, rung.n_kv_heads, rung.head_dim, rung.d_ff
    )
    model = build_model(settings, matched_shape(settings, len(weights["embedding.weight"]), reference))
    model.load_state_dict(weights)
    context = model.shape.max_seq_len
    batch = next(validation_batches(data, context=context, sequences=max(1, _TOKENS // context), max_tokens=_TOKENS))
    return measure_lifetimes(model, batch["tokens"], batch["document_ids"] if settings.data.mask_documents else None)


def _token_data(cache_dir: Path, fingerprint: str) -> TokenData:
    """The token files of that fingerprint. None is built here: a report does not fetch corpora."""
    for meta in cache_dir.glob("*/meta.json"):
        try:
            data = TokenData(meta.parent)
        except TornCacheError:
            continue
        if data.fingerprint == fingerprint:
            return data
    raise UnmeasurableError(f"{cache_dir} holds no token files of fingerprint {fingerprint[:8]}")
