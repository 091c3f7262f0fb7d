"""Trade-off figure of a pruning run: accuracies against the remaining MACs."""

import math
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from ccsrp_jax.reporting.figure_style import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    HOLLOW_STAR,
    INK,
    LEGEND,
    STAR,
    VERMILION,
    annotate,
    figure_width,
    finite_range,
    integer_ticks,
    set_share_limits,
    spaced_labels,
    style_axes,
)
from ccsrp_jax.reporting.run_summary import (
    Row,
    attack_text,
    chosen_first,
    conclusion,
    number,
    ratio,
    remaining_macs,
    robustness_records,
    round_name,
    search_attack,
    test_attack,
)
from ccsrp_jax.utils.stats import wilson_interval

SHARED: dict[str, Any] = {
    "color": GREEN,
    "linestyle": "--",
    "linewidth": 1.2,
    "marker": "D",
    "markersize": 3.5,
}
RING: dict[str, Any] = {
    "color": INK,
    "linestyle": "none",
    "marker": "o",
    "markersize": 12,
    "markerfacecolor": "none",
    "markeredgewidth": 1.3,
    "zorder": 4,
}


KEYS = {"accuracy": BLUE, "robust_accuracy": VERMILION}  # of a network's measurements


class Star(NamedTuple):
    """A network measured on the test images."""

    label: str
    network: str  # its key in the summary
    macs: float  # in percent of the dense network's
    offset: float  # in points, so that the star hides no point of the line


def tradeoff_figure(archive: list[Row], summary: Row) -> Figure:
    """Accuracy and robust accuracy against the remaining MACs, on search and on test images.

    Lines show the search images; stars show the test images, beside their MACs rather than at
    them, and are hollow where the audit did not find the robust accuracy reliable.

    Args:
      archive: rows of archive.jsonl in the order of their rounds, the dense network first.
      summary: content of summary.json.
    """
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    for ax, key in zip(axes, KEYS, strict=True):
        draw_accuracy(ax, archive, summary, key)
        style_axes(ax, "Accuracy" if key == "accuracy" else _robust_title(summary))
    label_macs(axes[1])
    label_rounds(axes[0], archive)
    figure.legend(
        handles=_legend_handles(archive),
        loc="outside upper left",
        ncols=4,
        handletextpad=0.5,
        **LEGEND,
    )
    return figure


def draw_accuracy(ax: Axes, archive: list[Row], summary: Row, key: str) -> None:
    """Draws one of `KEYS` against the remaining MACs."""
    macs, stars = remaining_macs(archive), _stars(summary)
    _limit_macs(ax, macs + [star.macs for star in stars])
    said = {name: conclusion(record) for name, record in robustness_records(summary).items()}
    style_axes(ax, key.replace("_", " ").capitalize())
    heights = _plot_archive(ax, archive, macs, key, KEYS[key])
    for star in stars:
        verdict = said.get(star.network, "reliable")
        doubt = "" if key == "accuracy" or verdict == "reliable" else verdict
        heights += _plot_star(ax, star, key, summary, doubt)
    bottom, top = finite_range(heights)
    span = max(top - bottom, 0.1)  # so that a difference of one image stays small
    set_share_limits(ax, "y", (bottom - 0.36 * span, min(top + 0.12 * span, 1.01)))


def label_rounds(ax: Axes, archive: list[Row]) -> None:
    """Writes the rounds above the axes, where there is room."""
    macs, (high, low) = remaining_macs(archive), ax.get_xlim()
    width = figure_width(ax)
    for i in spaced_labels(macs, 0.3 / width * (high - low), chosen_first(archive)):
        place = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "color": GREY}
        annotate(ax, round_name(archive[i]), (macs[i], 1), (0, 3), **place)


def _stars(summary: Row) -> list[Star]:
    stars = [Star("dense", "dense", 100.0, -9.0)]
    if summary.get("chosen_round") != 0:
        share = ratio(summary.get("pruned") or {}, summary.get("dense") or {}, "macs")
        stars.append(Star("chosen", "pruned", 100 * share, 9.0))
    return stars


def _limit_macs(ax: Axes, macs: list[float]) -> None:
    low, high = finite_range(macs)
    low = min(low, high - 10)
    width = figure_width(ax)
    margin = 0.7 / width * (high - low)  # room for the text below the stars
    ax.set_xticks([x for x in integer_ticks(low, high) if 0 <= x <= 100])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(high + margin, low - margin)  # pruning proceeds to the right


def label_macs(ax: Axes) -> None:
    """Names the axis of the remaining MACs."""
    ax.set_xlabel("remaining MACs (% of the dense network's)", color=INK, fontsize=9)


def _robust_title(summary: Row) -> str:
    searched = attack_text(search_attack(summary))
    if not robustness_records(summary):
        return f"Robust accuracy: {searched}"
    tested = attack_text(test_attack(summary))
    return f"Robust accuracy; line: {searched};\nstars: worst case of the {tested}"


def _plot_archive(
    ax: Axes, archive: list[Row], macs: list[float], key: str, color: str
) -> list[float]:
    """Draws the networks on the search images; returns the values that have to be visible."""
    values = [number(row.get(key)) for row in archive]
    ax.plot(macs, values, color=color, linewidth=1.6, marker="o", markersize=5)
    for row, x in zip(archive, macs, strict=True):
        ax.axvline(x, color=GRID, linewidth=0.8, zorder=0)
        if row.get("chosen"):
            ax.plot(x, number(row.get(key)), **RING)
    if key == "accuracy":
        return values
    shared = [number(row.get("shared_accuracy")) for row in archive]
    ax.plot(macs, shared, **SHARED)
    return values + shared


def _plot_star(ax: Axes, star: Star, key: str, summary: Row, doubt: str) -> list[float]:
    """Draws a network on the test images, with any doubt of its robust accuracy; returns the
    values that have to be visible."""
    share = number((summary.get(star.network) or {}).get(key))
    if not math.isfinite(star.macs + share):
        return []
    low, high = wilson_interval(share, number(summary.get("test_images")))
    points = ScaledTranslation(star.offset / 72, 0, ax.figure.dpi_scale_trans)
    aside: dict[str, Any] = {"transform": ax.transData + points}
    x = [star.macs, star.macs]
    ax.plot(x, [low, high], color=INK, linewidth=1, **aside)
    ax.plot(x, [-1, share], color=GREY, linewidth=0.7, linestyle=":", **aside)
    ax.plot(star.macs, share, **HOLLOW_STAR if doubt else STAR, **aside)
    place = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "color": INK}
    text = f"{star.label}, test\n{share:.3f} {doubt}".rstrip()
    annotate(ax, text, (star.macs, 0), (star.offset, 3), **place)  # below all points
    return [share, low, high]


def _legend_handles(archive: list[Row]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=5, label="search images, by round"),
        Line2D([], [], **RING, label="chosen"),
        Line2D([], [], **STAR, label="test images, 95 % interval"),
    ]
    if any(row.get("shared_accuracy") is not None for row in archive):
        handles.append(Line2D([], [], **SHARED, label="shared images, before fine-tuning"))
    return handles
