"""What the kernels are meant to reach, and whether a record of measurements does."""

from typing import Any, NamedTuple

from rich.table import Table

Point = dict[str, Any]

TIMES_FASTER = {  # (tokens, window): forward alone, and total, against the best dense attention
    (4096, 1024): (1.4, 1.2),
    (8192, 1024): (2.8, 2.1),
    (32768, 2048): (6.2, 5.0),
    (65536, 2048): (12.5, 9.5),
    (131072, 2048): (26.0, 19.0),
}
INDEX_SHARE = {(32768, 2048): 0.06}  # selection, key lists and key order, over total
KIND_TO_RANDOM = 1.6  # total with scores of any kind, over total with random ones
GROUPED_TO_UNGROUPED = 1.0  # total with fewer key/value heads than query heads, over total with as many
TIMES_FASTER_THAN_FLEX = {(32768, 2048): 12.0}  # forward, FlexAttention given the same mask
DECODE_TIMES_FASTER = {(16, 131_072): 10.0, (16, 524_288): 40.0}  # (batch, history)
DECODE_SPREAD = 0.10  # of a token's time over the histories, from their mean


class Verdict(NamedTuple):
    """A measured figure and its goal."""

    what: str
    goal: float
    figure: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.figure >= self.goal if self.at_least else self.figure <= self.goal

    @property
    def shortfall(self) -> float:
        """How far from the goal, as a share of it; 0 where it is met."""
        return 0.0 if self.met else abs(self.figure - self.goal) / self.goal


def judge_kernels(points: list[Point], flex: Point | None) -> list[Verdict]:
    """Verdicts on the points of ``bench.py kernels``; ``flex`` holds N, window and FlexAttention's ``forward``.

    Points with no goal are left out. Where shapes are measured twice with random scores, the first counts.
    """
    random: dict[tuple[int, int, int], Point] = {}
    for point in points:
        if point["scores"] == "random":
            random.setdefault((point["N"], point["window"], point["K"]), point)
    verdicts = []
    for (N, window, K), point in random.items():
        name, ours = f"{N:,}, {window:,}, {point['H']}/{K} heads", point["ours"]
        goals = TIMES_FASTER.get((N, window))
        if goals is not None:
            for part, goal in zip(("forward", "total"), goals, strict=True):
                verdicts.append(Verdict(f"{part}, times faster: {name}", goal, point[f"{part}_times_faster"], True))
        if (N, window) in INDEX_SHARE:
            index = ours["selection"] + ours["key_lists"] + ours["key_order"]
            verdicts.append(
                Verdict(
                    f"selection and indices over total: {name}", INDEX_SHARE[N, window], index / ours["total"], False
                )
            )
        ungrouped = random.get((N, window, point["H"]))
        if ungrouped is not None and K < point["H"]:
            ratio = ours["total"] / ungrouped["ours"]["total"]
            verdicts.append(
                Verdict(f"total over {point['H']}/{point['H']}'s: {name}", GROUPED_TO_UNGROUPED, ratio, False)
            )
    for point in points:
        like = random.get((point["N"], point["window"], point["K"]))
        if point["scores"] != "random" and like is not None:
            ratio = point["ours"]["total"] / like["ours"]["total"]
            what = f"total over random scores': {point['scores']}, {point['N']:,}, {point['window']:,}"
            verdicts.append(Verdict(what, KIND_TO_RANDOM, ratio, False))
    if flex is not None and (shape := (flex["N"], flex["window"])) in TIMES_FASTER_THAN_FLEX:
        like = random.get((*shape, flex["K"]))
        if like is not None:
            ratio = flex["forward"] / like["ours"]["forward"]
            what = f"forward, times faster than FlexAttention: {shape[0]:,}, {shape[1]:,}"
            verdicts.append(Verdict(what, TIMES_FASTER_THAN_FLEX[shape], ratio, True))
    return verdicts


def judge_decode(points: list[Point]) -> list[Verdict]:
    """Verdicts on the points of ``bench.py decode``."""
    verdicts = []
    for point in points:
        goal = DECODE_TIMES_FASTER.get((point["batch"], point["history"]))
        if goal is not None and point["dense"] is not None:
            what = f"times faster: batch {point['batch']}, history {point['history']:,}"
            verdicts.append(Verdict(what, goal, point["dense"] / point["both"], True))
    for batch in sorted({point["batch"] for point in points}):
        times = [point["both"] for point in points if point["batch"] == batch]
        if len(times) > 1:
            mean = sum(times) / len(times)
            spread = max(abs(time - mean) for time in times) / mean
            verdicts.append(Verdict(f"spread over histories: batch {batch}", DECODE_SPREAD, spread, False))
    return verdicts


def verdict_table(verdicts: list[Verdict]) -> Table:
    met = sum(verdict.met for verdict in verdicts)
    table = Table(title=f"goals: {met} of {len(verdicts)} met", title_justify="left")
    for column in ("", "goal", "ours", "short by"):
        table.add_column(column, justify="right" if column else "left")
    for verdict in verdicts:
        bound = ("≥" if verdict.at_least else "≤") + f" {verdict.goal:g}"
        table.add_row(
            verdict.what, bound, f"{verdict.figure:.3g}", "met" if verdict.met else f"{verdict.shortfall:.1%}"
        )
    return table
