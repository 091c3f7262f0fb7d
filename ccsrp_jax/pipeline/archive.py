"""The archive of a run: the dense network and that of every round, measured on search images."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

import jax

from ccsrp_jax.data import provenance
from ccsrp_jax.networks import compaction, cost, masks, serialization
from ccsrp_jax.pipeline.checkpoints import Checkpoints
from ccsrp_jax.pipeline.config import settings
from ccsrp_jax.pipeline.run_dir import (
    ARCHIVE,
    METRICS,
    NETWORKS,
    check_in_place,
    record_digest,
    verify_digest,
)
from ccsrp_jax.pipeline.stages import Run, State, accuracies
from ccsrp_jax.utils import io


class Archive:
    """Networks of a run so far; each is saved, and checkpointed with its row, when it is added.

    Attributes:
      rows: one of each network, by round, 0 for the dense one.
      started: when the run would have started, had it not been interrupted.
    """

    def __init__(self, job: Run, checkpoints: Checkpoints, rows: list[dict], started: float):
        self.rows, self.started = rows, started
        self._job, self._checkpoints = job, checkpoints

    def add(self, number: int, state: State, estimate: dict | None = None) -> None:
        """Measures and saves the network of a round, and checkpoints its state.

        Args:
          number: of the round.
          state: the network.
          estimate: values of the row that the round itself measured.
        """
        folder = self._job.folder
        check_in_place(folder)
        self.rows.append(_row(self._job, state, number, estimate or {}))
        record_digest(folder, str(network_file(self._job, number).relative_to(folder)))
        record = {
            "archive": self.rows,
            "seconds": time.perf_counter() - self.started,
            "settings": settings(self._job.config),
            "metrics": io.mark(folder / METRICS),
        }
        self._checkpoints.save(number, state, record)
        io.write_rows(folder / ARCHIVE, self.rows)

    def choose(self) -> int:
        """Chooses a round, marks it in archive.jsonl and saves its network as the run's result."""
        job = self._job
        in_rounds = job.config.method == "rounds"  # other methods prune one network
        number = choose(self.rows, job.config.tolerance) if in_rounds else 1
        rows = [row | {"chosen": row["round"] == number} for row in self.rows]
        io.write_rows(job.folder / ARCHIVE, rows)
        verify_networks(job, [0, number])
        network = serialization.load_with_provenance(network_file(job, number))
        serialization.save(job.folder / "pruned.safetensors", *network)
        return number


def choose(archive: list[dict], tolerance: float) -> int:
    """The round with the fewest MACs that stays within the tolerance of the dense network.

    Both accuracies are those on the search images; the dense network always qualifies.
    """
    dense = archive[0]
    good = [
        row
        for row in archive
        if row["accuracy"] >= dense["accuracy"] - tolerance
        and row["robust_accuracy"] >= dense["robust_accuracy"] - tolerance
    ]
    return min(good, key=lambda row: row["macs"])["round"]


def verify_networks(job: Run, rounds: Iterable[int]) -> None:
    """Checks that the networks of rounds are what the run saved.

    Raises:
      InputError: one is missing or damaged.
    """
    paths = [network_file(job, number) for number in rounds]
    verify_digest(job.folder, *(str(path.relative_to(job.folder)) for path in paths))


def network_file(job: Run, number: int) -> Path:
    """Where the compact network of a round is saved."""
    return job.folder / NETWORKS / f"round{number:02d}.safetensors"


def _row(job: Run, state: State, number: int, estimate: dict) -> dict:
    """A network's accuracies and costs on the search images; the network is saved."""
    architecture, search = job.classifier.architecture, job.data.search
    key = jax.random.fold_in(job.key, 3000 + number)
    name = f"round {number}" if number else "dense"
    with job.terminal.stage(f"{name}: attack", len(search.labels)) as advance:
        accuracy, robust = accuracies(job, state, job.config.test_attack, key, progress=advance)
    row = {
        "round": number,
        "kept": masks.widths(architecture, state.masks),
        "filters": masks.widths(architecture, None),
        "accuracy": accuracy,
        "robust_accuracy": robust,
        **cost.costs(architecture, *state, search, jax.random.fold_in(job.key, 6000 + number)),
        **dict.fromkeys(("shared_accuracy", "white_box_accuracy", "shared_gap")),
        **estimate,
    }
    path = network_file(job, number)
    path.parent.mkdir(exist_ok=True)
    network = compaction.compact(architecture, state.variables, state.masks)
    origin = job.provenance
    if number:
        recipe = dataclasses.asdict(job.config.finetune_recipe)
        origin = provenance.trained_further(origin, recipe)
    serialization.save(path, *network, origin)
    kept = " ".join(f"{n}/{row['filters'][group]}" for group, n in row["kept"].items())
    job.terminal.line(
        f"{name:<9} search accuracy {row['accuracy']:.3f}  "
        f"PGD-{job.config.attack.test_steps} {row['robust_accuracy']:.3f}  "
        f"MACs {row['macs']:,}  filters {kept}"
    )
    return row
