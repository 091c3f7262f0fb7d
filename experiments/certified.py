"""Robust accuracy as an interval: certified from below, attacked from above.

    python experiments/certified.py --data-dir DIR

For each data set, a small network is trained on PGD examples alone, and with the certified loss of
several weights (`Recipe.certified`); the weight with the highest certified accuracy on held-out
images is taken. That network is pruned to half of its MACs by several criteria, each fine-tuned
with the same loss; again, the one with the highest certified accuracy on held-out images is taken.
Then the test images are used, once: certified accuracy by interval bounds and the worst case of a
suite of attacks, of the network trained on PGD examples alone, of the dense and of the pruned one.
No certified image may be broken by an attack; the record counts those that are.

Run so far: digits at eps 1/32, in 20 minutes on two cores with other work: dense [0.674, 0.850],
pruned by taylor [0.699, 0.805], trained on PGD examples alone [0.000, 0.855]. MNIST has not been
run.

Writes results/certified.json after every data set, which replaces what it holds of that one.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from ccsrp_jax import cli
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Dataset, Split
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.pruning import criteria
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.criteria import by_score
from ccsrp_jax.pruning.problem import Callbacks, Problem
from ccsrp_jax.robustness import accuracy
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.interval_certificates import certified
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils import compilation, devices
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, unknown
from ccsrp_jax.utils.io import read_json, write_json

CRITERIA = {
    "stability": criteria.stability,
    "l1": criteria.l1,
    "taylor": criteria.taylor,
    "random": criteria.at_random,
}


class Case(NamedTuple):
    """A data set, the network for it, and how long it is trained."""

    plan: tuple[int | str, ...]
    dense: tuple[int, ...]
    time_steps: int
    eps: float
    train_images: int | None
    test_images: int | None
    batch_size: int
    learning_rate: float
    epochs: int
    finetune_epochs: int


CASES = {
    "digits": Case((8, "A", 16), (32,), 2, 1 / 32, None, None, 64, 5e-3, 100, 20),
    "mnist": Case((6, "A", 12, "A"), (32,), 2, 0.05, 8000, 1000, 100, 5e-3, 40, 10),
}


class Network(NamedTuple):
    """A trained network."""

    classifier: Classifier
    variables: dict
    masks: masking.MaskTree

    def scores(self, split: Split, eps: float, key: jax.Array) -> dict[str, float]:
        """Accuracy, certified accuracy and accuracy under PGD-20."""
        state = self.variables, self.masks
        pgd = accuracy.correct(self.classifier, state, split, attack=PGD(eps, 20), key=key)
        return {
            "accuracy": float(accuracy.correct(self.classifier, state, split).mean()),
            "certified": float(certified(self.classifier, state, split, eps).mean()),
            "pgd": float(pgd.mean()),
        }


@dataclass(frozen=True)
class Settings:
    """Certified and attacked accuracy of dense and pruned networks.

    Attributes:
      only: data sets, of `digits` and `mnist`.
      data_dir: folder with prepared TFDS sets.
      weights: of the certified loss, from which one is selected.
      suite: of attacks for the worst case.
      target: MACs that pruning leaves, as a share.
      seed: of weights, batches and attacks; the splits are those of seed 0.
      epochs: of training instead of the data set's own, for trial runs; a third of them fine-tunes.
      out: file to write.
    """

    only: tuple[str, ...] = tuple(CASES)
    data_dir: str | None = None
    weights: tuple[float, ...] = (0.5, 0.8)
    suite: Literal["pgd", "quick", "standard"] = "quick"
    target: float = 0.5
    seed: int = 0
    epochs: int | None = None
    out: Path = Path(__file__).parent / "results" / "certified.json"


def run(settings: Settings, terminal: Terminal) -> dict:
    """Trains, prunes, selects and evaluates on every data set, and writes the record.

    Raises:
      InputError: the data or a setting cannot be used.
    """
    for name in settings.only:
        if name not in CASES:
            raise unknown("data set", name, CASES)
    if not settings.weights:
        raise InputError("no weights of the certified loss are given: give one or more.")
    record = {
        "what": "robust accuracy: certified by interval bounds, and the worst case of attacks",
        "data": read_json(settings.out)["data"] if settings.out.exists() else {},
        **devices.machine(),
    }
    for name in settings.only:
        case = CASES[name]
        if settings.epochs is not None:
            epochs = settings.epochs
            case = case._replace(epochs=epochs, finetune_epochs=max(epochs // 3, 1))
        record["data"][name] = intervals(settings, name, case, terminal)
        write_json(settings.out, record)
    terminal.line(f"written to {settings.out}")
    return record


def intervals(settings: Settings, name: str, case: Case, terminal: Terminal) -> dict:
    """The record of one data set."""
    began = time.perf_counter()
    data = load(
        name,
        data_dir=settings.data_dir,
        search_fraction=0.2,
        train_images=case.train_images,
        test_images=case.test_images,
        time_steps=case.time_steps,
    )
    key, key_test = jax.random.split(jax.random.key(settings.seed))
    score = partial(Network.scores, split=data.search, eps=case.eps, key=key)
    found: dict = {"eps": case.eps, "case": case._asdict(), "images": data.record["sizes"]}
    found["footnote"] = data.record["footnote"]
    found["settings"] = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in ("data_dir", "out", "only")
    }
    trained = {}
    for weight in (0.0, *settings.weights):
        trained[weight] = trained_network(key, data, case, weight, terminal)
        found.setdefault("weights", []).append({"weight": weight} | score(trained[weight]))
        terminal.line(f"{name}: {found['weights'][-1]}")
    best = max(found["weights"][1:], key=lambda row: row["certified"])
    found["weight"], dense = best["weight"], trained[best["weight"]]
    pruned = {}
    for criterion, scoring in CRITERIA.items():
        pruned[criterion] = pruned_network(
            key, data, case, dense, best["weight"], scoring, settings.target, terminal, criterion
        )
        found.setdefault("criteria", []).append({"criterion": criterion} | score(pruned[criterion]))
        terminal.line(f"{name}: {found['criteria'][-1]}")
    found["criterion"] = max(found["criteria"], key=lambda row: row["certified"])["criterion"]
    networks = {
        "adversarial": trained[0.0],
        "dense": dense,
        "pruned": pruned[found["criterion"]],
    }
    found["test"] = {
        which: tested(network, data.test, case.eps, settings.suite, key_test)
        for which, network in networks.items()
    }
    for which, row in found["test"].items():
        terminal.line(
            f"{name}, {which}: accuracy {row['accuracy']:.3f}, robust accuracy in "
            f"[{row['certified']:.3f}, {row['robust_accuracy']:.3f}]"
        )
    found["seconds"] = time.perf_counter() - began
    return found


def recipe(case: Case, weight: float, epochs: int, *, finetune: bool) -> Recipe:
    """Of the dense network, or of fine-tuning, whose radius is full from the start."""
    return Recipe(
        epochs=epochs,
        batch_size=case.batch_size,
        learning_rate=case.learning_rate,
        adversarial=PGD(case.eps, 1),
        clean_epochs=0 if finetune else epochs // 10,
        certified=weight,
        certified_ramp=0.0 if finetune else 0.7,
    )


def trained_network(
    key: jax.Array, data: Dataset, case: Case, weight: float, terminal: Terminal
) -> Network:
    """A network trained on PGD examples and, if the weight is not 0, with the certified loss."""
    architecture = zoo.plain(
        case.plan,
        data.test.images.shape[1:],
        data.classes,
        dense=case.dense,
        time_steps=case.time_steps,
        mean=data.mean,
        std=data.std,
    )
    key_init, key_train = jax.random.split(key)
    classifier, whole = Classifier(architecture), masking.ones(architecture)
    settings = recipe(case, weight, case.epochs, finetune=False)
    with terminal.stage(f"{data.name}, weight {weight}", case.epochs) as advance:
        variables = train(
            key_train,
            classifier,
            zoo.init(key_init, architecture),
            whole,
            data.train,
            settings,
            on_epoch=lambda epoch: advance(1, f"{epoch.loss:.3f}"),
        )
    return Network(classifier, variables, whole)


def pruned_network(
    key: jax.Array,
    data: Dataset,
    case: Case,
    dense: Network,
    weight: float,
    criterion: Callable,
    target: float,
    terminal: Terminal,
    name: str,
) -> Network:
    """The dense network without the filters that a criterion ranks lowest, fine-tuned."""
    with terminal.stage(f"{data.name}, {name}", case.finetune_epochs) as advance:
        problem = Problem(
            dense.classifier,
            dense.variables,
            data.train,
            data.search,
            Target("macs", target),
            recipe(case, weight, case.finetune_epochs, finetune=True),
            PGD(case.eps, 10),
            callbacks=Callbacks(on_epoch=lambda epoch: advance(1, f"{epoch.loss:.3f}")),
        )
        variables, kept, _ = by_score(key, problem, criterion=criterion)
    return Network(dense.classifier, variables, kept)


def tested(network: Network, split: Split, eps: float, suite: str, key: jax.Array) -> dict:
    """Certified accuracy and the worst case of a suite on test images."""
    state = network.variables, network.masks
    safe = certified(network.classifier, state, split, eps)
    assessment = evaluate(
        network.classifier, state, split, eps=eps, key=key, suite=suite, natural=()
    )
    outcome = assessment.outcome
    radii = [0.25 * eps, 0.5 * eps, 0.75 * eps]
    kept = {group: [int(np.sum(m)), int(np.size(m))] for group, m in network.masks.items()}
    return {
        "accuracy": outcome.accuracy,
        "certified": float(safe.mean()),
        "robust_accuracy": outcome.robust_accuracy,
        "certified_and_broken": int((safe & ~outcome.robust).sum()),
        "headline": assessment.headline,
        "reliable": assessment.verdict.reliable,
        "images": len(split.labels),
        "certified_curve": {
            f"{radius:.6g}": float(certified(network.classifier, state, split, radius).mean())
            for radius in radii
        },
        "kept": kept,
    }


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
