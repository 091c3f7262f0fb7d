"""Trade-off curves of pruning methods: accuracies against the remaining cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccsrp_jax.reporting.figure_style import BLUE, GREEN, GRID, INK, VERMILION

COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00")  # of the best methods; others are grey
CROPPED = 0.08  # share of the networks that may lie below the visible range


def curves(record: Mapping, summary: Mapping, default: str) -> Figure:
    """Clean and robust accuracy against MACs (methods that remove filters) and SynOps (all).

    Args:
      record: see `comparison_report.summarize`.
      summary: what it returned.
      default: the method that is always highlighted.
    """
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    ranked = [v["method"] for v in summary["volumes"] if not v["weights"]]
    ranked.sort(key=lambda method: method != default)
    colors = dict(zip(ranked, COLORS, strict=False))
    for row, accuracy in zip(axes, ("accuracy", "robust_accuracy"), strict=True):
        for ax, cost in zip(row, ("macs", "synops"), strict=True):
            _plot_methods(ax, summary["rows"], accuracy, cost, colors)
            ax.axhline(record["dense"][accuracy], color=INK, linewidth=0.8, linestyle=":")
            ax.grid(color=GRID, linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(accuracy.replace("_", " "))
        values = [r[accuracy].mean for r in summary["rows"]] + [record["dense"][accuracy]]
        low, high = np.quantile(values, CROPPED), max(values)
        margin = 0.1 * max(high - low, 0.01)
        row[0].set_ylim(low - margin, high + margin)
    for ax, name in zip(axes[1], ("MACs", "SynOps"), strict=True):
        ax.set_xlabel(f"remaining {name} (% of the dense network's)")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLORS)
    )
    return figure


def _plot_methods(
    ax: Axes, rows: list[Mapping], accuracy: str, cost: str, colors: Mapping[str, str]
) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == method), key=lambda r: r[cost].mean)
        if cost == "macs" and own[0]["weights"]:
            continue
        style: dict[str, Any] = {"linewidth": 0.8, "markersize": 2.5, "zorder": 1}
        if method in colors:
            style = {"linewidth": 1.8, "markersize": 4, "zorder": 3, "label": method}
        ax.errorbar(
            [100 * row[cost].mean for row in own],
            [row[accuracy].mean for row in own],
            np.nan_to_num([row[accuracy].deviation for row in own]),
            color=colors.get(method, "#BBBBBB"),
            linestyle="--" if own[0]["weights"] else "-",
            marker="o",
            **style,
        )
