"""`ccsrp rank`: methods over several networks: mean ranks, and how often the default is ahead.

    ccsrp rank first/methods.json second/methods.json third/methods.json

Reads the tables of `ccsrp compare`, one for each network, and takes networks instead of seeds as
the sample: seeds show the variance of fine-tuning and search on one network, not the variance
between networks. Writes networks.json.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.reporting import comparison
from ccsrp_jax.reporting.comparison_report import DEFAULT
from ccsrp_jax.utils import io
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.guard import guard


@dataclass(frozen=True)
class Settings:
    """Compare methods over networks.

    Attributes:
      tables: methods.json of comparisons, a network each, with the same targets.
      out: the file to write.
    """

    tables: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: str = "networks.json"


def main(flags: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command with these flags; returns the exit status."""
    given = sys.argv[1:] if flags is None else flags
    return guard(lambda: _run(read_flags(Settings, given, prog=prog)), "--out", "it")


def _run(settings: Settings) -> None:
    records = [_read(Path(path)) for path in settings.tables]
    result: dict[str, list] = {
        "networks": [path.parent.name for path in map(Path, settings.tables)]
    }
    for cost in ("macs", "synops"):
        found = comparison.rank_over_networks(records, DEFAULT, cost)
        result[cost] = [_plain(row) for row in found]
        _show(found, cost)
    io.write_json(Path(settings.out), result)


def _read(path: Path) -> dict:
    if not path.exists():
        raise InputError(f"there is no {path}: give methods.json of finished comparisons.")
    record = io.read_json(path)
    if not isinstance(record, dict) or not {"cells", "dense"} <= record.keys():
        raise InputError(f"{path} is no table of methods: give what `ccsrp compare` wrote.")
    return record


def _plain(row: comparison.MethodRank) -> dict:
    """None for nan, which JSON does not have."""
    return row._asdict() | {"p": None if math.isnan(row.p) else row.p}


def _show(found: list[comparison.MethodRank], cost: str) -> None:
    table = Table(title=f"hypervolume with {cost}, over networks")
    for title in ("method", "mean rank", "ranks", f"{DEFAULT} ahead", "its mean lead", "p"):
        table.add_column(title)
    for row in found:
        ranks = " ".join(f"{rank:g}" for rank in row.ranks)
        ahead = f"{row.behind} of {len(row.ranks)}"
        table.add_row(
            row.method, f"{row.mean_rank:.2f}", ranks, ahead, f"{row.lead:+.4f}", f"{row.p:.2g}"
        )
    Console().print(table)
