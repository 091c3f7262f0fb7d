"""The robustness figure: it draws what the records say, and stays readable."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from ccsrp_jax.reporting.figure_style import to_png
from ccsrp_jax.reporting.robustness_figure import robustness_figure
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.stats import wilson_interval

QUICK = [  # name, through, kind, images left of 200, by itself
    ("noise", "own", "noise", 186, 186),
    ("PGD 20", "own", "white box", 150, 152),
    ("APGD-CE 25", "assg", "white box", 132, None),
    ("PGD 10", "relu", "transfer", 131, None),
    ("Square 200", "own", "black box", 130, None),
]
REASONS = ["larger balls seem safer", "more steps break fewer images"]


def record(suite=QUICK, reasons=(), images=200, clean=190, eps=0.1, own=0.7) -> dict:
    """What an assessment records, of a network that keeps so many images."""
    attacks, left = [], clean
    for name, through, kind, now, alone in suite:
        attacks.append(
            {
                "name": name,
                "kind": kind,
                "through": through,
                "attacked": left if alone is None else clean,
                "broken": left - now,
                "accuracy": now / images,
                "alone": None if alone is None else alone / images,
                "gradients": 20 * left,
                "queries": 0,
                "seconds": 1.25,
                "interval": wilson_interval(now / images, images),
            }
        )
        left = now
    shares = {"accuracy": clean / images, "robust_accuracy": left / images}
    number = sum(kind != "noise" for _, _, kind, _, _ in suite)
    plural = "" if number == 1 else "s"
    words = f"robust accuracy {left / images:.3f} under {number} attack{plural}"
    checks = [("never rises with eps", 0.0, 0.02), ("inside ball and box", 1e-8, 1e-6)]
    return {
        "headline": f"unreliable: {'; '.join(reasons)} ({words})" if reasons else words,
        "reliable": not reasons,
        "reasons": list(reasons),
        "eps": eps,
        "norm": "linf",
        "images": images,
        **shares,
        "intervals": {name: wilson_interval(share, images) for name, share in shares.items()},
        "attacks": attacks,
        "gradients": 1000,
        "queries": 30,
        "seconds": 12.0,
        "audit": {
            "images": 128,
            "checks": [
                {"name": name, "passed": True, "figure": figure, "limit": limit, "reason": "-"}
                for name, figure, limit in checks
            ]
            + [
                {"name": f"check {i}", "passed": False, "figure": 0.9, "limit": 0.1, "reason": why}
                for i, why in enumerate(reasons)
            ],
            "eps_curve": [[0.0, 0.95], [eps / 2, 0.8], [eps, 0.7], [2 * eps, 0.3], [1.0, 0.0]],
            "steps_curve": [[1, 0.9], [5, 0.75], [20, 0.7]],
            "width_curve": [["own", own], ["atan:0.5", 0.72], ["atan:2", 0.69]],
        },
        "natural": {"gaussian_noise 3": 0.9, "impulse_noise 3": 0.85},
    }


def panels(figure) -> dict:
    return {ax.get_label(): ax for ax in figure.axes}


def staircases(ax) -> list[tuple[list[float], list[float]]]:
    steps = [line for line in ax.get_lines() if line.get_drawstyle() == "steps-pre"]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in steps]


def markers(ax, marker: str) -> list:
    return [line for line in ax.get_lines() if line.get_marker() == marker]


def test_staircase_falls_through_the_suite_in_its_order():
    ax = panels(robustness_figure({"dense": record()}))["suite"]
    [(shares, heights)] = staircases(ax)
    assert shares == [0.95, 0.93, 0.75, 0.66, 0.655, 0.65]
    ticks, labels = ax.get_yticks(), [label.get_text() for label in ax.get_yticklabels()]
    names = ["noise", "PGD 20", "APGD-CE 25, assg", "PGD 10 from relu", "Square 200"]
    assert labels == ["no attack", *names, "worst case"]
    assert heights == pytest.approx(ticks[:-1])
    bottom, top = ax.get_ylim()
    assert list(ticks) == sorted(ticks) and bottom > top, "the worst case comes last, below"
    [star] = markers(ax, "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0.65, ticks[-1])


def test_intervals_are_those_of_the_record():
    data = record()
    data["attacks"][1]["interval"] = [0.61, 0.83]
    data["intervals"]["robust_accuracy"] = [0.5, 0.77]
    ax = panels(robustness_figure({"dense": data}))["suite"]
    drawn = [tuple(line.get_xdata()) for line in ax.get_lines()]
    assert (0.61, 0.83) in drawn and (0.5, 0.77) in drawn


def test_kinds_differ_by_their_shape_and_networks_by_their_line():
    figure = robustness_figure({"dense": record(), "pruned": record(own=0.6)})
    ax = panels(figure)["suite"]
    filled = [line for line in ax.get_lines() if line.get_markerfacecolor() != "none"]
    heights = dict(zip(ax.get_yticks()[1:-1], (row[2] for row in QUICK), strict=True))
    shapes = {}
    for line in filled:
        near = min(heights, key=lambda y: abs(y - line.get_ydata()[0]))
        if line.get_marker() in "Po^s" and abs(near - line.get_ydata()[0]) < 0.5:
            shapes.setdefault(heights[near], set()).add(line.get_marker())
    assert all(len(found) == 1 for found in shapes.values())
    assert len(set.union(*shapes.values())) == len(shapes) == 4
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend >= shapes.keys()
    dashes = [
        line.get_linestyle() for line in ax.get_lines() if line.get_drawstyle() == "steps-pre"
    ]
    assert len(set(dashes)) == 2


def test_accuracy_alone_is_a_hollow_mark_of_attacks_run_everywhere():
    ax = panels(robustness_figure({"dense": record()}))["suite"]
    marks = [line for line in ax.get_lines() if line.get_marker() in ("P", "o", "^", "s")]
    hollow = [line for line in marks if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata()[0] for line in hollow] == [0.93, 0.76]
    assert [line.get_ydata()[0] for line in hollow] == pytest.approx(ax.get_yticks()[1:3])


def test_networks_with_different_suites_share_the_rows_they_share():
    own = [*QUICK[:4], ("PGD 10", "dense", "transfer", 120, None), (*QUICK[4][:3], 119, None)]
    ax = panels(robustness_figure({"dense": record(), "pruned": record(own)}))["suite"]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[4:7] == ["PGD 10 from relu", "PGD 10 from dense", "Square 200"]
    (dense, above), (pruned, below) = staircases(ax)
    assert dense == [0.95, 0.93, 0.75, 0.66, 0.655, 0.65]
    assert pruned == [0.95, 0.93, 0.75, 0.66, 0.655, 0.6, 0.595]
    shift = below[-1] - above[-1]
    assert shift > 0, "side by side in the row of their last attack"
    assert below[1] - above[1] == pytest.approx(shift)


def test_the_same_attack_twice_keeps_two_rows():
    twice = [*QUICK[:2], ("PGD 20", "own", "white box", 140, None)]
    ax = panels(robustness_figure({"dense": record(twice)}))["suite"]
    [(shares, heights)] = staircases(ax)
    assert shares[1:] == [0.93, 0.75, 0.7] and len(set(heights)) == 4


def test_eps_curve_is_drawn_whole_and_spread():
    ax = panels(robustness_figure({"dense": record(eps=0.01)}))["eps"]
    curve = record(eps=0.01)["audit"]["eps_curve"]
    drawn = [list(zip(*line.get_data(), strict=True)) for line in ax.get_lines()]
    assert [tuple(point) for point in curve] in drawn
    assert any(list(line.get_xdata()) == [0.01, 0.01] for line in ax.get_lines()), "suite's eps"
    places = ax.transAxes.inverted().transform(
        ax.transData.transform([(eps, 0.0) for eps, _ in curve])
    )[:, 0]
    assert np.diff(places).min() > 0.08, "radii far below 1 do not fall together"
    assert {"0", "0.01", "1"} <= {label.get_text() for label in ax.get_xticklabels()}


def test_gradients_of_other_widths_are_compared_where_there_are_any():
    ax = panels(robustness_figure({"dense": record(), "pruned": record(own=0.6)}))["width"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["own", "atan:0.5", "atan:2"]
    points = sorted(line.get_xdata()[0] for line in markers(ax, "o"))
    assert points == [0.6, 0.69, 0.69, 0.7, 0.72, 0.72]
    alone = record()
    alone["audit"]["width_curve"] = [["own", 0.7]]
    assert "width" not in panels(robustness_figure({"mine": alone}))


def texts_of(figure) -> list:
    found = [*figure.texts]
    for ax in figure.axes:
        found += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label, ax._left_title]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            found += [label for place, label in ticks if low <= place <= high]
    found += [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in found if text.get_visible() and text.get_text()]


def test_unreliable_figure_is_marked_wherever_it_stands():
    figure = robustness_figure({"dense": record(), "pruned": record(reasons=REASONS)})
    words = [" ".join(text.get_text().split()) for text in figure.texts]
    assert not any("unreliable" in text for text in words if text.startswith("dense"))
    [headline] = [text for text in figure.texts if text.get_text().startswith("pruned")]
    assert all(reason in " ".join(headline.get_text().split()) for reason in REASONS)
    assert headline.get_weight() == "bold"
    ax = panels(figure)["suite"]
    assert sorted(text.get_text() for text in ax.texts if "0.650" in text.get_text()) == [
        "0.650",
        "0.650 unreliable",
    ]
    dense, pruned = markers(ax, "*")
    white = (1, 1, 1)
    assert to_rgb(dense.get_markerfacecolor()) != white
    assert to_rgb(pruned.get_markerfacecolor()) == white


def long_suite(count: int) -> list:
    name = "an attack of one's own whose name is rather long"
    rows = [(f"PGD {i}", f"triangle:{i}", "white box", 150 - i, None) for i in range(count - 3)]
    ends = [(name, "another_network", "transfer", 100, None)] * 2
    return [QUICK[0], *rows, *ends]


CASES = {
    "one network, 1 attack": {"mine": record(QUICK[:1])},
    "two, 5 attacks": {"dense": record(), "pruned": record(reasons=REASONS)},
    "two, 25": {"dense": record(long_suite(25), eps=8 / 255), "pruned": record(long_suite(25))},
    "one, 40": {"mine": record(long_suite(40), reasons=REASONS * 3)},
    "four": {f"number {i}": record(clean=190 + i, reasons=REASONS[:i]) for i in range(4)},
    "nothing broken": {
        "mine": record([(*row[:3], 20, 20) for row in QUICK], REASONS, images=20, clean=20)
    },
    "everything broken": {"mine": record([("PGD 20", "own", "white box", 0, 0)])},
}


@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps_another_or_leaves_the_figure(case):
    figure = robustness_figure(CASES[case])
    FigureCanvasAgg(figure).draw()
    texts = texts_of(figure)
    boxes = [text.get_window_extent() for text in texts]
    width, height = figure.bbox.size
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1
        assert inside, text.get_text()
    for (a, first), (b, second) in combinations(zip(texts, boxes, strict=True), 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        along = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert across <= 1 or along <= 1, (a.get_text(), b.get_text())


def test_names_are_text_and_not_formulas():
    suite = [("$\\frac$ attack", "$x_", "white box", 100, None)]
    assert to_png(robustness_figure({"$x_": record(suite, ["$y_"])})).startswith(b"\x89PNG")


def test_no_network_and_too_many_are_refused():
    for count in (0, 5):
        with pytest.raises(InputError, match=f"{count} networks"):
            robustness_figure({str(i): record() for i in range(count)})
