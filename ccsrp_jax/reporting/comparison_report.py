"""The page of a comparison of methods: table, curves, and what can be said of them."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from ccsrp_jax.reporting import figure_style
from ccsrp_jax.reporting.comparison import Paired, Spread, hypervolumes, paired, spread

DEFAULT = "ccsrp"


CROPPED = 0.08  # share of the networks that may be below a figure


SHOWN = 5  # methods with a colour of their own


COLOURS = (figure_style.BLUE, figure_style.VERMILION, figure_style.GREEN, "#CC79A7", "#E69F00")


def summarise(record: Mapping) -> dict:
    """What follows from the cells of a comparison.

    Args:
      record: of `experiments/compare_methods.py`: the dense network, and a cell for each method,
        target and seed.

    Returns:
      `rows`, for each method and target the spreads over seeds; `volumes`, for each method the
      hypervolumes with MACs (filters only) and with SynOps as the cost, and the default method's
      lead over it; both in descending order of hypervolume.
    """
    cells, dense = record["cells"], record["dense"]
    structured = [cell for cell in cells if not cell["weights"]]
    by_macs, by_synops = (
        hypervolumes(structured, dense, "macs"),
        hypervolumes(cells, dense, "synops"),
    )
    rows = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        for target in sorted({cell["target"] for cell in cells}, reverse=True):
            some = [c for c in cells if c["method"] == method and c["target"] == target]
            if some:
                rows.append(_row(method, target, some, dense))
    volumes = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own_macs, own_synops = by_macs.get(method, {}), by_synops.get(method, {})
        if own_synops:
            volumes.append(
                {
                    "method": method,
                    "weights": method not in by_macs,
                    "macs": spread(own_macs.values()) if own_macs else None,
                    "synops": spread(own_synops.values()),
                    "lead": paired(by_macs.get(DEFAULT, {}), own_macs) if own_macs else None,
                    "lead_synops": paired(by_synops.get(DEFAULT, {}), own_synops),
                }
            )
    volumes.sort(key=lambda v: (v["weights"], -(v["macs"] or v["synops"]).mean))
    place = {v["method"]: i for i, v in enumerate(volumes)}
    rows.sort(key=lambda row: (place.get(row["method"], len(place)), -row["target"]))
    return {"rows": rows, "volumes": volumes}


def _row(method: str, target: float, cells: Sequence[Mapping], dense: Mapping) -> dict:
    def over(value) -> Spread:
        return spread(value(cell) for cell in cells)

    return {
        "method": method,
        "target": target,
        "weights": cells[0]["weights"],
        "accuracy": over(lambda c: c["accuracy"]),
        "robust_accuracy": over(lambda c: c["robust_accuracy"]),
        "pgd_accuracy": over(lambda c: c["pgd_accuracy"]),
        **{
            cost: over(lambda c, cost=cost: c[cost] / dense[cost])
            for cost in ("macs", "params", "synops")
        },
        "forward": over(lambda c: c["search"]["forward"]),
        "backward": over(lambda c: c["search"]["backward"]),
        "search_seconds": over(lambda c: c["search"]["seconds"]),
        "training_seconds": over(lambda c: c["training"]["seconds"]),
    }


def finding(summary: Mapping) -> str:
    """Who is ahead in hypervolume, and how surely, in words."""
    volumes = [v for v in summary["volumes"] if v["macs"]]
    default = next((v for v in volumes if v["method"] == DEFAULT), None)
    rivals = [v for v in volumes if v["method"] != DEFAULT and not _ablation(v["method"])]
    if default is None or not rivals:
        return "The default method and a rival that removes filters are needed for a finding."
    leads = {v["method"]: v["lead"] for v in rivals}
    ahead = [name for name, lead in leads.items() if lead.difference > 0]
    sure = [name for name in ahead if _sure(leads[name])]
    beaten = [name for name, lead in leads.items() if lead.difference < 0 and lead.p < 0.05]
    best = max(rivals, key=lambda v: v["macs"].mean)
    lead = leads[best["method"]]
    text = (
        f"{DEFAULT} has a hypervolume of {_text(default['macs'])}; it is above {len(ahead)} of "
        f"{len(rivals)} rivals that remove filters. The strongest rival is {best['method']} with "
        f"{_text(best['macs'])}: the default's lead is {lead.difference:+.4f}"
    )
    if lead.seeds < 2:
        return text + ". With one seed nothing can be said of chance."
    return text + (
        f" on average, and it is ahead on {lead.wins} of {lead.seeds} seeds (p = {lead.p:.2g}). By "
        f"a paired t-test over seeds at 5 %, rivals surely below it: {len(sure)}, surely above it: "
        f"{len(beaten)}."
    )


def _ablation(method: str) -> bool:
    """Of the default: it is no rival."""
    return method.startswith(f"{DEFAULT}: ")


def _sure(lead: Paired) -> bool:
    return bool(lead.difference > 0 and lead.p < 0.05)


def _text(value: Spread | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    if np.isnan(value.deviation):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.deviation:.{digits}f}"


def curves(record: Mapping, summary: Mapping) -> Figure:
    """Clean and robust accuracy against MACs (methods that remove filters) and SynOps (all)."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    chosen = [v["method"] for v in summary["volumes"] if not v["weights"]]
    chosen = ([DEFAULT] if DEFAULT in chosen else []) + [m for m in chosen if m != DEFAULT]
    colour = dict(zip(chosen[:SHOWN], COLOURS, strict=False))
    dense = record["dense"]
    for row, accuracy in enumerate(("accuracy", "robust_accuracy")):
        for column, cost in enumerate(("macs", "synops")):
            ax = axes[row][column]
            for method in dict.fromkeys(r["method"] for r in summary["rows"]):
                own = [r for r in summary["rows"] if r["method"] == method]
                if cost == "macs" and own[0]["weights"]:
                    continue
                own.sort(key=lambda r: r[cost].mean)
                ax.errorbar(
                    [100 * r[cost].mean for r in own],
                    [r[accuracy].mean for r in own],
                    [0 if np.isnan(r[accuracy].deviation) else r[accuracy].deviation for r in own],
                    color=colour.get(method, "#BBBBBB"),
                    linestyle="--" if own[0]["weights"] else "-",
                    linewidth=1.8 if method in colour else 0.8,
                    marker="o",
                    markersize=4 if method in colour else 2.5,
                    zorder=3 if method in colour else 1,
                    label=method if method in colour else None,
                )
            ax.axhline(dense[accuracy], color=figure_style.INK, linewidth=0.8, linestyle=":")
            ax.grid(color="#EBEBEB", linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
            if row == 1:
                ax.set_xlabel(f"{'MACs' if cost == 'macs' else 'SynOps'} left (% of dense)")
        axes[row][0].set_ylabel("accuracy" if row == 0 else "robust accuracy")
        heights = [r[accuracy].mean for r in summary["rows"]] + [dense[accuracy]]
        low, high = np.quantile(heights, CROPPED), max(heights)
        room = 0.1 * max(high - low, 0.01)
        axes[row][0].set_ylim(low - room, high + room)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=SHOWN)
    return figure


def page(record: Mapping, summary: Mapping, picture: bytes) -> str:
    """The self-contained HTML page, with the curves as PNG in it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"spread": _text, "surely": lambda lead: bool(lead) and _sure(lead)}
    source = (
        resources.files("ccsrp_jax.reporting").joinpath("comparison.html.j2").read_text("utf-8")
    )
    return environment.from_string(source).render(
        record=record,
        rows=summary["rows"],
        volumes=summary["volumes"],
        finding=finding(summary),
        default=DEFAULT,
        figure=base64.b64encode(picture).decode(),
    )
