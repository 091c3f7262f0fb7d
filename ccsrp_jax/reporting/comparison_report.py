"""The report of a comparison of pruning methods: summary, finding in words, and HTML page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ccsrp_jax.reporting.comparison import (
    COSTS,
    PairedTest,
    Spread,
    hypervolumes,
    paired_t_test,
    spread,
)
from ccsrp_jax.reporting.templates import render

DEFAULT = "ccsrp"
SIGNIFICANCE = 0.05


def summarize(record: Mapping) -> dict:
    """The statistics of a comparison.

    Args:
      record: written by `experiments/compare_methods.py`: the dense network, and a cell for each
        method, target and seed.

    Returns:
      `rows`: for each method and target, the spread of each quantity over seeds. `volumes`: for
      each method, its hypervolumes with MACs (only if it removes filters) and with SynOps as the
      cost, and the lead of the default method over it. Both are in descending order of
      hypervolume, methods that remove filters first.
    """
    cells, dense = record["cells"], record["dense"]
    filters_only = [cell for cell in cells if not cell["weights"]]
    by_macs = hypervolumes(filters_only, dense, "macs")
    by_synops = hypervolumes(cells, dense, "synops")
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    volumes = [_volume(method, by_macs, by_synops) for method in methods if method in by_synops]
    volumes.sort(key=lambda v: (v["weights"], -(v["macs"] or v["synops"]).mean))
    place = {v["method"]: i for i, v in enumerate(volumes)}
    groups: dict[tuple[str, float], list[Mapping]] = {}
    for cell in cells:
        groups.setdefault((cell["method"], cell["target"]), []).append(cell)
    rows = [_row(*group, own, dense) for group, own in groups.items()]
    order = {method: place.get(method, len(place) + i) for i, method in enumerate(methods)}
    rows.sort(key=lambda row: (order[row["method"]], -row["target"]))
    return {"rows": rows, "volumes": volumes}


def _volume(method: str, by_macs: Mapping[str, dict], by_synops: Mapping[str, dict]) -> dict:
    macs, default_macs = by_macs.get(method, {}), by_macs.get(DEFAULT, {})
    return {
        "method": method,
        "weights": not macs,
        "macs": spread(macs.values()) if macs else None,
        "synops": spread(by_synops[method].values()),
        "lead": paired_t_test(default_macs, macs) if macs else None,
        "lead_synops": paired_t_test(by_synops.get(DEFAULT, {}), by_synops[method]),
    }


def _row(method: str, target: float, cells: Sequence[Mapping], dense: Mapping) -> dict:
    def over_seeds(value: Callable[[Mapping], float]) -> Spread:
        return spread(value(cell) for cell in cells)

    return {
        "method": method,
        "target": target,
        "weights": cells[0]["weights"],
        "accuracy": over_seeds(lambda c: c["accuracy"]),
        "robust_accuracy": over_seeds(lambda c: c["robust_accuracy"]),
        "pgd_accuracy": over_seeds(lambda c: c["pgd_accuracy"]),
        **{cost: over_seeds(lambda c, cost=cost: c[cost] / dense[cost]) for cost in COSTS},
        "forward": over_seeds(lambda c: c["search"]["forward"]),
        "backward": over_seeds(lambda c: c["search"]["backward"]),
        "search_seconds": over_seeds(lambda c: c["search"]["seconds"]),
        "training_seconds": over_seeds(lambda c: c["training"]["seconds"]),
    }


def finding(summary: Mapping) -> str:
    """The lead of the default method in hypervolume and its significance, in words."""
    volumes = {v["method"]: v["macs"] for v in summary["volumes"] if v["macs"]}
    leads: dict[str, PairedTest] = {
        v["method"]: v["lead"]
        for v in summary["volumes"]
        if v["macs"] and v["method"] != DEFAULT and not _is_ablation(v["method"])
    }
    if DEFAULT not in volumes or not leads:
        return "The default method and a rival that removes filters are needed for a finding."
    ahead = sum(lead.difference > 0 for lead in leads.values())
    best = max(leads, key=lambda method: volumes[method].mean)
    lead = leads[best]
    text = (
        f"{DEFAULT} has a hypervolume of {_spread_text(volumes[DEFAULT])}; it is above {ahead} of "
        f"{len(leads)} rivals that remove filters. The strongest rival is {best} with "
        f"{_spread_text(volumes[best])}: the default's lead is {lead.difference:+.4f}"
    )
    if lead.seeds < 2:
        return text + ". With one seed its significance cannot be tested."
    significant = [lead for lead in leads.values() if lead.p < SIGNIFICANCE]
    worse = sum(lead.difference > 0 for lead in significant)
    better = sum(lead.difference < 0 for lead in significant)
    return text + (
        f" on average, and it is ahead on {lead.wins} of {lead.seeds} seeds (p = {lead.p:.2g}). By "
        f"a paired t-test over seeds at {100 * SIGNIFICANCE:.0f} %, rivals significantly below it: "
        f"{worse}, significantly above it: {better}."
    )


def _is_ablation(method: str) -> bool:
    """Whether it is a variant of the default method, which does not count as a rival."""
    return method.startswith(f"{DEFAULT}: ")


def _spread_text(value: Spread | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    if np.isnan(value.deviation):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.deviation:.{digits}f}"


def curves(record: Mapping, summary: Mapping) -> Any:
    """Clean and robust accuracy against the remaining MACs and SynOps, as a matplotlib figure."""
    from ccsrp_jax.reporting import comparison_figure  # matplotlib is slow to import

    return comparison_figure.curves(record, summary, DEFAULT)


def page(
    record: Mapping, summary: Mapping, descriptions: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """The self-contained HTML page.

    Args:
      record, summary: as of `summarize`.
      descriptions: what each method does and its source, by its name.
    """
    from ccsrp_jax.reporting import comparison_figure  # matplotlib is slow to import
    from ccsrp_jax.reporting.figure_style import FAINT, PAGE_COLORS

    methods = comparison_figure.method_order(summary)
    colors = comparison_figure.method_colors(summary, DEFAULT)
    weights = {row["method"] for row in summary["rows"] if row["weights"]}
    values = {
        "record": record,
        "rows": summary["rows"],
        "volumes": summary["volumes"],
        "finding": finding(summary),
        "default": DEFAULT,
        "panels": comparison_figure.curve_panels(record, summary, DEFAULT),
        "numbers": {method: number for number, method in enumerate(methods)},
        "colors": {m: PAGE_COLORS[colors.get(m, FAINT).lower()] for m in methods},
        "weights": weights,
        "descriptions": descriptions or {},
    }
    return render("comparison.html.j2", {"spread": _spread_text}, values)
