"""Colors, markers and text styles that all figures share."""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

Point = tuple[float | int, float | int]

# The palette of Okabe and Ito, distinguishable with the common color-vision deficiencies.
BLUE, VERMILION, GREEN, INK, GREY = "#0072B2", "#D55E00", "#007A5A", "#222222", "#6B6B6B"
GRID, FRAME = "#EBEBEB", "#999999"
PINK, ORANGE, FAINT, RULE = "#CC79A7", "#E69F00", "#BBBBBB", "#CCCCCC"
# Names of these colors in page.css, which has two of each: for light and for dark pages.
PAGE_COLORS = {
    color.lower(): name
    for color, name in {
        **{BLUE: "blue", VERMILION: "vermilion", GREEN: "green", PINK: "pink", ORANGE: "orange"},
        **{INK: "ink", GREY: "grey", GRID: "grid", FRAME: "frame", FAINT: "faint", RULE: "rule"},
        **{"#FFFFFF": "page", "#000000": "ink"},
    }.items()
}
HALO = [withStroke(linewidth=2.5, foreground="white")]  # keeps text readable on lines
STAR: dict[str, Any] = {
    "color": INK,
    "linestyle": "none",
    "marker": "*",
    "markersize": 11,
    "markeredgecolor": "w",
}
HOLLOW_STAR = STAR | {"markerfacecolor": "w", "markeredgecolor": INK}  # an unreliable value
LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8.5,
    "labelcolor": INK,
    "columnspacing": 1.2,
}


def style_axes(ax: Axes, title: str) -> None:
    """Sets the title, and the style of spines, ticks and horizontal grid lines."""
    ax.set_title(
        title, loc="left", fontsize=9.5, color=INK, weight="bold", pad=14, parse_math=False
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FRAME)
    ax.tick_params(labelsize=8.5, color=FRAME, labelcolor=INK)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def set_share_limits(ax: Axes, direction: Literal["x", "y"], limits: Point) -> None:
    """Limits an axis that shows shares, with ticks in [0, 1] and within the limits only."""
    low, high = max(limits[0], 0), min(limits[1], 1)
    ax.set(**{f"{direction}lim": limits})
    axis = ax.xaxis if direction == "x" else ax.yaxis
    axis.set_ticks([tick for tick in axis.get_ticklocs() if low <= tick <= high])
    ax.set(**{f"{direction}lim": limits})  # setting the ticks may have changed it


def annotate(ax: Axes, text: str, at: Point, offset: Point, **style: Any) -> None:
    """Writes small text at an offset in points from `at`; it may lie outside the axes."""
    style = {"textcoords": "offset points", "annotation_clip": False, "fontsize": 8.5} | style
    ax.annotate(text, at, offset, path_effects=HALO, parse_math=False, **style)


def figure_width(ax: Axes) -> float:
    """Width of the figure of these axes, in inches."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure.get_figwidth()


def finite_range(values: Iterable[float]) -> tuple[float, float]:
    """Minimum and maximum of the finite values; zeros if there are none."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    return min(finite), max(finite)


def integer_ticks(low: float, high: float) -> list[float]:
    """About eight round integer ticks that cover the range."""
    return list(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True).tick_values(low, high))


def spaced_labels(places: Sequence[float], room: float, order: Iterable[int]) -> list[int]:
    """Indices of the places to label, no two closer than `room`; earlier in `order` goes first."""
    shown: list[int] = []
    for i in order:
        if math.isfinite(places[i]) and all(abs(places[i] - places[k]) >= room for k in shown):
            shown.append(i)
    return shown


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG image of 200 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()
