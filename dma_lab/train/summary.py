"""What a run came to, for a reader."""

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from dma_lab.run_summary import Known, Summary

_DEFINING = ("study", "model", "attention", "match", "seed", "steps", "tokens", "data_fingerprint", "precision")


def of_another_run(summary: Summary, known: Known) -> list[str]:
    """In what a summary differs from what is ``known`` of a run before it is trained."""
    return [name for name in _DEFINING if getattr(summary, name) != getattr(known, name)]


@rank_zero_only
def print_summary(summary: Summary) -> None:
    """A finished run's figures as a table on stdout."""
    assert summary.seconds is not None, "it is finished"
    assert summary.peak_memory_bytes is not None, "it is finished"
    table = Table(
        title=f"{summary.attention} at rung {summary.rung}, seed {summary.seed}",
        show_header=False,
        title_justify="left",
    )
    if summary.val_accuracy is not None:
        by_pairs, by_gap = summary.val_accuracy_by_pairs or {}, summary.val_accuracy_by_gap or {}
        score = [("accuracy", f"{summary.val_accuracy:.4f}")]
        score += [(f"  at {pairs} pairs", f"{share:.4f}") for pairs, share in by_pairs.items()]
        score += [(f"  at a gap of {gap}", f"{share:.4f}") for gap, share in by_gap.items()]
    elif summary.tokenizer_loses is not None:
        score = [("bits per byte", f"none: the tokenizer loses {summary.tokenizer_loses}")]
    else:
        with_ends, text = summary.val_bits_per_byte, summary.val_text_bits_per_byte
        score = [("bits per byte", f"{with_ends:.4f} with the documents' ends, {text:.4f} of the text alone")]
    tuned = []
    if tuning := summary.tuning:
        options = "".join(f", {name}={value}" for name, value in tuning.options.items())
        tuned = [("tuned", f"{tuning.multiplier:.3g} times the recipe's learning rate{options}")]
    for name, value in (
        *tuned,
        ("validation loss", f"{summary.val_loss:.4f} nats per token"),
        ("unigram entropy", f"{summary.unigram_entropy:.4f} nats per token (what knowing frequencies alone gives)"),
        ("perplexity", f"{summary.val_perplexity:.2f}"),
        *score,
        ("parameters", f"{summary.params_non_embedding:,} non-embedding, {summary.params_total:,} in all"),
        ("tokens", f"{summary.tokens:,}"),
        ("FLOP", f"{summary.flops_executed:.3g} executed, {summary.flops:.3g} dense-equivalent"),
        ("speed", _speed(summary)),
        ("seconds", ", ".join(f"{seconds:,.1f} {part}" for part, seconds in summary.seconds.items())),
        ("memory", f"{summary.peak_memory_bytes / 2**20:,.0f} MiB at most"),
        ("run", summary.run),
    ):
        table.add_row(name, value)
    Console().print(table)


def _speed(summary: Summary) -> str:
    if summary.tokens_per_second is None:
        return "no step was taken after compiling"
    speed = f"{summary.tokens_per_second:,.0f} tokens/s once compiled"
    if summary.mfu_executed is None:
        return speed
    executed, dense = summary.mfu_executed, summary.mfu_dense_equivalent
    return f"{speed}, MFU {executed:.1%} executed, {dense:.1%} dense-equivalent"
