"""Figures of one pruning run: trade-off, kept filters, training curves.

What a run did not record shows as a gap.
"""

import math
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from ccsrp_jax.reporting.figure_style import (
    BLUE,
    GREEN,
    GREY,
    HOLLOW,
    INK,
    STAR,
    VERMILION,
    annotate,
    style_axes,
)
from ccsrp_jax.reporting.run_summary import (
    DASH,
    Row,
    assessments,
    attack_text,
    format_number,
    macs_left,
    number,
    ratio,
    round_name,
    search_attack,
    test_attack,
)
from ccsrp_jax.utils.stats import wilson_interval

# Light throughout, so that dark numbers stay readable on every shade.
KEPT = LinearSegmentedColormap.from_list("kept", ["#FFFFFF", "#5AA5D2"])


SHARED = {"color": GREEN, "linestyle": "--", "linewidth": 1.2, "marker": "D", "markersize": 3.5}


RING = {
    "color": INK,
    "linestyle": "none",
    "marker": "o",
    "markersize": 12,
    "markerfacecolor": "none",
    "markeredgewidth": 1.3,
    "zorder": 4,
}


def tradeoff_figure(archive: list[Row], summary: Row) -> Figure:
    """Accuracy and robust accuracy against the MACs left, on search and on test images.

    `archive` is in the order of its rounds, the dense network first. Stars stand beside
    their MACs rather than at them, so that they hide no point of the line. Robust ones are
    hollow where the audit failed.
    """
    left = macs_left(archive)
    dense, pruned = summary.get("dense") or {}, summary.get("pruned") or {}
    records = assessments(summary)
    doubted = {name for name, record in records.items() if not record["reliable"]}
    stars = [("dense", "dense", 100.0, -9.0)]
    if summary.get("chosen_round") != 0:
        stars.append(("chosen", "pruned", 100 * ratio(pruned, dense, "macs"), 9.0))
    low, high = _range(left + [x for _, _, x, _ in stars])
    low = min(low, high - 10)
    margin = 0.1 * (high - low)  # room for what is written under the stars
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    axes[1].set_xticks([x for x in _ticks(low, high) if 0 <= x <= 100])
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].set_xlim(high + margin, low - margin)  # pruning goes rightwards
    axes[1].set_xlabel("MACs left (% of the dense network's)", color=INK, fontsize=9)
    searched, tested = attack_text(search_attack(summary)), attack_text(test_attack(summary))
    title = f"Robust accuracy: {searched}"
    if records:
        title = f"Robust accuracy; line: {searched};\nstars: worst case of the {tested}"
    names = ("Accuracy", title)
    keys = ("accuracy", "robust_accuracy")
    for ax, key, name, colour in zip(axes, keys, names, (BLUE, VERMILION), strict=True):
        style_axes(ax, name)
        heights = [number(row.get(key)) for row in archive]
        ax.plot(left, heights, color=colour, linewidth=1.6, marker="o", markersize=5)
        for row, x in zip(archive, left, strict=True):
            ax.axvline(x, color="#EBEBEB", linewidth=0.8, zorder=0)
            if row.get("chosen"):
                ax.plot(x, number(row.get(key)), **RING)
        if key == "robust_accuracy":
            shared = [number(row.get("shared_accuracy")) for row in archive]
            ax.plot(left, shared, **SHARED)
            heights += shared
        for label, name, x, shift in stars:
            share = (summary.get(name) or {}).get(key)
            doubt = key == "robust_accuracy" and name in doubted
            heights += _plot_star(ax, label, x, share, summary, shift, doubt)
        _limit(ax, heights)
    for i in _with_room(archive, left, 0.05 * (high - low)):
        place = {"xycoords": axes[0].get_xaxis_transform(), "ha": "center", "color": GREY}
        annotate(axes[0], round_name(archive[i]), (left[i], 1), (0, 3), **place)
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=5, label="search images, by round"),
        Line2D([], [], **RING, label="chosen"),
        Line2D([], [], **STAR, label="test images, 95 % interval"),
    ]
    if any(row.get("shared_accuracy") is not None for row in archive):
        handles.append(Line2D([], [], **SHARED, label="shared set, before tuning"))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        columnspacing=1.2,
        handletextpad=0.5,
    )
    return figure


def _plot_star(
    ax: Axes, label: str, x: float, share: Any, summary: Row, shift: float, doubted: bool
) -> list[float]:
    """A network's test result `shift` points beside x; returns the heights that it needs."""
    share = number(share)
    if not math.isfinite(x + share):
        return []
    low, high = wilson_interval(share, number(summary.get("test_images")))
    aside = ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans)
    ax.plot([x, x], [low, high], color=INK, linewidth=1, transform=aside)
    ax.plot([x, x], [-1, share], color=GREY, linewidth=0.7, linestyle=":", transform=aside)
    ax.plot(x, share, **HOLLOW if doubted else STAR, transform=aside)
    place = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "color": INK}
    words = f"{label}, test\n{share:.3f}" + " unreliable" * doubted
    annotate(ax, words, (x, 0), (shift, 3), **place)  # under every point
    return [share, low, high]


def filters_figure(archive: list[Row]) -> Figure:
    """Filters that each group keeps, a column a trade-off point and a row a group."""
    widths: dict[str, Any] = {}
    for point in archive:
        widths |= dict.fromkeys(point.get("kept") or {}) | (point.get("filters") or {})
    left, columns, rows = macs_left(archive), len(archive), max(len(widths), 1)
    cell, row_height, margin = min(5.6 / columns, 0.8), 0.34, 1.25  # inches
    height = rows * row_height + 0.9
    figure = Figure(figsize=(7, height))
    box = (margin / 7, 0.3 / height, columns * cell / 7, rows * row_height / height)
    ax = figure.add_axes(box, xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    digits = max((len(str(width)) for width in widths.values()), default=1)
    font = min(8.0, 72 * cell / (0.65 * digits + 0.4))
    for i, point in enumerate(archive):
        for j, name in enumerate(widths):
            share = ratio(point.get("kept") or {}, point.get("filters") or {}, name)
            colour = KEPT(share) if math.isfinite(share) else "white"
            ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=colour, edgecolor="w"))
            if font > 5:  # smaller numbers could not be read
                kept = format_number((point.get("kept") or {}).get(name), ".0f")
                centre = {"ha": "center", "va": "center_baseline"}
                ax.text(i, j, kept, fontsize=font, color=INK, **centre)
        if point.get("chosen"):
            frame = {"fill": False, "edgecolor": INK, "linewidth": 1.5, "clip_on": False}
            ax.add_patch(Rectangle((i - 0.5, -0.5), 1, rows, zorder=3, **frame))
    labels = [f"{name} ({DASH if width is None else width})" for name, width in widths.items()]
    ax.set_yticks(range(len(labels)), labels, fontsize=8.5, color=INK, parse_math=False)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    above = {"ha": "center", "color": INK}
    for i in _with_room(archive, [float(i) for i in range(columns)], 0.42 / cell):
        annotate(ax, round_name(archive[i]), (i, -0.5), (0, 5), **above)
        percent = format_number(left[i], ".0f")
        annotate(ax, percent, (i, rows - 0.5), (0, -5), va="top", **above)
    beside = {"ha": "right", "color": GREY}
    annotate(ax, "round", (-0.5, -0.5), (-12, 5), **beside)
    annotate(ax, "MACs left (%)", (-0.5, rows - 0.5), (-4, -5), va="top", **beside)
    title = {"va": "top", "fontsize": 9.5, "color": INK, "weight": "bold"}
    figure.text(0.015, 1 - 0.08 / height, "Filters kept in each group", **title)
    return figure


def training_figure(metrics: list[Row]) -> Figure:
    """Loss and accuracies over all epochs, those of fine-tuning included.

    Rows of other stages than `train` and `finetune` are left out. Lines break where the
    network changes: between training and the rounds.
    """
    epochs = [row for row in metrics if row.get("stage") in ("train", "finetune")]
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    style_axes(top, "Loss")
    style_axes(bottom, "Accuracy on training images, as trained on")
    first, shown = 1, -math.inf
    for (stage, _), rows in groupby(epochs, lambda row: (row["stage"], row.get("round"))):
        stretch = list(rows)
        x = list(range(first, first + len(stretch)))
        loss = [number(row.get("loss")) for row in stretch]
        line = {"linewidth": 1.6, "marker": "." if len(x) < 3 else None}
        top.plot(x, loss, color=GREY, **line)
        bottom.plot(x, [number(row.get("accuracy")) for row in stretch], color=GREY, **line)
        if first > 1:
            for ax in (top, bottom):
                ax.axvline(first - 0.5, color="#CCCCCC", linewidth=0.8, zorder=0)
        name = "training" if stage == "train" else round_name(stretch[0])
        middle = first + (len(x) - 1) / 2
        if middle - shown > 0.035 * len(epochs):
            place = {"xycoords": top.get_xaxis_transform(), "ha": "center", "color": GREY}
            annotate(top, name, (middle, 1), (0, 3), **place)
            shown = middle
        first += len(stretch)
    if not epochs:
        bottom.text(0.5, 0.5, "no epochs recorded", transform=bottom.transAxes, ha="center")
    top.set_ylim(bottom=0)
    bottom.set_xlim(0.5, max(len(epochs), 2) + 0.5)
    bottom.set_xticks([x for x in _ticks(1.0, float(len(epochs))) if 1 <= x <= len(epochs)])
    bottom.set_xlabel(
        "epochs: training, then fine-tuning in each round (numbers)", color=INK, fontsize=9
    )
    return figure


def _with_room(archive: list[Row], places: list[float], room: float) -> list[int]:
    """Indices of the points to label, no two closer than `room`; the chosen go first."""
    shown: list[int] = []
    for i in sorted(range(len(archive)), key=lambda i: not archive[i].get("chosen")):
        if math.isfinite(places[i]) and all(abs(places[i] - places[k]) >= room for k in shown):
            shown.append(i)
    return shown


def _ticks(low: float, high: float) -> list[float]:
    return list(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True).tick_values(low, high))


def _limit(ax: Axes, heights: list[float]) -> None:
    """A vertical range of at least 0.1, so that a difference of one image stays small."""
    low, high = _range(heights)
    span = max(high - low, 0.1)
    limits = low - 0.36 * span, min(high + 0.12 * span, 1.01)  # below, the stars' text
    ax.set_ylim(limits)
    ax.set_yticks([y for y in ax.get_yticks() if 0 <= y <= 1])
    ax.set_ylim(limits)


def _range(values: list[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    return min(finite), max(finite)
