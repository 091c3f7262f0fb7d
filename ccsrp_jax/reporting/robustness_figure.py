"""What attacks leave of a network's accuracy, as a figure of one or a few networks.

It shows the records of `assess.Assessment`: left the suite, attack by attack, right the
audit's sweeps.
"""

import textwrap
from collections import Counter
from itertools import accumulate, pairwise
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ccsrp_jax.reporting.figure_style import (
    BLUE,
    GREEN,
    GREY,
    HOLLOW,
    INK,
    STAR,
    VERMILION,
    Point,
    annotate,
    style_axes,
)
from ccsrp_jax.reporting.run_summary import Row, format_number, number
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.stats import wilson_interval

COLOURS = (BLUE, VERMILION, GREEN, INK)


DASHES = ("-", "--", "-.", ":")  # so that networks differ by more than their colour


MARKERS = {"noise": "P", "white box": "o", "transfer": "^", "black box": "s"}


ALONE = {"linestyle": "none", "markersize": 8, "markerfacecolor": "none", "markeredgewidth": 0.9}


RULE = {"color": "#BBBBBB", "linewidth": 0.8, "zorder": 0}


# Inches. A line of text is 8.5 points high.
LINE, HEADER_LINE, LEAST = 0.19, 0.165, 4.4


# Characters of regular and of bold text across the figure, and of an attack's name.
WIDTH, BOLD_WIDTH, NAME_WIDTH = 104, 88, 26


class Key(NamedTuple):
    """What an attack is found by in the records of several networks."""

    kind: str
    name: str
    through: str
    again: int  # how many of the same came before it


def robustness_figure(records: dict[str, Row]) -> Figure:
    """Accuracy after every attack of a suite, against eps, and through other gradients.

    Args:
      records: by the networks' names, at most four, what `assess.Assessment.record` returns.
        Their suites may differ, as by a transfer from one network to another.

    Raises:
      InputError: no record, or more than four.
    """
    if not 1 <= len(records) <= len(COLOURS):
        raise InputError(
            f"{len(records)} networks do not fit into the figure: give records of 1 to "
            f"{len(COLOURS)}."
        )
    attacks = {name: _attacks(record) for name, record in records.items()}
    keys = _merged([list(rows) for rows in attacks.values()])
    labels = ["no attack", *map(_label, keys), "worst case"]
    borders = _borders(labels, len(records))
    headlines = {name: _headline(name, record) for name, record in records.items()}
    top = 0.5 + HEADER_LINE * sum(text.count("\n") + 1 for text in headlines.values())
    below = max(LEAST, LINE * borders[-1] + 0.9)
    height = top + below
    figure = Figure(figsize=(7, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - top / height), wspace=0.06)
    swept = any(len(record["audit"]["width_curve"]) > 1 for record in records.values())
    right = ["eps", "width"] if swept else ["eps"]
    share = min(below / len(right), 2.7)
    heights = [share] * len(right)
    if (blank := below - sum(heights)) > 0.5:
        right, heights = [*right, "."], [*heights, blank]
    axes = figure.subplot_mosaic(
        [["suite", name] for name in right], width_ratios=(3, 2), height_ratios=heights
    )
    _plot_suite(axes["suite"], records, attacks, keys, labels, borders)
    _plot_eps(axes["eps"], records)
    if swept:
        _plot_widths(axes["width"], records)
    _plot_head(figure, records, headlines)
    rows = [row for found in attacks.values() for row in found.values()]
    handles = _handles(keys, alone=any(row["alone"] is not None for row in rows))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - (top - 0.42) / height),
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        columnspacing=1.2,
        handletextpad=0.2,
    )
    return figure


def _attacks(record: Row) -> dict[Key, Row]:
    seen: Counter[tuple[str, str, str]] = Counter()
    found = {}
    for row in record["attacks"]:
        same = (row["kind"], row["name"], row["through"])
        found[Key(*same, seen[same])] = row
        seen[same] += 1
    return found


def _merged(suites: list[list[Key]]) -> list[Key]:
    """All attacks, in the order of the first suite and with others' own after what they follow."""
    merged: list[Key] = []
    for suite in suites:
        place = 0
        for key in suite:
            if key not in merged:
                merged.insert(place, key)
            place = merged.index(key) + 1
    return merged


def _label(key: Key) -> str:
    through = f" from {key.through}" if key.kind == "transfer" else f", {key.through}"
    words = key.name + ("" if key.through == "own" else through)
    return "\n".join(textwrap.wrap(words, NAME_WIDTH, break_on_hyphens=False))


def _borders(labels: list[str], networks: int) -> list[float]:
    """Where rows begin and the last one ends, downwards, in lines; outer rows hold numbers."""
    rooms = [1 + 0.75 * label.count("\n") + 0.12 * (networks - 1) for label in labels]
    rooms[0] = rooms[-1] = 0.4 + 0.85 * networks
    return [0.0, *accumulate(rooms)]


def _headline(name: str, record: Row) -> str:
    width = WIDTH if record["reliable"] else BOLD_WIDTH
    return "\n".join(textwrap.wrap(f"{name}: {record['headline']}", width))


def _plot_head(figure: Figure, records: dict[str, Row], headlines: dict[str, str]) -> None:
    """The headlines, each with its network's line."""
    height = figure.get_figheight()
    y = 1 - 0.1 / height
    for (name, text), colour, dash in zip(headlines.items(), COLOURS, DASHES, strict=False):
        middle = y - 0.5 * HEADER_LINE / height
        style = {"color": colour, "linestyle": dash, "linewidth": 1.6}
        figure.add_artist(Line2D([0.015, 0.055], [middle, middle], **style))
        weight = "normal" if records[name]["reliable"] else "bold"
        font = {"fontsize": 8.5, "color": INK, "weight": weight, "linespacing": 1.2}
        figure.text(0.068, y, text, va="top", parse_math=False, **font)
        y -= HEADER_LINE * (text.count("\n") + 1) / height


def _handles(keys: list[Key], alone: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=GREY, marker=marker, linestyle="none", markersize=5, label=kind)
        for kind, marker in MARKERS.items()
        if any(key.kind == kind for key in keys)
    ]
    if alone:
        handles.append(Line2D([], [], color=GREY, marker="o", **ALONE, label="that attack alone"))
    return [*handles, Line2D([], [], **STAR, label="worst case")]


def _plot_suite(
    ax: Axes,
    records: dict[str, Row],
    attacks: dict[str, dict[Key, Row]],
    keys: list[Key],
    labels: list[str],
    borders: list[float],
) -> None:
    """A falling staircase for each network, with 95 % intervals."""
    style_axes(ax, "Accuracy left after each attack")
    _across(ax)
    places = [(above + below) / 2 for above, below in pairwise(borders)]
    middle, gap = (len(records) - 1) / 2, 0.34
    limits = _limits(records)
    for i, (name, colour, dash) in enumerate(zip(records, COLOURS, DASHES, strict=False)):
        record, rows = records[name], attacks[name]
        style = {"color": colour, "zorder": 3}
        shift = (i - middle) * gap
        first, last = (places[end] + (i - middle) * 0.85 for end in (0, -1))
        stairs = [(number(record["accuracy"]), first)]
        for key, y in zip(keys, places[1:-1], strict=True):
            row = rows.get(key)
            if row is None:
                continue
            stairs.append((number(row["accuracy"]), y + shift))
            marker = {"marker": MARKERS[key.kind], "linestyle": "none", **style}
            ax.plot(row["interval"], [y + shift] * 2, linewidth=0.9, **style)
            ax.plot(*stairs[-1], markersize=4.5, markeredgewidth=0, **marker)
            if row["alone"] is not None:
                ax.plot(number(row["alone"]), y + shift, **marker | ALONE)
        steps = {"drawstyle": "steps-pre", "linestyle": dash, "alpha": 0.6, "zorder": 2}
        ax.plot(*zip(*stairs, strict=True), color=colour, linewidth=1.1, **steps)
        for key, y in (("accuracy", first), ("robust_accuracy", last)):
            share, ends = number(record[key]), record["intervals"][key]
            ax.plot(ends, [y, y], linewidth=0.9, **style)
            words = f"{share:.3f}"
            point = {"marker": "|", "markersize": 8}
            if key == "robust_accuracy":
                point = STAR if record["reliable"] else HOLLOW | {"markeredgecolor": colour}
                words += "" if record["reliable"] else " unreliable"
            ax.plot(share, y, **point | style)
            leftwards = ends[0] - limits[0] > limits[1] - ends[1]
            side = {"ha": "right" if leftwards else "left", "va": "center_baseline"}
            place, offset = (ends[0], -5) if leftwards else (ends[1], 5)
            annotate(ax, words, (place, y), (offset, 0), color=colour, **side)
    kinds = ["", *(key.kind for key in keys), "worst case"]
    for i in range(1, len(labels)):
        if kinds[i] != kinds[i - 1]:
            ax.axhline(borders[i], **RULE)
    ax.set_xlim(limits)
    ax.set_xticks([x for x in ax.get_xticks() if limits[0] <= x <= min(limits[1], 1)])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(limits)
    ax.set_xlabel(f"accuracy, {_counts(records)} images", color=INK, fontsize=9)
    ax.set_ylim(borders[-1], 0)
    ax.set_yticks(places, labels, color=INK, parse_math=False, linespacing=1.1)
    ax.tick_params(axis="y", length=0)


def _limits(records: dict[str, Row]) -> Point:
    """A range of accuracies of at least 0.2, with room for what is written beside the stars."""
    ends = [end for record in records.values() for end in record["intervals"].values()]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    low = min(low, high - 0.2)
    worst = [record["intervals"]["robust_accuracy"] for record in records.values()]
    room = 0.25 if all(record["reliable"] for record in records.values()) else 0.48
    if high - max(end[1] for end in worst) < room * (high - low):
        low = min(low, (min(end[0] for end in worst) - room * high) / (1 - room))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _plot_eps(ax: Axes, records: dict[str, Row]) -> None:
    """Accuracy against eps, which is logarithmic from the smallest radius on."""
    style_axes(ax, "Accuracy against eps")
    curves = [record["audit"]["eps_curve"] for record in records.values()]
    radii = sorted({eps for curve in curves for eps, _ in curve})
    marked = sorted({number(record["eps"]) for record in records.values()})
    ax.set_xscale("symlog", linthresh=min(eps for eps in radii if eps), linscale=0.4)
    for record, colour, dash in zip(records.values(), COLOURS, DASHES, strict=False):
        eps, shares = zip(*record["audit"]["eps_curve"], strict=True)
        ends = [wilson_interval(share, record["audit"]["images"]) for share in shares]
        ax.fill_between(eps, *zip(*ends, strict=True), color=colour, alpha=0.12, linewidth=0)
        line = {"linewidth": 1.4, "marker": "o", "markersize": 3.5}
        ax.plot(eps, shares, color=colour, linestyle=dash, **line)
    for eps in marked:
        ax.axvline(eps, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
    words = "suite's eps" if len(marked) == 1 else "suites' eps"
    place = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "color": GREY}
    annotate(ax, words, (marked[0], 1), (0, 3), **place)
    scaled = ax.xaxis.get_transform().transform(radii)
    room, shown = 0.22 * (max(scaled) - min(scaled)), []
    first = [0, len(radii) - 1, *(radii.index(eps) for eps in marked if eps in radii)]
    for i in [*first, *range(len(radii) - 1, 0, -1)]:
        if all(abs(scaled[i] - scaled[k]) >= room for k in shown):
            shown.append(i)
    ax.set_xticks([radii[i] for i in shown], [f"{radii[i]:.3g}" for i in shown])
    ax.set_xticks(radii, minor=True)
    ax.tick_params(which="minor", color="#999999")
    ax.set_xlabel(f"eps, log scale\n{_audited(records)}", color=INK, fontsize=9)
    ax.set_ylim(-0.03, 1.03)


def _plot_widths(ax: Axes, records: dict[str, Row]) -> None:
    """Accuracy under one attack through several gradients."""
    style_axes(ax, "Other gradients")
    _across(ax)
    curves = [dict(record["audit"]["width_curve"]) for record in records.values()]
    names = list(dict.fromkeys(name for curve in curves for name in curve))
    middle = (len(records) - 1) / 2
    for i, (curve, record) in enumerate(zip(curves, records.values(), strict=True)):
        for place, name in enumerate(names):
            if name not in curve:
                continue
            y = place + (i - middle) * 0.26
            ends = wilson_interval(curve[name], record["audit"]["images"])
            ax.plot(ends, [y, y], color=COLOURS[i], linewidth=0.9)
            ax.plot(curve[name], y, color=COLOURS[i], marker="o", markersize=4)
    ax.set_xlim(-0.03, 1.03)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), names, color=INK, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"accuracy\n{_audited(records)}", color=INK, fontsize=9)


def _across(ax: Axes) -> None:
    """Accuracy runs along x."""
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color="#EBEBEB", linewidth=0.8)


def _counts(records: dict[str, Row]) -> str:
    return ", ".join(dict.fromkeys(format_number(r["images"], ",") for r in records.values()))


def _audited(records: dict[str, Row]) -> str:
    images = dict.fromkeys(format_number(r["audit"]["images"], ",") for r in records.values())
    return f"PGD 10, {', '.join(images)} images"
