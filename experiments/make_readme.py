"""Generates experiments/README.md from the results and a template.

    python experiments/make_readme.py

Reads the JSON files under experiments/results and fills in experiments/README.md.j2. Run it after
results have changed; a test checks that the committed page is up to date.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ccsrp_jax.reporting.comparison_report import DEFAULT, summarize

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PAGE, TEMPLATE = FOLDER / "README.md", FOLDER / "README.md.j2"
TABLES = ("mnist", "digits", "cifar10")  # comparisons of all methods, in the order of columns
TARGETS = (0.5, 0.25)


class Comparison:
    """The parts of a table of `compare_methods.py` that the page quotes."""

    def __init__(self, record: Mapping) -> None:
        summary = summarize(record)
        self.cells: Sequence[Mapping] = record["cells"]
        self.rows = {(row["method"], row["target"]): row for row in summary["rows"]}
        self.volumes = {volume["method"]: volume for volume in summary["volumes"]}

    @property
    def filters(self) -> list[str]:
        """Methods that remove filters, without ablations, in descending order of hypervolume."""
        return [
            name
            for name, volume in self.volumes.items()
            if volume["macs"] and not volume["weights"] and ": " not in name
        ]

    @property
    def weights(self) -> list[str]:
        """Methods that remove single weights, in descending order of robust accuracy at half."""
        found = dict.fromkeys(cell["method"] for cell in self.cells if cell["weights"])
        return sorted(found, key=lambda name: -self.rows[name, 0.5]["robust_accuracy"].mean)

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.filters if name != DEFAULT]

    @property
    def rank(self) -> int:
        """The default's rank by hypervolume."""
        return 1 + self.filters.index(DEFAULT)

    def volume(self, method: str) -> float:
        return self.volumes[method]["macs"].mean

    def volume_text(self, method: str) -> str:
        spread = self.volumes[method]["macs"]
        deviation = "" if spread.seeds < 2 else f" ± {spread.deviation:.3f}"
        return f"{spread.mean:.3f}{deviation}"

    def scores(self, method: str, target: float) -> str:
        """Means of accuracy and robust accuracy; a dash for cells that were not measured."""
        row = self.rows.get((method, target))
        if row is None:
            return "–"
        return f"{row['accuracy'].mean:.3f} / {row['robust_accuracy'].mean:.3f}"

    def passes(self, method: str, target: float = 0.25) -> str:
        """Forward and backward passes of the search."""
        row = self.rows[method, target]
        return f"{row['forward'].mean:,.0f} / {row['backward'].mean:,.0f}"

    def cell(self, method: str, target: float, seed: int) -> Mapping:
        [found] = [
            cell
            for cell in self.cells
            if (cell["method"], cell["target"], cell["seed"]) == (method, target, seed)
        ]
        return found

    def surely_below(self) -> list[str]:
        """Rivals below the default on every seed, and by a paired t-test at 5 %."""
        leads = {name: self.volumes[name]["lead"] for name in self.rivals}
        return [
            name for name, lead in leads.items() if lead.wins == lead.seeds > 1 and lead.p < 0.05
        ]

    def above_by_synops(self) -> list[str]:
        """Rivals above the default where SynOps are the cost."""
        return [name for name in self.rivals if self.volumes[name]["lead_synops"].difference < 0]


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def context() -> dict[str, Any]:
    """The values that the template uses."""
    ranking = read("methods/networks")
    methods = {name: Comparison(read(f"methods/{name}/methods")) for name in ranking["networks"]}
    own = next(row for row in ranking["macs"] if row["method"] == DEFAULT)
    rivals = [row for row in ranking["macs"] if row is not own]
    return {
        "runs": {name: read(f"{name}/summary") for name in ("digits", "cifar10")},
        "methods": methods,
        "tables": [methods[name] for name in TABLES],
        "targets": TARGETS,
        "ranking": ranking,
        "ranks_of_default": dict(zip(ranking["networks"], own["ranks"], strict=True)),
        "rivals": rivals,
        "rivals_surely_behind": [row for row in rivals if row["lead"] > 0 and row["p"] < 0.05],
        "rivals_surely_ahead": [row for row in rivals if row["lead"] < 0 and row["p"] < 0.05],
        "standard": {
            name: read(f"methods/mnist/standard-{name}") for name in (DEFAULT, "slimming")
        },
        "races": [row for row in read("racing")["rows"] if row["confidence"] == 0.95],
        "race_images": read("racing")["images"],
        **{
            name: read(name)
            for name in (
                "attack_speed",
                "compact_latency",
                "compare_autoattack",
                "certified",
                "compilation",
                "kill_campaign",
                "population",
                "roofline",
                "scaling",
                "sdsnn_mnist",
                "throughput",
            )
        },
    }


def render() -> str:
    """The page, generated from the results."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["fixed"] = lambda value, digits=3: f"{value:,.{digits}f}"
    environment.filters["percent"] = lambda value, digits=0: f"{100 * value:.{digits}f}"
    return environment.from_string(TEMPLATE.read_text()).render(context())


def main() -> None:
    PAGE.write_text(render())
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
