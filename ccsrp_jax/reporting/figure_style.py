"""Colours, markers and text styles that all figures share."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

Point = tuple[float | int, float | int]

# The palette of Okabe and Ito, distinguishable with the common colour-vision deficiencies.
BLUE, VERMILION, GREEN, INK, GREY = "#0072B2", "#D55E00", "#007A5A", "#222222", "#6B6B6B"
GRID, FRAME = "#EBEBEB", "#999999"
HALO = [withStroke(linewidth=2.5, foreground="white")]  # keeps text readable on lines
STAR = {"color": INK, "linestyle": "none", "marker": "*", "markersize": 11, "markeredgecolor": "w"}
HOLLOW = STAR | {"markerfacecolor": "w", "markeredgecolor": INK}  # an unreliable value


def style_axes(ax: Axes, title: str) -> None:
    """Sets the title, and the look of spines, ticks and horizontal grid lines."""
    ax.set_title(
        title, loc="left", fontsize=9.5, color=INK, weight="bold", pad=14, parse_math=False
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FRAME)
    ax.tick_params(labelsize=8.5, color=FRAME, labelcolor=INK)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def annotate(ax: Axes, text: str, at: Point, offset: Point, **style: Any) -> None:
    """Writes small text at an offset in points from `at`; it may lie outside the axes."""
    style = {"textcoords": "offset points", "annotation_clip": False, "fontsize": 8.5} | style
    ax.annotate(text, at, offset, path_effects=HALO, parse_math=False, **style)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG image of 200 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()
