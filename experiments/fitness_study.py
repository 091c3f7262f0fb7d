"""Which fitness, computed without training, ranks candidates as their fine-tuned networks do?

    python experiments/fitness_study.py --data-dir DIR

On each of three networks, candidates of equal cost are drawn: random divisions of the budget over
groups, with the filters of highest Taylor score in each, and, at fixed widths, masks between those
of highest score and random ones. Every candidate is given the values of all fitness measures right
after pruning, with the statistics of batch norm as they were and refreshed under its masks; then it
is fine-tuned, and its robust accuracy (PGD-20) is measured. Spearman's rank correlation of each
measure with that robust accuracy is what a search would gain from it.

No test image is used, as defaults are chosen by this study: robust accuracy is that on images which
neither training nor fine-tuning nor any measure has seen, drawn from the training images.

Writes results/fitness_study.json after every candidate and goes on from it, with the dense networks
in --networks. Has not been run to its end.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import bootstrap, spearmanr

from ccsrp_jax import cli
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.coevolution.shared_set import shared_adversarial_sets
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import cost, serialization, zoo
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.batch_statistics import refreshed
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.pruning import budget, criteria
from ccsrp_jax.pruning.budget import Scores, Target
from ccsrp_jax.pruning.candidates import finetune_once
from ccsrp_jax.pruning.problem import Problem
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils import compilation, devices
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import unknown
from ccsrp_jax.utils.io import read_json, write_json

TEMPERATURES = np.geomspace(0.05, 20, 60)
KINDS = ("divisions", "masks")


class Case(NamedTuple):
    """A network, its data, and how long it is trained."""

    dataset: str
    build: Callable[..., Architecture]
    time_steps: int
    eps: float
    train_images: int
    outcome_images: int
    search_images: int
    epochs: int
    finetune_epochs: int
    fraction: float  # of MACs that candidates keep


CASES = {
    "digits": Case(
        "digits", partial(zoo.plain, (16, 32, "A", 32, "A")), 4, 1 / 16, 900, 320, 200, 20, 8, 0.25
    ),
    "digits-8conv": Case(
        *("digits", partial(zoo.plain, (12, 12, 16, "A", 24, 24, 24, "A", 32, 32)), 2),
        *(1 / 16, 900, 320, 200, 30, 8, 0.25),
    ),
    "mnist-residual": Case(
        *("mnist", partial(zoo.residual, ((12, 1, 2), (24, 1, 2), (48, 1, 2)), stem=12), 2),
        *(0.1, 4000, 1000, 300, 6, 3, 0.25),
    ),
}


@dataclass(frozen=True)
class Settings:
    """Rank correlations of fitness measures with robust accuracy after fine-tuning.

    Attributes:
      only: networks, by their names in `CASES`.
      data_dir: folder with prepared TFDS sets.
      candidates: number of divisions, and of masks at fixed widths, of each network.
      epochs: of training and fine-tuning instead of the network's own, for trial runs.
      seed: of weights, batches, attacks and candidates.
      networks: folder of the trained dense networks.
      out: file to write.
    """

    only: tuple[str, ...] = tuple(CASES)
    data_dir: str | None = None
    candidates: int = 20
    epochs: int | None = None
    seed: int = 0
    networks: Path = Path("runs") / "fitness_study"
    out: Path = Path(__file__).parent / "results" / "fitness_study.json"


class Study(NamedTuple):
    """A trained network and the images that its candidates are measured on."""

    problem: Problem
    shared: Split  # adversarial versions of the search images
    outcome: Split
    order: Scores  # of filters, by Taylor score
    margin: float  # median |margin| of the unpruned network on the adversarial images
    key: jax.Array


def run(settings: Settings, terminal: Terminal) -> dict:
    """Measures all candidates that the record lacks; returns it.

    Raises:
      InputError: the data or a setting cannot be used.
    """
    for name in settings.only:
        if name not in CASES:
            raise unknown("network", name, CASES)
    found = read_json(settings.out)["networks"] if settings.out.exists() else {}
    record = {
        "what": "Spearman's rank correlation of fitness measures with robust accuracy (PGD-20) "
        "after fine-tuning, on held-out training images",
        "candidates": settings.candidates,
        "networks": found,
        **devices.machine(),
    }
    for name in settings.only:
        network = found.setdefault(name, {kind: [] for kind in KINDS})
        if all(len(network[kind]) >= settings.candidates for kind in KINDS):
            continue
        study = prepared(settings, name, terminal)
        network |= description(study, CASES[name])
        for kind, number, masks in candidates(study, settings.candidates):
            if number < len(network[kind]):
                continue
            network[kind].append(measured(study, masks))
            write_json(settings.out, record)
            terminal.line(f"{name}, {kind} {number + 1}: {network[kind][-1]['outcome']}")
    for network in found.values():
        network["correlations"] = {kind: correlations(network[kind]) for kind in KINDS}
    write_json(settings.out, record)
    terminal.line(f"written to {settings.out}")
    return record


def split_off(split: Split, count: int) -> tuple[Split, Split]:
    """The first images of a split, and the others."""
    return Split(*(part[:count] for part in split)), Split(*(part[count:] for part in split))


def prepared(settings: Settings, name: str, terminal: Terminal) -> Study:
    """The dense network, trained or read, and what its candidates need."""
    case = CASES[name]
    if settings.epochs is not None:
        case = case._replace(epochs=settings.epochs, finetune_epochs=settings.epochs)
    data = load(
        case.dataset,
        data_dir=settings.data_dir,
        search_fraction=0.15,
        search_images=case.search_images,
        train_images=case.train_images + case.outcome_images,
    )
    outcome, training = split_off(data.train, case.outcome_images)
    key_init, key_train, key = jax.random.split(jax.random.key(settings.seed), 3)
    architecture = case.build(
        data.train.images.shape[1:],
        data.classes,
        time_steps=case.time_steps,
        mean=data.mean,
        std=data.std,
    )
    classifier, recipe = Classifier(architecture), dense_recipe(case)
    path = settings.networks / f"{name}.safetensors"
    if path.exists():
        variables = serialization.load(path)[1]
    else:
        start = zoo.init(key_init, architecture)
        with terminal.stage(name, case.epochs) as advance:
            variables = train(
                *(key_train, classifier, start, None, training, recipe),
                on_epoch=lambda epoch: advance(1, f"{epoch.loss:.3f}"),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        serialization.save(path, architecture, variables)
    problem = Problem(
        *(classifier, variables, training, data.search, Target("macs", case.fraction)),
        replace(recipe, epochs=case.finetune_epochs, clean_epochs=0),
        PGD(case.eps, 10),
        batch_size=100,
    )
    dense = masking.ones(architecture)
    order, _ = criteria.taylor(key, problem, variables, dense)
    search = Search()
    sets = shared_adversarial_sets(
        *(key, classifier, variables, dense, data.search, problem.attack, search, list(dense))
    )
    shared = next(iter(sets.values()))
    logits = logits_of(classifier, (variables, None), shared)
    margin = float(np.median(np.abs(margins(logits, np.asarray(shared.labels)))))
    return Study(problem, shared, outcome, order, margin, key)


def dense_recipe(case: Case) -> Recipe:
    return Recipe(
        epochs=case.epochs,
        batch_size=64,
        learning_rate=5e-3,
        adversarial=PGD(case.eps, 1, relative_step=1.25),
        clean_epochs=1,
    )


def description(study: Study, case: Case) -> dict[str, Any]:
    """What a reader needs to know of a network."""
    problem = study.problem
    state = problem.variables, None
    return {
        "dataset": case.dataset,
        "groups": masking.widths(problem.architecture, masking.ones(problem.architecture)),
        "macs": sum(cost.macs(problem.architecture).values()),
        "case": {k: v for k, v in case._asdict().items() if k not in ("build", "dataset")},
        "dense": outcome(problem.classifier, state, study.outcome, case.eps, study.key),
    }


def candidates(study: Study, count: int) -> Iterator[tuple[str, int, MaskTree]]:
    """Kind, number and masks of every candidate; all are within the target."""
    problem, order = study.problem, study.order
    cost_of, limit = problem.cost(), problem.limit()
    for number in range(count):
        random = np.random.default_rng(number)
        shares = {name: float(random.uniform(0.15, 1)) for name in order}
        ranking = budget.proportional_ranking(order, shares)
        yield "divisions", number, budget.prune_to_budget(ranking, cost_of, limit)
    for number in range(count):
        random = np.random.default_rng(1000 + number)
        spread = 3 * number / max(count - 1, 1)  # from the order itself to almost random ones
        mixed = {
            name: np.log(np.asarray(values) + 1e-12) + spread * random.normal(size=len(values))
            for name, values in order.items()
        }
        ranking = budget.uniform_ranking(mixed)
        yield "masks", number, budget.prune_to_budget(ranking, cost_of, limit)


def measured(study: Study, masks: MaskTree) -> dict[str, Any]:
    """The measures of a candidate, its outcome, and the seconds of both."""
    problem, began = study.problem, time.perf_counter()
    architecture = problem.architecture
    values: dict[str, float] = {"taylor": taylor_kept(study.order, masks)}
    for images, split in {"train": problem.train, "search": problem.search}.items():
        variables = refreshed(architecture, problem.variables, masks, statistics_batches(split))
        values |= measures(study, variables, masks, f"refreshed on {images} images")
    values |= measures(study, problem.variables, masks, "as they were")
    scored = time.perf_counter()
    trained, masks, _ = finetune_once(study.key, problem, masks=masks)
    eps = problem.attack.eps
    return {
        "widths": masking.widths(architecture, masks),
        "measures": values,
        "outcome": outcome(problem.classifier, (trained, masks), study.outcome, eps, study.key),
        "seconds": {"measures": scored - began, "training": time.perf_counter() - scored},
    }


def statistics_batches(split: Split, size: int = 100, count: int = 4) -> list[jax.Array]:
    images = [split.images[i * size : (i + 1) * size] for i in range(count)]
    return [to_unit_range(jnp.asarray(each)) for each in images if len(each) == size]


def taylor_kept(order: Scores, masks: MaskTree) -> float:
    """Sum of the Taylor scores of the filters that are kept."""
    return float(sum((np.asarray(order[name]) * np.asarray(masks[name])).sum() for name in order))


def measures(study: Study, variables: dict, masks: MaskTree, statistics: str) -> dict[str, float]:
    """By name, measures that are higher for better candidates.

    Smooth accuracies are means of sigmoid(margin / tau), where tau is a share of the median
    |margin| of the unpruned network on adversarial images.
    """
    problem = study.problem
    clean = logits_of(problem.classifier, (variables, masks), problem.search)
    attacked = logits_of(problem.classifier, (variables, masks), study.shared)
    labels = np.asarray(problem.search.labels)
    both = np.concatenate([clean, attacked]), np.concatenate([labels, labels])
    found = {
        "loss": -cross_entropy(*both),
        "robust loss": -cross_entropy(attacked, labels),
        "calibrated loss": -min(cross_entropy(both[0] / t, both[1]) for t in TEMPERATURES),
        "calibrated robust loss": -min(cross_entropy(attacked / t, labels) for t in TEMPERATURES),
        "accuracy": accuracy_of(*both),
        "robust accuracy": accuracy_of(attacked, labels),
    }
    for share in (0.1, 0.3, 1.0):
        found[f"smooth accuracy {share}"] = smooth(*both, share * study.margin)
        found[f"smooth robust accuracy {share}"] = smooth(attacked, labels, share * study.margin)
    return {f"{name}, {statistics}": value for name, value in found.items()}


@partial(jax.jit, static_argnums=0)
def _logits(classifier, state, images):
    return classifier(state, images)


def logits_of(classifier: Classifier, state: tuple, split: Split) -> np.ndarray:
    return np.asarray(_logits(classifier, state, to_unit_range(jnp.asarray(split.images))))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def accuracy_of(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(-1) == labels).mean())


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B,) logit of the label minus the highest other one."""
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return logits[rows, labels] - others.max(-1)


def smooth(logits: np.ndarray, labels: np.ndarray, tau: float) -> float:
    return float((1 / (1 + np.exp(np.clip(-margins(logits, labels) / tau, -50, 50)))).mean())


def outcome(
    classifier: Classifier, state: tuple, split: Split, eps: float, key: jax.Array
) -> dict[str, float]:
    """Accuracy, clean and under PGD-20."""
    attacked = correct(classifier, state, split, attack=PGD(eps, 20), key=key)
    return {
        "accuracy": float(correct(classifier, state, split).mean()),
        "robust_accuracy": float(attacked.mean()),
    }


def rank_correlation(values: np.ndarray, outcomes: np.ndarray) -> float:
    return float(spearmanr(values, outcomes)[0])  # type: ignore[arg-type]


def correlations(rows: list[dict]) -> dict[str, dict[str, Any]]:
    """By measure, Spearman's correlation with robust accuracy and its 95 % bootstrap interval."""
    if len(rows) < 3:
        return {}
    outcomes = np.array([row["outcome"]["robust_accuracy"] for row in rows])
    found = {}
    for name in rows[0]["measures"]:
        values = np.array([row["measures"][name] for row in rows])
        if np.ptp(values) == 0 or np.ptp(outcomes) == 0:
            continue
        interval = bootstrap(
            (values, outcomes),
            lambda a, b: rank_correlation(a, b) if np.ptp(a) and np.ptp(b) else 0.0,
            paired=True,
            vectorized=False,
            n_resamples=1000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        found[name] = {
            "correlation": rank_correlation(values, outcomes),
            "interval": [float(interval.low), float(interval.high)],
        }
    return dict(sorted(found.items(), key=lambda item: -item[1]["correlation"]))


def main(args: list[str] | None = None) -> int:
    """Runs the script with these flags; returns the exit status."""
    compilation.enable_persistent_cache()
    flags = sys.argv[1:] if args is None else args
    return cli.guard(
        lambda: run(read_flags(Settings, flags), Terminal()), "--out", "the same command"
    )


if __name__ == "__main__":
    sys.exit(main())
