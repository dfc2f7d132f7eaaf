"""Verdicts on made-up measurements whose outcome is known, and where the figure draws them."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

from dma_lab.benchmarks.figure import draw_decode, draw_kernels
from dma_lab.benchmarks.goals import TIMES_FASTER, Verdict, judge_decode, judge_kernels, verdict_table

SVG = "{http://www.w3.org/2000/svg}"


def point(N=32768, window=2048, K=16, scores="random", forward=1.0, total=8.0, **ours):
    """Dense attention takes 7 forward and 40 in all: 7 and 5 times what this takes, unless told otherwise."""
    times = {"selection": 0.2, "key_lists": 0.05, "key_order": 0.1, "forward": forward, "total": total, **ours}
    return {
        "N": N,
        "window": window,
        "H": 16,
        "K": K,
        "scores": scores,
        "ours": times,
        "dense": {"cudnn": {"forward": 7.0, "total": 40.0}, "flash": {"forward": 9.0, "total": 39.0 + N}},
        "forward_times_faster": 7.0 / forward,
        "total_times_faster": 40.0 / total,
        "floor": {"forward": 0.5, "total": 4.0},
        "packages": [],
    }


def verdicts_by(words, verdicts):
    return [verdict for verdict in verdicts if words in verdict.what]


@pytest.mark.parametrize(
    ("verdict", "met", "shortfall"),
    [
        (Verdict("speed", 5.0, 5.0, at_least=True), True, 0.0),
        (Verdict("speed", 5.0, 4.0, at_least=True), False, 0.2),
        (Verdict("share", 0.06, 0.06, at_least=False), True, 0.0),
        (Verdict("share", 0.06, 0.09, at_least=False), False, 0.5),
    ],
)
def test_a_goal_is_met_from_its_own_side(verdict, met, shortfall):
    assert verdict.met is met
    assert verdict.shortfall == pytest.approx(shortfall)


def test_speed_is_judged_by_shape_and_shapes_without_a_goal_are_not():
    speeds = verdicts_by("times faster", judge_kernels([point(), point(N=16384), point(N=131072)], None))
    assert [(verdict.goal, verdict.met) for verdict in speeds] == [
        (6.2, True),
        (5.0, True),
        (26.0, False),
        (19.0, False),
    ]
    assert [verdict.figure for verdict in speeds] == pytest.approx([7.0, 5.0, 7.0, 5.0])


def test_index_building_is_selection_lists_and_order():
    (verdict,) = verdicts_by("selection and indices", judge_kernels([point(), point(N=8192, window=1024)], None))
    assert verdict.figure == pytest.approx((0.2 + 0.05 + 0.1) / 8.0)
    assert verdict.met
    (verdict,) = verdicts_by("selection and indices", judge_kernels([point(key_lists=0.2)], None))
    assert not verdict.met


def test_grouped_heads_and_kinds_of_scores_are_held_against_the_like():
    points = [point(), point(K=4, total=8.8), point(scores="sinks", total=16.0), point(scores="drifting", total=12.0)]
    points += [point(N=65536, total=1.0), point(N=65536, K=4, total=0.9)]
    verdicts = judge_kernels(points, None)
    assert [v.figure for v in verdicts_by("16/16's", verdicts)] == pytest.approx([1.1, 0.9])
    assert [v.met for v in verdicts_by("16/16's", verdicts)] == [False, True]
    assert [v.figure for v in verdicts_by("random scores'", verdicts)] == pytest.approx([2.0, 1.5])
    assert [v.met for v in verdicts_by("random scores'", verdicts)] == [False, True]


def test_flex_attention_is_held_against_the_forward_pass_of_its_shape():
    flex = {"N": 32768, "window": 2048, "K": 16, "forward": 18.0}
    points = [point(K=4, forward=0.1), point(forward=1.5), point(N=65536, forward=0.1)]
    (verdict,) = verdicts_by("FlexAttention", judge_kernels(points, flex))
    assert (verdict.figure, verdict.met) == (12.0, True)
    assert not verdicts_by("FlexAttention", judge_kernels(points, flex | {"N": 4096}))
    assert not verdicts_by("FlexAttention", judge_kernels(points, None))


def decode_point(history, both, dense, batch=16):
    return {"batch": batch, "history": history, "both": both, "dense": dense}


def test_decoding_is_judged_where_dense_attention_fits_and_by_its_spread():
    points = [decode_point(4096, 0.9, 0.5), decode_point(131072, 1.0, 9.0), decode_point(524288, 1.1, 44.0)]
    times, spread = judge_decode(points)[:2], judge_decode(points)[2]
    assert [(verdict.figure, verdict.met) for verdict in times] == [(9.0, False), (pytest.approx(40.0), True)]
    assert spread.figure == pytest.approx(0.1)
    (spread,) = judge_decode([decode_point(131072, 1.0, None), decode_point(524288, 1.5, None)])
    assert not spread.met
    # Time per batch, not over batches, is what stays constant.
    assert len(judge_decode([decode_point(4096, 1.0, 1.0), decode_point(4096, 9.0, 1.0, batch=64)])) == 0


def test_the_table_counts_what_is_met():
    table = verdict_table([Verdict("a", 2.0, 3.0, True), Verdict("b", 2.0, 1.0, True)])
    assert "1 of 2 met" in table.title
    assert list(table.columns[3].cells) == ["met", "50.0%"]
    assert list(table.columns[1].cells) == ["≥ 2", "≥ 2"]


def lines_and_words(path):
    """By panel and name the points of each line, in the picture's units, and all texts with their heights."""
    root = ElementTree.parse(path).getroot()
    lines = {}
    for group in root.iter(f"{SVG}g"):
        if (name := group.get("id", "")).startswith("line "):
            _, panel, what = name.split(" ", 2)
            drawn = group.find(f"{SVG}path")
            numbers = [float(number) for number in drawn.get("d").replace("M", " ").replace("L", " ").split()]
            lines[int(panel), what] = list(zip(numbers[::2], numbers[1::2], strict=True)), drawn.get("style")
    words = [(text.text.strip(), float(text.get("y"))) for text in root.iter(f"{SVG}text") if text.text]
    return lines, words


def test_the_figure_draws_ours_dense_and_floor_on_logarithmic_axes(tmp_path):
    points = [point(N=N, total=N / 4096, forward=N / 8192) for N, _ in TIMES_FASTER]
    points += [point(N=N, K=4, total=N / 5000) for N, _ in TIMES_FASTER] + [point(scores="sinks", total=500.0)]
    draw_kernels(points, tmp_path / "figure.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]
    lines, words = lines_and_words(tmp_path / "figure.svg")
    names = ["ours, 16/16 heads", "ours, 16/4 heads", "dense causal, the best", "floor"]
    assert list(lines) == [(panel, name) for panel in (0, 1) for name in names]
    lowest = max(y for word, y in words if word == "4k")
    for panel, name in lines:
        assert all(y < lowest for _, y in lines[panel, name][0])
        assert [y > lowest for word, y in words if word == name] == [True, True]  # below the axes
    ours, dense, floor = (lines[1, name][0] for name in (names[0], *names[2:]))
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in itertools.pairwise(ours)]
    assert slopes == pytest.approx([slopes[0]] * 4, rel=0.01)  # total, proportional to N
    assert len({y for _, y in dense}) == 1  # the best is cuDNN's 40 throughout
    # One decade down the page from 40 to 4.
    decades = [y for word, y in words if word in ("1", "10")][-2:]
    assert floor[0][1] - dense[0][1] == pytest.approx(decades[0] - decades[1], abs=0.2)
    assert ["stroke-dasharray" in style for _, style in lines.values()] == [False, False, False, True] * 2
    assert {"4k", "8k", "32k", "64k", "128k"} <= {word for word, _ in words}


def test_the_figure_draws_other_packages_as_far_as_they_were_measured(tmp_path):
    points = [point(N=N) | {"packages": []} for N, _ in TIMES_FASTER]
    for each in points[:3]:
        own, lifetimes = ({"package": "theirs", "mask": mask, "total": 40.0} for mask in ("its own", "of lifetimes"))
        each["packages"] = [own | {"forward": 7.0}, lifetimes | {"forward": 1.0}]
    points += [point(N=4096, K=4) | {"packages": [own | {"forward": 0.1}]}]  # other heads than the first of ours
    draw_kernels(points, tmp_path / "figure.svg")
    lines, words = lines_and_words(tmp_path / "figure.svg")
    first = [track for (panel, _), (track, _) in lines.items() if panel == 0]
    assert [len(track) for track in first] == [5, 1, 5, 5, 3, 3]
    ours, _, dense, _, own, lifetimes = first
    assert (own, lifetimes) == (dense[:3], ours[:3])
    for name in ("theirs, mask its own", "theirs, mask of lifetimes"):
        assert [word for word, _ in words].count(name) == 2


def test_decoding_is_drawn_a_panel_a_batch_without_what_does_not_fit(tmp_path):
    points = [decode_point(4096, 0.01, 0.02), decode_point(524288, 0.01, 2.0)]
    points += [decode_point(4096, 0.02, 0.08, batch=64), decode_point(524288, 0.02, None, batch=64)]
    draw_decode(points, tmp_path / "figure.svg")
    lines, words = lines_and_words(tmp_path / "figure.svg")
    assert [len(track) for track, _ in lines.values()] == [2, 2, 2, 1]
    ours = lines[0, "ours"][0]
    assert math.isclose(ours[0][1], ours[1][1])
    assert "one token, batch 64, milliseconds" in [word for word, _ in words]
