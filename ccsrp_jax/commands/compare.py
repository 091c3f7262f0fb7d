"""`ccsrp compare`: every pruning method on one trained network, at equal budgets.

    ccsrp run --rounds 0 --run-dir runs/dense
    ccsrp compare runs/dense

The first command trains the network; the second prunes it with every method, for every target and
seed. All methods have the same images and gradient steps to train weights; what they compute in
addition, to decide what is pruned, is reported as search. Every cell of the table is a file, so the
same command resumes where it was interrupted, and commands with different --seeds or --methods may
share a directory and run at the same time. `methods.json`, `curves.png` and `index.html` are
made from all cells that exist; --only-report makes them without computing any. `networks/` has
the pruned networks, for `ccsrp robustness`.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ccsrp_jax.commands.compare_cells import Stage, cell_name, fill, measure
from ccsrp_jax.commands.compare_settings import SPLITS, Settings
from ccsrp_jax.data import provenance, splits
from ccsrp_jax.networks import masks, serialization
from ccsrp_jax.pipeline import final_evaluation, stages
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.run import model_name
from ccsrp_jax.pruning.descriptions import describe
from ccsrp_jax.reporting import comparison_report, figure_style
from ccsrp_jax.utils import compilation, devices, digests, io
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.guard import guard
from ccsrp_jax.utils.io import write_atomic
from ccsrp_jax.utils.locks import locked


def main(flags: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command with these flags; returns the exit status."""
    compilation.enable_persistent_cache()
    given = sys.argv[1:] if flags is None else flags
    return guard(lambda: _run(read_flags(Settings, given, prog=prog)), "--out", "it")


def _run(settings: Settings) -> None:
    terminal = Terminal()
    if not settings.only_report:
        stage = _prepare(settings)
        with locked(settings.folder, terminal.line, flag="--out", again="it"):
            fill(stage, terminal)
    report(settings.folder)


def _prepare(settings: Settings) -> Stage:
    """Reads the run, and measures its dense network if that has not been done."""
    run, folder = Path(settings.run), settings.folder
    if not (run / "config.json").exists():
        raise InputError(
            f"{run} holds no run of the main job: train a network with "
            f"`ccsrp run --rounds 0 --run-dir {run}` first."
        )
    job = parse(["--config", str(run / "config.json")])
    dense = run / "networks" / "round00.safetensors"
    architecture, variables, origin = serialization.load_with_provenance(dense)
    loaded = stages.data_of(replace(job, data_dir=settings.data_dir))
    if origin is not None:
        provenance.check(str(dense), origin, loaded.record, also_search=True)
    for name in SPLITS:
        if most := getattr(settings, f"{name}_images"):
            split = splits.Split(*(part[:most] for part in getattr(loaded, name)))
            loaded = loaded._replace(**{name: split})
    stage = Stage(settings, job, loaded, architecture, variables, origin)
    _unpack(folder)
    about = folder / "about.json"
    inputs = {
        "network": digests.sha256_file(dense),
        "splits": [digests.sha256_arrays(getattr(loaded, name)) for name in SPLITS],
    }
    if about.exists():
        _check_about(folder, io.read_json(about), settings, inputs)
        return stage
    folder.mkdir(parents=True, exist_ok=True)
    measured = measure(stage, variables, masks.ones(architecture))
    record = {
        "settings": settings.fixed,
        "dataset": loaded.name,
        "model": model_name(job, architecture),
        "eps": job.attack.eps,
        "images": {name: len(getattr(loaded, name).labels) for name in SPLITS},
        "batch_size": job.training.batch_size,
        "footnote": loaded.record["footnote"],
        "caveat": final_evaluation.SUITE_CAVEAT[settings.suite],
        "dense": measured,
        "inputs": inputs,
        **devices.machine(),
    }
    io.write_json(about, record)
    return stage


def _check_about(folder: Path, about: dict, settings: Settings, inputs: dict) -> None:
    """Refuses to add cells to those of other settings, of another network or of other data."""
    if about.get("settings") != settings.fixed:
        raise InputError(
            f"{folder} was started with other settings ({about.get('settings')}): use them, or "
            "choose another --out."
        )
    # earlier versions recorded none
    if about.get("inputs", inputs) != inputs:
        raise InputError(
            f"{folder} was started with another dense network or other data than those of "
            f"{settings.run} now: put them back, or choose another --out."
        )


def _unpack(folder: Path) -> None:
    """Writes a table's cells as files if there are none, so that its comparison can continue."""
    table, cells, part = folder / "methods.json", folder / "cells", folder / "cells.part"
    if cells.exists() or not table.exists():
        return
    record = io.read_json(table)
    part.mkdir(exist_ok=True)
    for row in record.pop("cells"):
        name = cell_name(row["method"], row["target"], row["seed"])
        io.write_json(part / f"{name}.json", digests.with_digest(row))
    io.write_json(folder / "about.json", {k: v for k, v in record.items() if k != "finding"})
    part.rename(cells)


def _read_cell(path: Path) -> dict:
    try:
        return digests.without_digest(io.read_json(path))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete it to measure it again.") from error


def report(folder: Path) -> None:
    """Writes methods.json from the cells in a directory, and index.html and curves.png from it."""
    about, table = folder / "about.json", folder / "methods.json"
    cells = [_read_cell(path) for path in sorted((folder / "cells").glob("[!.]*.json"))]
    if about.exists() and cells:
        record = io.read_json(about) | {"cells": cells}
    elif table.exists():  # a table without its cells
        record = io.read_json(table)
    else:
        raise InputError(f"{folder} holds no comparison: run one first, without --only-report.")
    summary = comparison_report.summarize(record)
    said = {"finding": comparison_report.finding(summary)}
    curves = figure_style.to_png(comparison_report.curves(record, summary))
    write_atomic(folder / "curves.png", curves)
    descriptions = {row["method"]: describe(row["method"]) for row in summary["rows"]}
    page = comparison_report.page(record, summary, descriptions)
    write_atomic(folder / "index.html", page.encode())
    io.write_json(table, said | {k: v for k, v in record.items() if k != "finding"})
    print(said["finding"])
