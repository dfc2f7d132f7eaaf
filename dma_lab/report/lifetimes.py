"""How long keys live under DMA: a table of the heads' kinds, and histograms."""

from collections import Counter
from collections.abc import Callable, Sequence

from dma_lab.evaluation.lifetimes import KINDS, OBSERVED, Lifetimes, run_lifetimes
from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.document import Block, Heatmap, Notice, Section, Table
from dma_lab.run_summary import LIFETIMES

_SHOWN_LIFETIMES = 3
_TERMS = (
    "The lifetime of key j is expiry − j, the number of queries that attend to it. A key is observed when its document "
    "goes on for at least 1.5 W queries from it (W: the window); a key survives when it lives that long. A head is a "
    "window when at least 90 % of its observed keys live 0.9 to 1.1 W; else a long memory when at least 10 % of its "
    "observed keys beyond the first 4 of their document survive; else a sink when at least 90 % of those first 4 do; "
    "else mixed."
)


def lifetimes_section(finished: Sequence[Run], progress: Callable[[str], None]) -> Section:
    own = [run for run in finished if run.attention == "dma"]
    if not own:
        return Section("Key lifetimes", ["No DMA run is finished here, so there are no lifetimes to show."])
    blocks: list[Block] = [_TERMS]
    measured: list[tuple[Run, Lifetimes]] = []
    kept = [run for run in own if any((run.path / file).exists() for file in ("checkpoints/last.ckpt", LIFETIMES))]
    if len(kept) < len(own):
        blocks.append(Notice(f"No lifetimes of {len(own) - len(kept)} of {len(own)} runs: their weights are not here."))
    for run in kept:
        progress(f"lifetimes of {run.name}")
        try:
            measured.append((run, run_lifetimes(run.path)))
        except UserError as error:
            blocks.append(Notice(f"No lifetimes of {run.name}: {error}"))
    if measured:
        blocks.append(_kinds(measured))
    measured.sort(key=lambda pair: -pair[0].summary.flops)
    for number, (run, lifetimes) in enumerate(measured[:_SHOWN_LIFETIMES], 1):
        blocks.append(lifetime_histograms(f"lifetimes-{number}", run.label, lifetimes, _by_chance(run, lifetimes)))
    if len(measured) > _SHOWN_LIFETIMES:
        blocks.append(f"Histograms are shown of the {_SHOWN_LIFETIMES} runs of most compute.")
    return Section("Key lifetimes", blocks)


def _kinds(measured: Sequence[tuple[Run, Lifetimes]]) -> Table:
    rows = []
    settings = any(run.setting for run, _ in measured)
    for run, lifetimes in measured:
        counts = Counter(kind for layer in lifetimes.kinds() for kind in layer)
        heads = counts.total()
        cells = [f"{counts[kind] / heads:.0%}" for kind in (*KINDS, "undecided")]
        survive = lifetimes.histogram()[1][..., -1].mean()
        cells += [
            f"{share:.0%}" if counts["undecided"] < heads else "-" for share in (survive, _by_chance(run, lifetimes))
        ]
        place = [run.rung, *([run.setting] if settings else []), f"{run.summary.tokens:,}", f"{run.summary.seed}"]
        rows.append((run.backend, *place, f"{lifetimes.window}", f"{heads}", *cells))
    return Table(
        "Share of a run's key/value heads, over all layers. Undecided: no key of the batch can be observed. Survive: "
        "share of all observed keys; by chance: what it would be were scores in random order.",
        (
            *("attention", "rung", *(["setting"] if settings else []), "tokens", "seed", "W", "heads"),
            *(*KINDS, "undecided", "survive", "by chance"),
        ),
        rows,
        frozenset(("attention", "rung", "setting")),
        title="Kinds of heads",
        unit="a row is one training; shares are over its heads, and over the keys of one validation batch",
    )


def _by_chance(run: Run, lifetimes: Lifetimes) -> float:
    options = run.config.attention
    return lifetimes.surviving_by_chance(sinks=options.sinks, recent=options.recent)


def lifetime_histograms(slug: str, run: str, lifetimes: Lifetimes, by_chance: float) -> Heatmap:
    """A row for each layer and key/value head: the share of its keys by lifetime.

    ``by_chance`` is ``Lifetimes.surviving_by_chance`` with the run's own options.
    """
    edges, shares = lifetimes.histogram()
    kinds = lifetimes.kinds()
    layers, heads = shares.shape[:2]
    return Heatmap(
        slug,
        f"Lifetimes: {run}",
        f"Window W = {lifetimes.window} of a context of {lifetimes.expiry.shape[-1]}; "
        f"{int(lifetimes.observed.sum()):,} observed keys per head. Under a sliding window every row has one dark cell "
        f"at 1; the last column holds the keys that live {OBSERVED:g} W or longer: were scores in random order, "
        f"{by_chance:.0%} of them.",
        "lifetime of a key, expiry − j, in windows",
        "layer.head",
        [*edges[:-1], 1.1 * OBSERVED],
        {0: "0", 0.5: "0.5", 1: "1", 1.05 * OBSERVED: f"≥ {OBSERVED:g}"},
        [f"{layer}.{head} {kinds[layer][head]}" for layer in range(layers) for head in range(heads)],
        [list(shares[layer, head]) for layer in range(layers) for head in range(heads)],
        unit="one training; shares are over the keys of one validation batch",
    )
