"""Ingredients of fast training, one at a time: accuracy, robustness and cost on held-out images.

    JAX_NUM_CPU_DEVICES=2 python experiments/fast_training.py --data-dir DIR

A network of five wide convolutions (`wide5`, T = 2) is trained adversarially at 8/255 on a part of
CIFAR-10's training images, by a base recipe and by recipes that differ from it in one ingredient.
`relu start` trains the ReLU network first and converts it; `relu start, equal MACs` has as many
epochs of it as cost the same as the base. Judged on other training images, which no recipe has
seen; the test images are not read. `robust_accuracy` is the worst case, image by image, of PGD-20
through the surrogate of training and APGD on the margin loss through a narrower one: less than the
standard suite, and an upper bound.

Has not been run at this size. Writes results/fast_training.json after every ingredient; the same
command goes on with those that are missing.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ccsrp_jax import cli
from ccsrp_jax.attacks import APGD, PGD
from ccsrp_jax.attacks.registry import TRAINING_ATTACKS
from ccsrp_jax.data.augmentation import Augmentation
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Dataset
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF, Surrogate
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.throughput import training_macs
from ccsrp_jax.training.trainer import Epoch, train
from ccsrp_jax.utils import compilation, devices
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, unknown
from ccsrp_jax.utils.io import read_json, write_json

# What each ingredient changes: fields of `Recipe`, `attack` and `augmentation`, and with `share`
# in the name a field as a share of the epochs.
INGREDIENTS: dict[str, dict[str, Any]] = {
    "base": {},
    "one step of PGD": {"attack": "pgd"},
    "N-FGSM": {"attack": "n-fgsm"},
    "rising radius": {"eps_ramp": 0.5},
    "triangular rate": {"schedule": "triangular", "warmup": 0.25},
    "SGD": {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4},
    "Nesterov SGD, triangular rate": {
        **{"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4},
        **{"nesterov": True, "schedule": "triangular", "warmup": 0.25},
    },
    "Lookahead": {"lookahead": 5},
    "moving average": {"ema": 0.99},
    "label smoothing": {"label_smoothing": 0.1},
    "alternating flips": {"augmentation": "crop_alternating_flip"},
    "whitening": {"first_layer": "whitened"},
    "fixed scale of batch norm": {"norm_scale": "frozen"},
    "T = 1 first": {"early_epochs_share": 0.6, "early_time_steps": 1},
    "relu start": {"relu_epochs_share": 0.6},
    "relu start, equal MACs": {"relu_epochs_share": 0.6, "equal_macs": True},
}


@dataclass(frozen=True)
class Settings:
    """Trains by every recipe and judges.

    Attributes:
      only: names of ingredients; all by default.
      dataset: data set; its test images are not read.
      data_dir: directory of prepared TFDS data sets.
      model: a name in `zoo.MODELS`.
      width: factor on its filters.
      time_steps: T.
      train_images, judge_images: training images to train on and to judge by.
      epochs: of the base recipe, of which the first is clean.
      batch_size: images per step.
      eps: radius of attacks, in pixel units.
      seed: of splits, weights, batches and attacks.
      out: file to write.
    """

    only: tuple[str, ...] = tuple(INGREDIENTS)
    dataset: str = "cifar10"
    data_dir: str | None = None
    model: str = "wide5"
    width: float = 1.0
    time_steps: int = 2
    train_images: int = 6000
    judge_images: int = 1000
    epochs: int = 15
    batch_size: int = 128
    eps: float = 8 / 255
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "fast_training.json"


def recipe_of(settings: Settings, changes: dict[str, Any]) -> tuple[Recipe, Augmentation]:
    """The recipe with an ingredient, and its augmentation."""
    changes = dict(changes)
    attack = TRAINING_ATTACKS[changes.pop("attack", "rs-fgsm")](settings.eps, 1)
    augmentation: Any = changes.pop("augmentation", "crop_flip")
    epochs, equal = settings.epochs, changes.pop("equal_macs", False)
    for name in [name for name in changes if name.endswith("_share")]:
        part = max(round(changes.pop(name) * epochs), 1)
        if equal:  # an epoch with ReLU costs 1 / T
            epochs += part * (settings.time_steps - 1)
            part *= settings.time_steps
        changes[name.removesuffix("_share")] = part
    fields: dict[str, Any] = {"epochs": epochs, "batch_size": settings.batch_size}
    fields |= {"clean_epochs": 1, "adversarial": attack}
    return Recipe(**fields | changes), augmentation


def run(settings: Settings, terminal: Terminal) -> dict:
    """Trains and judges by every recipe that the record lacks, and writes the record.

    Raises:
      InputError: the data or a setting cannot be used, or the record is of other settings.
    """
    for name in settings.only:
        if name not in INGREDIENTS:
            raise unknown("ingredient", name, INGREDIENTS)
    if settings.epochs < 3:
        raise InputError(f"epochs {settings.epochs} are too few to divide: give 3 or more.")
    said = dataclasses.asdict(settings)
    said = {name: value for name, value in said.items() if name not in ("only", "data_dir", "out")}
    record = {"settings": said, "rows": {}}
    if settings.out.exists():
        record = read_json(settings.out)
        if record["settings"] != said:
            raise InputError(
                f"{settings.out} is of other settings: give another --out, or move it elsewhere."
            )
    record |= {
        "what": "adversarial training of a spiking network, judged on held-out training images",
        **devices.machine(),
    }
    data = load(
        settings.dataset,
        data_dir=settings.data_dir,
        seed=settings.seed,
        train_images=settings.train_images,
        search_images=settings.judge_images,
        time_steps=settings.time_steps,
    )
    for name in settings.only:
        if name not in record["rows"]:
            record["rows"][name] = judged(settings, name, data, terminal)
            write_json(settings.out, record)
        row = record["rows"][name]
        terminal.line(
            f"{name}: accuracy {row['accuracy']:.3f}, robust {row['robust_accuracy']:.3f} (PGD-20 "
            f"{row['pgd_accuracy']:.3f}), {row['seconds']:.0f} s"
        )
    return record


def judged(settings: Settings, name: str, data: Dataset, terminal: Terminal) -> dict:
    """Trains by one recipe; accuracies on held-out images, time and multiply-adds."""
    architecture = zoo.build(
        settings.model,
        data.train.images.shape[1:],
        data.classes,
        width=settings.width,
        time_steps=settings.time_steps,
        mean=data.mean,
        std=data.std,
        neuron=LIF(decay_input=False),
    )
    classifier = Classifier(architecture, Surrogate("triangle", 1.0))
    recipe, augmentation = recipe_of(settings, INGREDIENTS[name])
    key_init, key_train, key_judge = jax.random.split(jax.random.key(settings.seed), 3)
    epochs: list[dict] = []
    macs = [training_macs(architecture, recipe, epoch) for epoch in range(recipe.epochs)]
    began = time.perf_counter()
    with terminal.stage(name, recipe.epochs) as advance:

        def on_epoch(epoch: Epoch) -> None:
            epochs.append(epoch.as_row())
            advance(1, f"{epoch.loss:.3f}")

        variables = train(
            key_train,
            classifier,
            zoo.init(key_init, architecture),
            {},
            data.train,
            recipe,
            augmentation=augmentation,
            on_epoch=on_epoch,
            mesh=devices.mesh(),
        )
    seconds = time.perf_counter() - began
    narrow = classifier.with_backward(Surrogate("atan", 0.5))
    attacks = (
        (classifier, None),
        (classifier, PGD(settings.eps, 20)),
        (narrow, APGD(settings.eps, 40, loss="margin")),
    )
    clean, pgd, apgd = (
        correct(network, (variables, {}), data.search, attack=attack, key=key_judge)
        for network, attack in attacks
    )
    return {
        "changes": INGREDIENTS[name],
        "accuracy": float(clean.mean()),
        "pgd_accuracy": float((clean & pgd).mean()),
        "robust_accuracy": float((clean & pgd & apgd).mean()),
        "images": len(data.search.labels),
        "train_images": len(data.train.labels),
        "seconds": seconds,
        "macs": sum(macs) * len(data.train.labels),
        "epochs": epochs,
    }


def main(args: list[str] | None = None) -> int:
    """Runs the script with these flags; returns the exit status."""
    compilation.enable_persistent_cache()
    flags = sys.argv[1:] if args is None else args
    return cli.guard(
        lambda: run(read_flags(Settings, flags), Terminal()),
        "--out",
        "the same command, which goes on with what is missing",
    )


if __name__ == "__main__":
    sys.exit(main())
