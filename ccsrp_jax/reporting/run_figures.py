"""Figures of a pruning run: kept filters and training curves.

A value that the run did not record is a gap.
"""

import math
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ccsrp_jax.reporting.figure_style import (
    GREY,
    INK,
    RULE,
    annotate,
    figure_width,
    integer_ticks,
    spaced_labels,
    style_axes,
)
from ccsrp_jax.reporting.run_summary import (
    DASH,
    Row,
    chosen_first,
    format_number,
    number,
    ratio,
    remaining_macs,
    round_name,
)

# From white to a light blue, on which dark numbers are readable.
KEPT_COLORS = LinearSegmentedColormap.from_list("kept", ["#FFFFFF", "#5AA5D2"])
# Inches: width of the figure, of the labels beside the cells and of a cell at most; row height.
WIDTH, LABEL_WIDTH, MAX_CELL, ROW_HEIGHT = 7, 1.25, 0.8, 0.34
MIN_FONT = 5  # points


def filters_figure(archive: list[Row]) -> Figure:
    """Filters that each group keeps: a column per network of the archive, a row per group."""
    widths: dict[str, Any] = {}
    for point in archive:
        widths |= dict.fromkeys(point.get("kept") or {}) | (point.get("filters") or {})
    columns, rows = len(archive), max(len(widths), 1)
    cell = min(5.6 / columns, MAX_CELL)
    height = rows * ROW_HEIGHT + 0.9
    figure = Figure(figsize=(WIDTH, height))
    box = (LABEL_WIDTH / WIDTH, 0.3 / height, columns * cell / WIDTH, rows * ROW_HEIGHT / height)
    ax = figure.add_axes(box, xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    _draw_cells(ax, archive, widths, cell)
    labels = [f"{name} ({DASH if width is None else width})" for name, width in widths.items()]
    ax.set_yticks(range(len(labels)), labels, fontsize=8.5, color=INK, parse_math=False)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    _label_columns(ax, archive, rows, cell)
    title: dict[str, Any] = {"va": "top", "fontsize": 9.5, "color": INK, "weight": "bold"}
    figure.text(0.015, 1 - 0.08 / height, "Filters kept in each group", **title)
    return figure


def _draw_cells(ax: Axes, archive: list[Row], widths: dict[str, Any], cell: float) -> None:
    digits = max((len(str(width)) for width in widths.values()), default=1)
    font = min(8.0, 72 * cell / (0.65 * digits + 0.4))
    frame: dict[str, Any] = {"fill": False, "edgecolor": INK, "linewidth": 1.5, "clip_on": False}
    for i, point in enumerate(archive):
        kept = point.get("kept") or {}
        for j, name in enumerate(widths):
            share = ratio(kept, point.get("filters") or {}, name)
            color = KEPT_COLORS(share) if math.isfinite(share) else "white"
            ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=color, edgecolor="w"))
            if font > MIN_FONT:
                text = format_number(kept.get(name), ".0f")
                ax.text(i, j, text, fontsize=font, color=INK, ha="center", va="center_baseline")
        if point.get("chosen"):
            ax.add_patch(Rectangle((i - 0.5, -0.5), 1, max(len(widths), 1), zorder=3, **frame))


def _label_columns(ax: Axes, archive: list[Row], rows: int, cell: float) -> None:
    macs = remaining_macs(archive)
    column: dict[str, Any] = {"ha": "center", "color": INK}
    places = [float(i) for i in range(len(archive))]
    for i in spaced_labels(places, 0.42 / cell, chosen_first(archive)):
        annotate(ax, round_name(archive[i]), (i, -0.5), (0, 5), **column)
        percent = format_number(macs[i], ".0f")
        annotate(ax, percent, (i, rows - 0.5), (0, -5), va="top", **column)
    beside: dict[str, Any] = {"ha": "right", "color": GREY}
    annotate(ax, "round", (-0.5, -0.5), (-12, 5), **beside)
    annotate(ax, "MACs (%)", (-0.5, rows - 0.5), (-4, -5), va="top", **beside)


def training_figure(metrics: list[Row]) -> Figure:
    """Loss and accuracies over all epochs, including those of fine-tuning.

    Rows of stages other than `train` and `finetune` are ignored. Lines break where the network
    changes: between training and the rounds.
    """
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    draw_training(top, metrics, "loss")
    draw_training(bottom, metrics, "accuracy")
    style_axes(bottom, "Accuracy on the (augmented or attacked) training images")
    label_stages(top, metrics)
    bottom.set_xlabel(
        "epochs: training, then fine-tuning in each round (numbers)", color=INK, fontsize=9
    )
    return figure


def epochs_by_stage(metrics: list[Row]) -> list[tuple[str, int, list[Row]]]:
    """Training and every fine-tuning: name, number of its first epoch from 1 on, and epochs."""
    stages: list[tuple[str, int, list[Row]]] = []
    first = 1
    epochs = [row for row in metrics if row.get("stage") in ("train", "finetune")]
    for (stage, _), rows in groupby(epochs, lambda row: (row["stage"], row.get("round"))):
        segment = list(rows)
        name = "training" if stage == "train" else round_name(segment[0])
        stages.append((name, first, segment))
        first += len(segment)
    return stages


def draw_training(ax: Axes, metrics: list[Row], key: str) -> None:
    """Draws the loss or the accuracy over all epochs, with lines that separate stages."""
    style_axes(ax, key.capitalize())
    last = 0
    for _, first, rows in epochs_by_stage(metrics):
        _plot_epochs(ax, first, rows, key)
        last = first + len(rows) - 1
    if not last:
        ax.text(0.5, 0.5, "no epochs recorded", transform=ax.transAxes, ha="center", color=INK)
    if key == "loss":
        ax.set_ylim(bottom=0)
    ax.set_xlim(0.5, max(last, 2) + 0.5)
    ax.set_xticks([x for x in integer_ticks(1.0, float(last)) if 1 <= x <= last])


def label_stages(ax: Axes, metrics: list[Row]) -> None:
    """Writes the rounds above the axes, where there is room."""
    labelled, (_, end) = -math.inf, ax.get_xlim()
    room = 0.245 / figure_width(ax) * end
    for name, first, rows in epochs_by_stage(metrics):
        middle = first + (len(rows) - 1) / 2
        if middle - labelled > room:
            place = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "color": GREY}
            annotate(ax, name, (middle, 1), (0, 3), **place)
            labelled = middle


def _plot_epochs(ax: Axes, first: int, rows: list[Row], key: str) -> None:
    """Draws the epochs from number `first` on, with a line before them."""
    epochs = range(first, first + len(rows))
    style: dict[str, Any] = {"linewidth": 1.6, "marker": "." if len(rows) < 3 else None}
    ax.plot(epochs, [number(row.get(key)) for row in rows], color=GREY, **style)
    if first > 1:
        ax.axvline(first - 0.5, color=RULE, linewidth=0.8, zorder=0)
