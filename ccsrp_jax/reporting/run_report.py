"""The report of a pruning run, as a self-contained HTML page made from its directory alone."""

import json
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from ccsrp_jax.reporting.run_summary import (
    DASH,
    Row,
    attack_text,
    finding,
    format_number,
    model_text,
    number,
    ratio,
    remaining_macs,
    robustness_records,
    round_name,
    search_attack,
    test_attack,
    test_text,
)
from ccsrp_jax.reporting.templates import render
from ccsrp_jax.reporting.training_difference import training_difference
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.io import as_path, write_atomic
from ccsrp_jax.utils.stats import wilson_interval

QUANTITIES = (  # key of a network's measurements, name, unit, format
    ("accuracy", "Accuracy", "fraction of test images", ".3f"),
    ("robust_accuracy", "Robust accuracy", "fraction of test images, attacked", ".3f"),
    ("pgd_accuracy", "Under PGD alone", "fraction of test images", ".3f"),
    ("macs", "MACs", "per image and time step", ",.0f"),
    ("params", "Parameters", "", ",.0f"),
    ("synops", "SynOps", "per image, all time steps", ",.0f"),
    ("energy_nj", "Energy", "nJ per image, estimated for 45 nm", ",.1f"),
    ("latency_ms", "Latency", "ms", ",.2f"),
)
FILTERS = {
    "number": format_number,
    "known": lambda x: DASH if x is None else x,
    "figure": lambda x: DASH if x is None else format(x, ".3g"),  # also of inf and nan
}


def write(run_dir: str | PathLike[str]) -> Path:
    """Writes tradeoff.png, filters.png, training.png and report.html into a run directory.

    Also robustness.png, if robustness was evaluated. Reads config.json, summary.json,
    metrics.jsonl and archive.jsonl. All results are complete before the first is written, and
    each is written atomically.

    Returns:
      The path of report.html.

    Raises:
      InputError: a file is missing or is not JSON, or the archive is empty.
    """
    run_dir = as_path(run_dir)
    run = _read_run(run_dir)
    pictures = _pictures(run)
    text = _to_html(run)
    for name, data in pictures.items():
        write_atomic(run_dir / f"{name}.png", data)
    write_atomic(run_dir / "report.html", text.encode(errors="backslashreplace"))
    return run_dir / "report.html"


def page(run_dir: str | PathLike[str]) -> str:
    """The page that `write` writes, alone; it raises the same errors."""
    return _to_html(_read_run(as_path(run_dir)))


class _Run(NamedTuple):
    """The records of a run."""

    config: Row
    summary: Row
    archive: list[Row]  # in the order of its rounds
    metrics: list[Row]


def _read_run(run_dir: Path) -> _Run:
    [config] = _read(run_dir / "config.json", lines=False)
    [summary] = _read(run_dir / "summary.json", lines=False)
    metrics = _read(run_dir / "metrics.jsonl", lines=True)
    archive = _read(run_dir / "archive.jsonl", lines=True)
    if not archive:
        raise InputError(
            f"{run_dir / 'archive.jsonl'} holds no trade-off point: expected at least "
            "the dense network; give the directory of a finished run."
        )
    archive.sort(key=lambda row: row.get("round") or 0)
    return _Run(config, summary, archive, metrics)


def _pictures(run: _Run) -> dict[str, bytes]:
    """The figures as PNG images, by name."""
    from ccsrp_jax.reporting.figure_style import to_png  # matplotlib is slow to import
    from ccsrp_jax.reporting.robustness_figure import robustness_figure
    from ccsrp_jax.reporting.run_figures import filters_figure, training_figure
    from ccsrp_jax.reporting.tradeoff_figure import tradeoff_figure

    pictures = {
        "tradeoff": to_png(tradeoff_figure(run.archive, run.summary)),
        "filters": to_png(filters_figure(run.archive)),
        "training": to_png(training_figure(run.metrics)),
    }
    if records := robustness_records(run.summary):
        pictures["robustness"] = to_png(robustness_figure(records))
    return pictures


def _to_html(run: _Run) -> str:
    from ccsrp_jax.reporting.run_panels import run_panels  # matplotlib is slow to import

    config, summary, archive, metrics = run
    records = robustness_records(summary)
    widths: Row = {}
    for point in archive:
        widths |= dict.fromkeys(point.get("kept") or {}) | (point.get("filters") or {})
    values = {
        "summary": summary,
        "dense": summary.get("dense") or {},
        "pruned": summary.get("pruned") or {},
        "attack": test_attack(summary),
        "attack_text": test_text(summary),
        "search_attack": search_attack(summary),
        "search_text": attack_text(search_attack(summary)),
        "records": records,
        "alone": any(a["alone"] is not None for r in records.values() for a in r["attacks"]),
        "natural": any(record["natural"] for record in records.values()),
        "shared": any(row.get("shared_accuracy") is not None for row in archive),
        "gaps": any("shared_gap" in row for row in archive),
        "finding": f"{finding(summary)} {training_difference(config, summary)}".strip(),
        "model": model_text(config, summary),
        "widths": widths,
        "quantities": QUANTITIES,
        "ratio": ratio,
        "interval": lambda share, images: wilson_interval(number(share), number(images)),
        "points": list(
            zip(map(round_name, archive), remaining_macs(archive), archive, strict=True)
        ),
        "panels": run_panels(archive, summary, metrics),
        "config": json.dumps(config, indent=2, ensure_ascii=False),
    }
    return render("report.html.j2", FILTERS, values)


def _read(path: Path, lines: bool) -> list[Row]:
    """The JSON object in a file, or that in each of its lines."""
    if not path.is_file():
        raise InputError(f"{path} is missing: give the directory of a finished run.")
    try:
        text = path.read_text("utf-8")
        parts = text.split("\n") if lines else [text]
        rows = [json.loads(part) for part in parts if part.strip() or not lines]
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON ({error}): give the directory of a finished run."
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} holds no JSON object: give the directory of a finished run.")
    return rows
