"""What ``evaluate.py`` can do with a run: one function a suite, from settings to finished cells and what is shown."""

from pathlib import Path
from typing import Any

import torch

from dma_lab.data.batches import scored_targets
from dma_lab.data.finding import user_path
from dma_lab.data.readers import FORMATS, format_of, read_documents
from dma_lab.evaluation.checkpoint import TrainedRun, open_run
from dma_lab.evaluation.context import loss_by_tokens_seen, score_sliding
from dma_lab.evaluation.generate import Sampling, generate
from dma_lab.evaluation.needle_suite import look_for_needles
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine, finished, machine_of, open_model, progress_of, show
from dma_lab.evaluation.settings import (
    ContextSettings,
    EvaluateSettings,
    GenerateSettings,
    LocalSettings,
    NeedleSettings,
    PaperSettings,
    Suite,
)
from dma_lab.messages import UserError, announce_once


def evaluate(settings: EvaluateSettings) -> Path:
    """Run the suite on the run; cells finished before are kept. Returns the file of the scores.

    Raises:
        UserError: for anything in the settings, the run or the text that a user can mend.
    """
    run = open_run(Path(settings.checkpoint))
    machine = machine_of(settings)
    suite = settings.suite
    try:
        return _evaluate(run, suite, machine)
    except OSError as error:  # no room, no right, something else by a file's name: wherever it happens
        raise UserError(
            f"suite={suite.name} on {run.path} is stopped by the file system ({error}): mend that and give the same "
            "command again, which goes on."
        ) from error
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise UserError(
            f"batch_tokens={settings.batch_tokens} and the lengths of suite={suite.name} need more memory than is "
            "here: give less of one or the other."
        ) from error


def _evaluate(run: TrainedRun, suite: Suite, machine: Machine) -> Path:
    with EvaluationRecord(run, suite.name, machine.facts()) as record, machine.autocast():
        match suite:
            case GenerateSettings():
                _generate(run, suite, machine, record)
            case ContextSettings():
                _context(run, suite, machine, record)
            case NeedleSettings():
                look_for_needles(run, suite, machine, record)
            case PaperSettings() | LocalSettings():
                _benchmarks(run, suite, machine, record)
        return record.file


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
    model = open_model(run, length, settings.rope_base, machine) if pending else None
    with progress_of("generating", len(pending)) as advance:
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
    for cell, scores in finished(cells, record):
        print(f"{cell['prompt']}{scores['text']}\n")


def _prompts(settings: GenerateSettings) -> list[str]:
    prompts = list(settings.prompts)
    if settings.prompts_file is not None:
        file = user_path(settings.prompts_file, "suite.prompts_file")
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
    tokens = scored_targets(data, wanted)
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
    with progress_of("scoring contexts", len(pending)) as advance:
        for number, cell in enumerate(pending):
            score = score_sliding(
                open_model(run, cell["context"], settings.rope_base, machine),
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
            figures = {name.removeprefix("val_"): value for name, value in score.metrics().items()}
            record.add(cell, {**figures, "by_tokens_seen": loss_by_tokens_seen(score), "sums": sums})
    show(
        f"{run.path.name}: {tokens:,} validation tokens, trained on contexts of {run.context}",
        ("context", "stride", "loss", "perplexity", "bits per byte"),
        [
            (cell["context"], cell["stride"], scores["loss"], scores["perplexity"], scores["bits_per_byte"])
            for cell, scores in finished(cells, record)
        ],
    )


def _benchmarks(
    run: TrainedRun, settings: PaperSettings | LocalSettings, machine: Machine, record: EvaluationRecord
) -> None:
    try:
        from dma_lab.evaluation.benchmarks import run_benchmarks
        from dma_lab.evaluation.hub_tasks import HubTasks
        from dma_lab.evaluation.local_sets import local_benchmarks
    except ModuleNotFoundError as error:
        raise UserError(f"suite={settings.name} needs {error.name}: pip install -e '.[eval]'.") from error
    options: dict[str, Any] = {"limit": settings.limit, "rope_base": settings.rope_base}
    if isinstance(settings, PaperSettings):
        tasks = HubTasks(settings, run)
        run_benchmarks(
            run,
            tasks.benchmarks(),
            tasks.means(),
            machine=machine,
            record=record,
            check=tasks.check_reachable,
            **options,
        )
    else:
        sets = local_benchmarks(settings.path, settings.max_length or run.context)
        run_benchmarks(run, sets, [], machine=machine, record=record, **options)
