"""Robustness figure: accuracy of one or more networks under attacks.

It shows robustness records, as `robustness.evaluation.Assessment.record` returns: on the left the
attacks of the suite, on the right the sweeps of the audit.
"""

import textwrap
from collections import Counter
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ccsrp_jax.reporting.figure_style import (
    BLUE,
    FRAME,
    GREEN,
    GREY,
    GRID,
    HOLLOW_STAR,
    INK,
    LEGEND,
    STAR,
    VERMILION,
    Point,
    annotate,
    set_share_limits,
    spaced_labels,
    style_axes,
)
from ccsrp_jax.reporting.run_summary import Row, conclusion, format_number, number
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.stats import wilson_interval

# Networks differ by color and by line style, kinds of attacks by marker.
COLORS = (BLUE, VERMILION, GREEN, INK)
DASHES = ("-", "--", "-.", ":")
MARKERS = {"noise": "P", "white box": "o", "transfer": "^", "black box": "s", "seeded": "D"}
ALONE: dict[str, Any] = {
    "linestyle": "none",
    "markersize": 8,
    "markerfacecolor": "none",
    "markeredgewidth": 0.9,
}
RULE: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 0.8, "zorder": 0}
# Inches: height of a row of attacks and of a line of the header; least height of the panels.
ROW_HEIGHT, HEADER_LINE, MIN_HEIGHT = 0.19, 0.165, 4.4
# Characters of regular and of bold text across the figure, and of an attack's name.
WIDTH, BOLD_WIDTH, NAME_WIDTH = 104, 88, 26
ROW_SHIFT, END_SHIFT, WIDTH_SHIFT = 0.34, 0.85, 0.26  # between networks, in rows


class AttackKey(NamedTuple):
    """Identifies an attack in the records of several networks."""

    kind: str
    name: str
    through: str  # the gradient source
    repetition: int  # number of equal attacks before it in the suite


class Rows(NamedTuple):
    """The rows of the panel of the suite: no attack, the attacks, and the worst case."""

    keys: list[AttackKey]
    labels: list[str]
    borders: list[float]  # above each row, and below the last

    @property
    def centers(self) -> list[float]:
        return [(above + below) / 2 for above, below in pairwise(self.borders)]


def robustness_figure(records: dict[str, Row]) -> Figure:
    """Accuracy after each attack of a suite, against eps, and with other surrogate gradients.

    Args:
      records: robustness records by network name, at most four. Their suites may differ, for
        instance by a transfer attack from one network to another.

    Raises:
      InputError: no record, or more than four.
    """
    if not 1 <= len(records) <= len(COLORS):
        raise InputError(
            f"{len(records)} networks do not fit into the figure: give records of 1 to "
            f"{len(COLORS)}."
        )
    attacks = {name: attacks_by_key(record) for name, record in records.items()}
    rows = suite_rows(attacks)
    headlines = {name: _headline(name, record) for name, record in records.items()}
    header = 0.5 + HEADER_LINE * sum(text.count("\n") + 1 for text in headlines.values())
    body = max(MIN_HEIGHT, ROW_HEIGHT * rows.borders[-1] + 0.9)
    height = header + body
    figure = Figure(figsize=(7, height), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, 0, 1, 1 - header / height), wspace=0.06)
    has_widths = tries_widths(records)
    axes = _panels(figure, ["eps", "width"] if has_widths else ["eps"], body)
    plot_suite(axes["suite"], records, attacks, rows)
    plot_eps(axes["eps"], records)
    if has_widths:
        plot_widths(axes["width"], records)
    _plot_header(figure, records, headlines)
    handles = _legend_handles(attacks, rows.keys)
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - (header - 0.42) / height),
        ncols=len(handles),
        handletextpad=0.2,
        **LEGEND,
    )
    return figure


def tries_widths(records: dict[str, Row]) -> bool:
    """Whether an audit tried further surrogate gradients."""
    return any(len(record["audit"]["width_curve"]) > 1 for record in records.values())


def attacks_by_key(record: Row) -> dict[AttackKey, Row]:
    """The attacks of a suite, in its order."""
    seen: Counter[tuple[str, str, str]] = Counter()
    attacks = {}
    for row in record["attacks"]:
        same = (row["kind"], row["name"], row["through"])
        attacks[AttackKey(*same, seen[same])] = row
        seen[same] += 1
    return attacks


def suite_rows(attacks: dict[str, dict[AttackKey, Row]]) -> Rows:
    """Rows for the attacks on all networks; the first and the last have room for numbers."""
    keys = _merged([list(own) for own in attacks.values()])
    labels = ["no attack", *map(_label, keys), "worst case"]
    heights = [1 + 0.75 * label.count("\n") + 0.12 * (len(attacks) - 1) for label in labels]
    heights[0] = heights[-1] = 0.4 + END_SHIFT * len(attacks)
    return Rows(keys, labels, [0.0, *accumulate(heights)])


def _merged(suites: list[list[AttackKey]]) -> list[AttackKey]:
    """All attacks in the order of the first suite; others follow the attack that precedes them."""
    merged: list[AttackKey] = []
    for suite in suites:
        place = 0
        for key in suite:
            if key not in merged:
                merged.insert(place, key)
            place = merged.index(key) + 1
    return merged


def _label(key: AttackKey) -> str:
    through = f" from {key.through}" if key.kind == "transfer" else f", {key.through}"
    words = key.name + ("" if key.through == "own" else through)
    return "\n".join(textwrap.wrap(words, NAME_WIDTH, break_on_hyphens=False))


def _headline(name: str, record: Row) -> str:
    width = WIDTH if record["reliable"] else BOLD_WIDTH
    return "\n".join(textwrap.wrap(f"{name}: {record['headline']}", width))


def _panels(figure: Figure, right: list[str], height: float) -> dict[str, Axes]:
    """A tall panel on the left, and smaller ones on the right with any free space below them."""
    heights = [min(height / len(right), 2.7)] * len(right)
    if (blank := height - sum(heights)) > 0.5:
        right, heights = [*right, "."], [*heights, blank]
    mosaic: Any = [["suite", name] for name in right]
    return figure.subplot_mosaic(mosaic, width_ratios=(3, 2), height_ratios=heights)


def _plot_header(figure: Figure, records: dict[str, Row], headlines: dict[str, str]) -> None:
    """The headlines, each with the line style of its network."""
    height = figure.get_figheight()
    y = 1 - 0.1 / height
    for (name, text), color, dash in zip(headlines.items(), COLORS, DASHES, strict=False):
        middle = y - 0.5 * HEADER_LINE / height
        line = Line2D([0.015, 0.055], [middle] * 2, color=color, linestyle=dash, linewidth=1.6)
        figure.add_artist(line)
        weight = "normal" if records[name]["reliable"] else "bold"
        font: dict[str, Any] = {"fontsize": 8.5, "color": INK, "linespacing": 1.2}
        figure.text(0.068, y, text, va="top", parse_math=False, weight=weight, **font)
        y -= HEADER_LINE * (text.count("\n") + 1) / height


def _legend_handles(
    attacks: dict[str, dict[AttackKey, Row]], keys: list[AttackKey]
) -> list[Line2D]:
    handles = [
        Line2D([], [], color=GREY, marker=marker, linestyle="none", markersize=5, label=kind)
        for kind, marker in MARKERS.items()
        if any(key.kind == kind for key in keys)
    ]
    if any(row["alone"] is not None for own in attacks.values() for row in own.values()):
        handles.append(Line2D([], [], color=GREY, marker="o", **ALONE, label="that attack alone"))
    return [*handles, Line2D([], [], **STAR, label="worst case")]


def plot_suite(
    ax: Axes, records: dict[str, Row], attacks: dict[str, dict[AttackKey, Row]], rows: Rows
) -> None:
    """Accuracy after each attack and all before it, with 95 % intervals, for each network."""
    style_axes(ax, "Accuracy after each attack")
    _grid_along_x(ax)
    limits = _accuracy_limits(records)
    for i, (name, color, dash) in enumerate(zip(records, COLORS, DASHES, strict=False)):
        offset = i - (len(records) - 1) / 2
        ends = [rows.centers[end] + offset * END_SHIFT for end in (0, -1)]
        stairs = [(number(records[name]["accuracy"]), ends[0])]
        stairs += _plot_attacks(ax, attacks[name], rows, offset * ROW_SHIFT, color)
        style: dict[str, Any] = {"linestyle": dash, "linewidth": 1.1, "alpha": 0.6, "zorder": 2}
        x, y = zip(*stairs, strict=True)
        ax.plot(x, y, color=color, drawstyle="steps-pre", **style)
        _plot_ends(ax, records[name], ends, limits, color)
    kinds = ["", *(key.kind for key in rows.keys), "worst case"]
    for border, (before, after) in zip(rows.borders[1:-1], pairwise(kinds), strict=True):
        if before != after:
            ax.axhline(border, **RULE)
    set_share_limits(ax, "x", limits)
    ax.xaxis.set_major_formatter("{x:g}")
    images = dict.fromkeys(format_number(record["images"], ",") for record in records.values())
    ax.set_xlabel(f"accuracy, {', '.join(images)} images", color=INK, fontsize=9)
    ax.set_ylim(rows.borders[-1], 0)
    ax.set_yticks(rows.centers, rows.labels, color=INK, parse_math=False, linespacing=1.1)
    ax.tick_params(axis="y", length=0)


def _plot_attacks(
    ax: Axes, attacks: dict[AttackKey, Row], rows: Rows, shift: float, color: str
) -> list[Point]:
    """Draws the attacks on a network; returns the points of its staircase."""
    stairs: list[Point] = []
    for key, center in zip(rows.keys, rows.centers[1:-1], strict=True):
        if key not in attacks:
            continue
        row, y = attacks[key], center + shift
        stairs.append((number(row["accuracy"]), y))
        style: dict[str, Any] = {"color": color, "zorder": 3}
        marker: dict[str, Any] = {"marker": MARKERS[key.kind], "linestyle": "none", **style}
        ax.plot(row["interval"], [y, y], linewidth=0.9, **style)
        ax.plot(*stairs[-1], markersize=4.5, markeredgewidth=0, **marker)
        if row["alone"] is not None:
            ax.plot(number(row["alone"]), y, **marker | ALONE)
    return stairs


def _plot_ends(ax: Axes, record: Row, ends: list[float], limits: Point, color: str) -> None:
    """The accuracies without an attack and in the worst case, as marks and as numbers."""
    star = STAR if record["reliable"] else HOLLOW_STAR | {"markeredgecolor": color}
    marks: list[dict[str, Any]] = [{"marker": "|", "markersize": 8}, star]
    style: dict[str, Any] = {"color": color, "zorder": 3}
    for key, y, mark in zip(("accuracy", "robust_accuracy"), ends, marks, strict=True):
        share, interval = number(record[key]), record["intervals"][key]
        ax.plot(interval, [y, y], linewidth=0.9, **style)
        ax.plot(share, y, **mark | style)
        text = f"{share:.3f}"
        if key == "robust_accuracy" and not record["reliable"]:
            text += f" {conclusion(record)}"
        on_left = interval[0] - limits[0] > limits[1] - interval[1]
        place, offset = (interval[0], -5) if on_left else (interval[1], 5)
        side: dict[str, Any] = {"ha": "right" if on_left else "left", "va": "center_baseline"}
        annotate(ax, text, (place, y), (offset, 0), color=color, **side)


def _accuracy_limits(records: dict[str, Row]) -> Point:
    """A range of accuracies of at least 0.2, with room for the text beside the stars."""
    ends = [end for record in records.values() for end in record["intervals"].values()]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    low = min(low, high - 0.2)
    worst = [record["intervals"]["robust_accuracy"] for record in records.values()]
    room = 0.25 if all(record["reliable"] for record in records.values()) else 0.48
    if high - max(end[1] for end in worst) < room * (high - low):
        low = min(low, (min(end[0] for end in worst) - room * high) / (1 - room))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def plot_eps(ax: Axes, records: dict[str, Row]) -> None:
    """Accuracy against eps, on a scale that is logarithmic from the smallest radius on."""
    style_axes(ax, "Accuracy against eps")
    curves = [record["audit"]["eps_curve"] for record in records.values()]
    radii = sorted({eps for curve in curves for eps, _ in curve})
    marked = sorted({number(record["eps"]) for record in records.values()})
    ax.set_xscale("symlog", linthresh=min(eps for eps in radii if eps), linscale=0.4)
    for record, color, dash in zip(records.values(), COLORS, DASHES, strict=False):
        eps, shares = zip(*record["audit"]["eps_curve"], strict=True)
        ends = [wilson_interval(share, record["audit"]["images"]) for share in shares]
        low, high = np.transpose(ends)
        ax.fill_between(eps, low, high, color=color, alpha=0.12, linewidth=0)
        style: dict[str, Any] = {"linewidth": 1.4, "marker": "o", "markersize": 3.5}
        ax.plot(eps, shares, color=color, linestyle=dash, **style)
    for eps in marked:
        ax.axvline(eps, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
    text = "suite's eps" if len(marked) == 1 else "suites' eps"
    place: dict[str, Any] = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "color": GREY}
    annotate(ax, text, (marked[0], 1), (0, 3), **place)
    scaled = ax.xaxis.get_transform().transform(radii).tolist()
    order = [0, len(radii) - 1, *(radii.index(eps) for eps in marked if eps in radii)]
    order += range(len(radii) - 1, 0, -1)
    shown = spaced_labels(scaled, 0.22 * (max(scaled) - min(scaled)), order)
    ax.set_xticks([radii[i] for i in shown], [f"{radii[i]:.3g}" for i in shown])
    ax.set_xticks(radii, minor=True)
    ax.tick_params(which="minor", color=FRAME)
    ax.set_xlabel(f"eps, log scale\n{_audit_text(records)}", color=INK, fontsize=9)
    ax.set_ylim(-0.03, 1.03)


def plot_widths(ax: Axes, records: dict[str, Row]) -> None:
    """Accuracy under one attack with several surrogate gradients."""
    style_axes(ax, "Surrogate gradients")
    _grid_along_x(ax)
    curves = [dict(record["audit"]["width_curve"]) for record in records.values()]
    names = list(dict.fromkeys(name for curve in curves for name in curve))
    middle = (len(records) - 1) / 2
    for i, (curve, record) in enumerate(zip(curves, records.values(), strict=True)):
        for place, name in enumerate(names):
            if name not in curve:
                continue
            y = place + (i - middle) * WIDTH_SHIFT
            ends = wilson_interval(curve[name], record["audit"]["images"])
            ax.plot(ends, [y, y], color=COLORS[i], linewidth=0.9)
            ax.plot(curve[name], y, color=COLORS[i], marker="o", markersize=4)
    ax.set_xlim(-0.03, 1.03)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), names, color=INK, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"accuracy\n{_audit_text(records)}", color=INK, fontsize=9)


def _grid_along_x(ax: Axes) -> None:
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color=GRID, linewidth=0.8)


def _audit_text(records: dict[str, Row]) -> str:
    images = dict.fromkeys(format_number(r["audit"]["images"], ",") for r in records.values())
    return f"PGD 10, {', '.join(images)} images"
