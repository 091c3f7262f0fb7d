"""SD-SNN on MNIST: prunes half of the connections while a spiking network trains.

    python experiments/sdsnn_mnist.py --data-dir DIR

For every seed a small network (two convolutions, one hidden dense layer) trains from fresh
weights with SD-SNN's developmental pruning, and once more without it, for as many epochs on the
same images with the same recipe; both are then evaluated on the test images, once. Training is
clean. Connections are counted as the source counts them, see `pruning.methods.sdsnn.connections`.

The published figure is 99.51 % accuracy with 49.83 % of the connections pruned, 0.05 points above
the dense network (Han et al., arXiv 2211.12219), for another network with other settings.
Run so far, with --train-images 8000 --epochs 12 --seeds 0: 0.9823 with 50.6 % of the connections
removed, 0.9847 dense, in 328 s on one core (results/sdsnn_mnist.json); not yet with the defaults.

Writes results/sdsnn_mnist.json, and updates it after every seed.
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ccsrp_jax import cli
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Dataset
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods.sdsnn import connections, sdsnn
from ccsrp_jax.pruning.problem import Callbacks, Problem, finetune
from ccsrp_jax.robustness import accuracy
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils import compilation, devices
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, check_number
from ccsrp_jax.utils.io import write_atomic

PUBLISHED = {"accuracy": 0.9951, "removed": 0.4983, "gain": 0.0005, "source": "arXiv 2211.12219"}


@dataclass(frozen=True)
class Settings:
    """Prune a network on MNIST while it trains, beside one that stays dense.

    Attributes:
      dataset: `mnist`, or another data set that the main job reads.
      data_dir: folder with prepared TFDS sets.
      train_images: use at most this many training images.
      test_images: use at most this many test images.
      removed: share of the prunable connections to remove.
      spines: S of SD-SNN, in epochs; by default the published 18 of 600 epochs, scaled.
      epochs: epochs of training, for both networks.
      seeds: random seeds of weights and batches; the splits are those of seed 0.
      batch_size: images per step.
      learning_rate: peak learning rate.
      time_steps: number of time steps, T.
      plan: filters of the convolutions, each followed by 2 x 2 average pooling.
      dense: neurons of the hidden layer.
      augmentation: `none`, `shift`, or `auto` for the default of the data set.
      release: follow SD-SNN's released code where it differs from the paper.
      out: file to write.
    """

    dataset: str = "mnist"
    data_dir: str | None = None
    train_images: int = 16000
    test_images: int | None = None
    removed: float = 0.5
    spines: int | None = None
    epochs: int = 18
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 100
    learning_rate: float = 3e-3
    time_steps: int = 4
    plan: tuple[int, ...] = (12, 24)
    dense: int = 128
    augmentation: Literal["auto", "none", "shift"] = "auto"
    release: bool = False
    out: Path = Path(__file__).parent / "results" / "sdsnn_mnist.json"


def run(settings: Settings, terminal: Terminal) -> dict:
    """Trains and prunes for every seed, evaluates, and writes the record.

    Raises:
      InputError: the data or a setting cannot be used.
    """
    check_number("removed", settings.removed, 0, 1, above=True)
    check_number("epochs", settings.epochs, 1)
    if settings.removed == 1 or not settings.seeds:
        raise InputError("removed 1 or no seeds leave nothing to test: give a share and seeds.")
    data = load(
        settings.dataset,
        data_dir=settings.data_dir,
        search_fraction=0.1,
        train_images=settings.train_images,
        test_images=settings.test_images,
        time_steps=settings.time_steps,
    )
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in settings.seeds:
        rows.append(both(settings, data, seed, terminal))
        record = {
            "what": "test accuracy of a network pruned by SD-SNN and of one that stays dense",
            "published": PUBLISHED,
            "rows": rows,
            "mean": {
                name: float(np.mean([row[name] for row in rows]))
                for name in ("dense_accuracy", "pruned_accuracy", "removed", "pruned_macs")
            },
            "epochs": settings.epochs,
            "images": data.record["sizes"],
            "footnote": data.record["footnote"],
            "settings": {
                name: value
                for name, value in dataclasses.asdict(settings).items()
                if name not in ("data_dir", "out")
            },
            **devices.machine(),
        }
        write_atomic(settings.out, (json.dumps(record, indent=1) + "\n").encode())
    mean = record["mean"]
    terminal.line(
        f"mean of {len(rows)}: {mean['pruned_accuracy']:.4f} with {mean['removed']:.4f} of the "
        f"connections removed, dense {mean['dense_accuracy']:.4f}; written to {settings.out}"
    )
    return record


def both(settings: Settings, data: Dataset, seed: int, terminal: Terminal) -> dict:
    """The dense and the pruned network of one seed, from the same weights and batches."""
    steps = [step for width in settings.plan for step in (width, "A")]
    architecture = zoo.plain(
        steps,
        data.test.images.shape[1:],
        data.classes,
        dense=(settings.dense,),
        time_steps=settings.time_steps,
        mean=data.mean,
        std=data.std,
        encoding=data.encoding,
    )
    key_init, key_train = jax.random.split(jax.random.key(seed))
    augmentation = settings.augmentation
    recipe = Recipe(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
    )
    problem = Problem(
        Classifier(architecture),
        zoo.init(key_init, architecture),
        data.train,
        data.search,
        Target(fraction=1 - settings.removed),
        recipe,
        PGD(),
        data.augmentation if augmentation == "auto" else augmentation,
    )
    began, seconds = time.perf_counter(), {}
    row: dict[str, Any] = {"seed": seed}
    whole, images = masking.ones(architecture), len(data.train.labels)
    for name in ("dense", "pruned"):
        with terminal.stage(f"seed {seed}, {name}", settings.epochs) as advance:
            callbacks = Callbacks(
                on_epoch=lambda epoch, advance=advance: advance(1, f"{epoch.accuracy:.4f}")
            )
            watched = dataclasses.replace(problem, callbacks=callbacks)
            if name == "dense":
                variables, masks = finetune(key_train, watched, watched.variables, whole)
            else:
                variables, masks, _ = sdsnn(
                    key_train,
                    watched,
                    spines=settings.spines,
                    measure="connections",
                    release=settings.release,
                )
        hits = accuracy.correct(problem.classifier, (variables, masks), data.test)
        row[f"{name}_accuracy"] = float(hits.mean())
        seconds[name] = time.perf_counter() - began
        began = time.perf_counter()
    cost = problem.cost("macs")
    row |= {
        "removed": connections(problem, masks),
        "pruned_macs": cost(masks) / cost(whole),
        "kept": {name: [int(np.sum(mask)), int(np.size(mask))] for name, mask in masks.items()},
        "trained_images": settings.epochs * images,
        "seconds": seconds,
    }
    terminal.line(
        f"seed {seed}: dense {row['dense_accuracy']:.4f}, pruned {row['pruned_accuracy']:.4f} with "
        f"{row['removed']:.4f} of the connections removed, {sum(seconds.values()):.0f} s"
    )
    return row


def main(args: list[str] | None = None) -> int:
    """Runs the script with these flags; returns the exit status."""
    compilation.enable_persistent_cache()
    flags = sys.argv[1:] if args is None else args
    return cli.guard(
        lambda: run(read_flags(Settings, flags), Terminal()),
        "--out",
        "the same command, from the start",
    )


if __name__ == "__main__":
    sys.exit(main())
