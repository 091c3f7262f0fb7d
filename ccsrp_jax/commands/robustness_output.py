"""Where `ccsrp robustness` writes its report, and what it prints."""

import json
from pathlib import Path

from ccsrp_jax.robustness.evaluation import Assessment
from ccsrp_jax.utils.console import Terminal


def report_path(folder: Path, record: dict, digest: str) -> Path:
    """Where to write a report, so that it replaces none of another network or other settings.

    The first report in a folder is robustness.json; others have the name of their network before
    that, and a digest of their settings if that is taken too.
    """
    stem = Path(record["network"]).stem
    names = ("robustness.json", f"{stem}.robustness.json", f"{stem}.{digest}.robustness.json")
    for name in names[:-1]:
        path = folder / name
        if not path.exists() or _same_report(path, record):
            return path
    return folder / names[-1]


def _same_report(path: Path, record: dict) -> bool:
    try:
        found = json.loads(path.read_bytes())
        return all(found[key] == record[key] for key in ("network", "settings"))
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not ours, or damaged: it stays


def show(terminal: Terminal, found: Assessment, record: dict) -> None:
    """Prints the outcome of every attack and check, and the headline."""
    terminal.table(
        f"{record['network']}, {record['images']} images",
        ["attack", "through", "attacked", "broken", "accuracy left", "alone", "seconds"],
        [
            [
                row.name,
                row.source,
                str(row.attacked),
                str(row.broken),
                f"{row.accuracy:.3f}",
                "" if row.alone is None else f"{row.alone:.3f}",
                f"{row.seconds:.1f}",
            ]
            for row in found.outcome.results
        ],
    )
    terminal.table(
        "audit",
        ["check", "figure", "limit", ""],
        [
            [
                name,
                f"{figure:.3g}",
                f"{limit:.3g}",
                "-" if passed is None else "ok" if passed else "no",
            ]
            for name, passed, figure, limit, _ in found.verdict.checks
        ],
    )
    natural = ", ".join(f"{name} {value:.3f}" for name, value in found.natural.items())
    terminal.line(f"accuracy {found.outcome.accuracy:.3f}; {natural}")
    if bound := record["certified_linf"]:
        if bound["accuracy"] is None:
            terminal.line(f"not certified: {bound['reason']}")
        else:
            terminal.line(
                f"robust accuracy in [{bound['accuracy']:.3f}, {record['robust_accuracy']:.3f}]: "
                "certified by interval bounds, worst case of the attacks"
            )
    if error := record.get("corruption_error"):
        baseline = Path(record["settings"]["baseline"]).name
        figure = error["reason"] if error["mean"] is None else f"{error['mean']:.3f}"
        terminal.line(f"mean corruption error relative to {baseline}: {figure}")
    if certified := record.get("certified"):
        curve = zip(certified["radii"], certified["accuracy"], strict=True)
        points = ", ".join(f"{radius:.3g}: {value:.3f}" for radius, value in list(curve)[::4])
        terminal.line(f"certified accuracy by L2 radius: {points}")
    terminal.line(found.headline)
