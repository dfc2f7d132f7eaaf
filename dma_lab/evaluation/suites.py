"""What ``evaluate.py`` can do with a run: one function a suite, from settings to finished cells and what is shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dma_lab.data.progress import BuildProgress
from dma_lab.data.readers import FORMATS, format_of, read_documents
from dma_lab.evaluation.checkpoint import TrainedRun, open_run
from dma_lab.evaluation.context import loss_by_tokens_seen, score_sliding
from dma_lab.evaluation.generate import Sampling, generate
from dma_lab.evaluation.needle import Haystack, NeedleTask
from dma_lab.evaluation.needle_scores import score_samples
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.settings import ContextSettings, EvaluateSettings, GenerateSettings, NeedleSettings
from dma_lab.messages import UserError, announce_once
from dma_lab.model import Transformer


@dataclass(frozen=True)
class Machine:
    """Where and how the model is run."""

    device: torch.device
    precision: str
    """``fp32`` or ``bf16`` (mixed, as in training)."""
    batch_tokens: int

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def evaluate(settings: EvaluateSettings) -> Path:
    """Run the suite on the run; cells finished before are kept. Returns the file of the scores.

    Raises:
        UserError: for anything in the settings, the run or the text that a user can mend.
    """
    run = open_run(Path(settings.checkpoint))
    machine = _machine(settings)
    suite = settings.suite
    with EvaluationRecord(run, suite.name, machine.precision) as record, machine.autocast():
        match suite:
            case GenerateSettings():
                _generate(run, suite, machine, record)
            case ContextSettings():
                _context(run, suite, machine, record)
            case NeedleSettings():
                _needle(run, suite, machine, record)
        return record.file


def _machine(settings: EvaluateSettings) -> Machine:
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise UserError("device=cuda: PyTorch finds no CUDA device here; use device=cpu.")
    on_gpu = has_cuda and settings.device != "cpu"
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return Machine(torch.device("cuda" if on_gpu else "cpu"), precision, settings.batch_tokens)


def _model(run: TrainedRun, length: int, rope_base: float | None, machine: Machine) -> Transformer:
    """The model for sequences of ``length`` tokens, on the device."""
    if length > run.context:
        announce_once(f"{length} tokens are more than the {run.context} that {run.path.name} was trained on.")
    return run.model(max(length, run.context), rope_base).to(machine.device)


def _generate(run: TrainedRun, settings: GenerateSettings, machine: Machine, record: EvaluationRecord) -> None:
    data = run.data
    tokenizer = data.load_tokenizer()
    texts = _prompts(settings)
    sampling = Sampling(settings.temperature, settings.top_p)
    prompts = [[data.separator_id, *tokenizer.encode(text, add_special_tokens=False).ids] for text in texts]
    length = max(map(len, prompts)) + settings.max_new_tokens
    how = {
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
        "rope_base": settings.rope_base or run.rope_base,
    }
    cells = [{"prompt": text, "place": place, **how} for place, text in enumerate(texts)]
    rows = max(1, machine.batch_tokens // length)
    batches = [slice(at, at + rows) for at in range(0, len(cells), rows)]
    pending = [batch for batch in batches if any(record.scores(cell) is None for cell in cells[batch])]
    model = _model(run, length, settings.rope_base, machine) if pending else None
    with _progress("generating", len(pending)) as advance:
        for number, batch in enumerate(pending):
            assert model is not None
            new = generate(
                model,
                prompts[batch],
                max_new_tokens=settings.max_new_tokens,
                sampling=sampling,
                vocab_size=data.vocab_size,
                stop_token=data.separator_id,
                seed=settings.seed,
                first=batch.start,
                on_step=lambda done, steps, number=number: advance(number + done / steps),  # type: ignore[misc]
            )
            for cell, tokens in zip(cells[batch], new, strict=True):
                if record.scores(cell) is None:
                    record.add(cell, {"text": tokenizer.decode(tokens), "tokens": len(tokens)})
    for cell, scores in _finished(cells, record):
        print(f"{cell['prompt']}{scores['text']}\n")


def _prompts(settings: GenerateSettings) -> list[str]:
    prompts = list(settings.prompts)
    if settings.prompts_file is not None:
        file = Path(settings.prompts_file).expanduser()
        if not file.is_file() or format_of(file) is None:
            raise UserError(f"suite.prompts_file={file} is no file that can be read: give one of {', '.join(FORMATS)}.")
        prompts += ["".join(document.chunks) for document in read_documents(file, "text", "", lambda count: None)]
    if not prompts:
        raise UserError("suite.prompts is empty and suite.prompts_file null: give a prompt, as in suite.prompts=[def].")
    return prompts


def _context(run: TrainedRun, settings: ContextSettings, machine: Machine, record: EvaluationRecord) -> None:
    data = run.data
    lengths = settings.lengths or [max(2, run.context * share // 4) for share in (1, 2, 4, 8, 16)]
    wanted = settings.tokens or run.config["trainer"]["validation_tokens"]
    tokens = min(wanted, len(data.validation_tokens) - 1)
    mask = run.config["data"]["mask_documents"] if settings.mask_documents is None else settings.mask_documents
    cells: list[dict[str, Any]] = [
        {
            "context": length,
            "stride": settings.stride or max(1, length // 2),
            "tokens": tokens,
            "mask_documents": mask,
            "rope_base": settings.rope_base or run.rope_base,
        }
        for length in sorted(set(lengths))
    ]
    if settings.stride is not None and settings.stride > min(lengths):
        raise UserError(
            f"suite.stride={settings.stride} is longer than the shortest context of {min(lengths)} tokens and would "
            "leave targets out: choose a shorter one, or null for half of each context."
        )
    if tokens < max(lengths):
        announce_once(
            f"the {tokens:,} validation tokens that are scored are fewer than a context of {max(lengths):,}: no target "
            "has as much before it; set suite.tokens or data with more validation text."
        )
    pending = [cell for cell in cells if record.scores(cell) is None]
    with _progress("scoring contexts", len(pending)) as advance:
        for number, cell in enumerate(pending):
            score = score_sliding(
                _model(run, cell["context"], settings.rope_base, machine),
                data,
                context=cell["context"],
                stride=cell["stride"],
                targets=tokens,
                mask_documents=mask,
                batch_tokens=machine.batch_tokens,
                on_targets=lambda done, number=number: advance(number + done / tokens),  # type: ignore[misc]
            )
            sums = f"context-{record.name(cell)}.npz"
            score.save(record.beside(sums))
            figures = {"loss": score.loss, "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
            record.add(cell, {**figures, "by_tokens_seen": loss_by_tokens_seen(score), "sums": sums})
    _show(
        f"{run.path.name}: {tokens:,} validation tokens, trained on contexts of {run.context}",
        ("context", "stride", "loss", "perplexity", "bits per byte"),
        [
            (cell["context"], cell["stride"], scores["loss"], scores["perplexity"], scores["bits_per_byte"])
            for cell, scores in _finished(cells, record)
        ],
    )


def _needle(run: TrainedRun, settings: NeedleSettings, machine: Machine, record: EvaluationRecord) -> None:
    data = run.data
    tokenizer = data.load_tokenizer()
    lengths = sorted(set(settings.lengths or (run.context, 2 * run.context, 4 * run.context)))
    if settings.haystack is None:
        haystack = Haystack.of_validation(data)
    else:
        haystack = Haystack.of_file(Path(settings.haystack).expanduser(), tokenizer)
    options: dict[str, Any] = {"needles": settings.needles, "samples": settings.samples, "seed": settings.seed}
    tasks = [
        NeedleTask(kind, values, haystack=haystack, tokenizer=tokenizer, **options)
        for kind in settings.kinds
        for values in settings.values
    ]
    for task in tasks:
        task.check_length(lengths[0])
    same = {**options, "haystack": haystack.digest, "rope_base": settings.rope_base or run.rope_base}
    cells = {
        task: [
            {"kind": task.kind, "values": task.values, "length": length, "depth": depth, **same}
            for length in lengths
            for depth in settings.depths
        ]
        for task in tasks
    }
    pending = [(task, cell) for task in tasks for cell in cells[task] if record.scores(cell) is None]
    model = _model(run, lengths[-1], settings.rope_base, machine) if pending else None
    with _progress("looking for needles", sum(cell["length"] for _, cell in pending)) as advance:
        done = 0
        for task, cell in pending:
            assert model is not None
            length: int = cell["length"]
            scores = score_samples(
                model,
                [task.sample(length, cell["depth"], index) for index in range(settings.samples)],
                tokenizer,
                vocab_size=data.vocab_size,
                new_tokens=task.new_tokens,
                batch_tokens=machine.batch_tokens,
                on_samples=lambda count, done=done, length=length: advance(  # type: ignore[misc]
                    done + length * count / settings.samples
                ),
            )
            record.add(cell, scores)
            done += length
    for task in tasks:
        found = _finished(cells[task], record)
        _show(
            f"{run.path.name}: {task.kind}, {task.values}, {settings.samples} samples a cell, trained on contexts of "
            f"{run.context}",
            ("length", "depth", "exact", "substring", "log-probability gain"),
            [(c["length"], c["depth"], s["exact"], s["substring"], s["gain"]) for c, s in found],
        )
        _draw_needles(record.beside(f"needle-{task.kind}-{task.values}"), run, found)


def _finished(cells: list[dict[str, Any]], record: EvaluationRecord) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every cell with its scores."""
    return [(cell, scores) for cell in cells if (scores := record.scores(cell)) is not None]


def _draw_needles(path: Path, run: TrainedRun, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    try:
        from dma_lab.evaluation.needle_figure import draw_needles
    except ModuleNotFoundError:
        announce_once("no figure without matplotlib: pip install -e '.[report]' and give the same command again.")
        return
    draw_needles(path, run.path.name, run.context, found)


def _show(title: str, columns: tuple[str, ...], rows: list[tuple[float, ...]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for value in row))
    Console().print(table)


@contextmanager
def _progress(title: str, total: float) -> Iterator[Any]:
    """A bar with its ETA; yields what is told how much of ``total`` is done."""
    with BuildProgress(title) as progress:
        yield lambda done: progress.update(done / total, f"{done:.4g} of {total:.4g}")
