"""Trade-off curves of pruning methods: accuracies against the remaining cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccsrp_jax.reporting.figure_style import (
    BLUE,
    FAINT,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PINK,
    VERMILION,
    style_axes,
)
from ccsrp_jax.reporting.svg import SERIES, Panel, panel_figure, to_svg

COLORS = (BLUE, VERMILION, GREEN, PINK, ORANGE)  # of the best methods; others are grey
CROPPED = 0.08  # share of the networks that may lie below the visible range
ACCURACIES = ("accuracy", "robust_accuracy")
COSTS = {"macs": "MACs", "synops": "SynOps"}


def curves(record: Mapping, summary: Mapping, default: str) -> Figure:
    """Clean and robust accuracy against MACs (methods that remove filters) and SynOps (all).

    Args:
      record: see `comparison_report.summarize`.
      summary: what it returned.
      default: the method that is always highlighted.
    """
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for row, accuracy in zip(axes, ACCURACIES, strict=True):
        for ax, cost in zip(row, COSTS, strict=True):
            _plot_methods(ax, record, summary, accuracy, cost, default)
            ax.grid(color=GRID, linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(accuracy.replace("_", " "))
    for ax, name in zip(axes[1], COSTS.values(), strict=True):
        ax.set_xlabel(f"remaining {name} (% of the dense network's)")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLORS)
    )
    return figure


def curve_panels(record: Mapping, summary: Mapping, default: str) -> list[Panel]:
    """The same in panels for a page, each method a series; its number is that in `method_order`."""
    panels = []
    for accuracy in ACCURACIES:
        for cost, name in COSTS.items():
            figure = panel_figure()
            ax = figure.subplots()
            title = accuracy.replace("_", " ").capitalize()
            style_axes(ax, f"{title} against {name}")
            _plot_methods(ax, record, summary, accuracy, cost, default)
            ax.set_xlabel(f"remaining {name} (% of the dense network's)", color=INK, fontsize=9)
            label = _description(record, summary, accuracy, cost, default)
            panels.append(Panel(to_svg(figure, f"{accuracy}-{cost}".replace("_", "-"), label)))
    return panels


def method_order(summary: Mapping) -> list[str]:
    """The methods in the order of the summary's rows."""
    return list(dict.fromkeys(row["method"] for row in summary["rows"]))


def method_colors(summary: Mapping, default: str) -> dict[str, str]:
    """Colors of the default and of the best other methods that remove filters."""
    ranked = [v["method"] for v in summary["volumes"] if not v["weights"]]
    ranked.sort(key=lambda method: method != default)
    return dict(zip(ranked, COLORS, strict=False))


def _description(record: Mapping, summary: Mapping, accuracy: str, cost: str, default: str) -> str:
    parts = []
    for method in method_colors(summary, default):
        own = [row for row in summary["rows"] if row["method"] == method]
        points = [f"{row[accuracy].mean:.3f} at {100 * row[cost].mean:.0f} %" for row in own]
        parts.append(f"{method} {', '.join(points)}")
    others = len(method_order(summary)) - len(parts)
    return (
        f"{accuracy.replace('_', ' ').capitalize()} against the remaining {COSTS[cost]}. Dense "
        f"network: {record['dense'][accuracy]:.3f}. {'; '.join(parts)}. The table of all networks "
        f"has these numbers and those of the {others} other methods."
    )


def _plot_methods(
    ax: Axes, record: Mapping, summary: Mapping, accuracy: str, cost: str, default: str
) -> None:
    """Draws all methods on one pair of axes, and the dense network as a line."""
    rows, colors = summary["rows"], method_colors(summary, default)
    for number, method in enumerate(method_order(summary)):
        own = sorted((row for row in rows if row["method"] == method), key=lambda r: r[cost].mean)
        if cost == "macs" and own[0]["weights"]:
            continue
        style: dict[str, Any] = {"linewidth": 0.8, "markersize": 2.5, "zorder": 1}
        if method in colors:
            style = {"linewidth": 1.8, "markersize": 4, "zorder": 3, "label": method}
        line, caps, bars = ax.errorbar(
            [100 * row[cost].mean for row in own],
            [row[accuracy].mean for row in own],
            np.nan_to_num([row[accuracy].deviation for row in own]),
            color=colors.get(method, FAINT),
            linestyle="--" if own[0]["weights"] else "-",
            marker="o",
            **style,
        )
        for artist in (line, *caps, *bars):
            artist.set_gid(f"{SERIES}{number}{'' if method in colors else '-plain'}")
    ax.axhline(record["dense"][accuracy], color=INK, linewidth=0.8, linestyle=":")
    values = [row[accuracy].mean for row in rows] + [record["dense"][accuracy]]
    low, high = np.quantile(values, CROPPED), max(values)
    margin = 0.1 * max(high - low, 0.01)
    ax.set_ylim(low - margin, high + margin)
