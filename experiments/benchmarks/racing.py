"""Racing against full evaluation: whether both choose the same mask, and how many images it saves.

    python experiments/benchmarks/racing.py

The `small` network is adversarially trained on one half of the digits' training images; the other
half are the search images. For each group, populations of candidates as the presets draw
them first (`faithful`: 5 masks that keep each filter with probability 0.95; `snes`: 8 random ones
that keep 85 %) are scored in full and raced, by accuracy and by cross-entropy, at three
confidences and over images in a random order. A race's choice differs if its best mask is worse on
all images than the best of the full evaluation; its regret is by how much (clean + robust).
Writes results/racing.json.

With --populations 20 (720 races, 14 minutes on a busy machine): at 95 and 99 % confidence
none of 480 choices differed, at 80 % 4 of 240 did, the worst by 0.005. At 95 % a race looks at 36 %
(faithful) and 43 % (snes) of the images by cross-entropy, at 76 and 65 % by accuracy, in which
candidates of one network seldom differ.
"""

from typing import Any

import jax
import numpy as np

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness, selection, strategies, subproblem
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.settings import PRESETS
from ccsrp_jax.coevolution.shared_set import shared_adversarial_set
from ccsrp_jax.coevolution.task import Task
from ccsrp_jax.data import datasets
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.training import trainer
from ccsrp_jax.utils import devices
from common import parser, write

EPS = 1 / 16


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--populations", type=int, default=60, help="per preset and group")
    flags.add_argument("--epochs", type=int, default=10)
    options = flags.parse_args()
    loaded = datasets.load("digits", search_fraction=0.5)
    architecture = zoo.build(
        "small", loaded.train.images.shape[1:], loaded.classes, mean=loaded.mean, std=loaded.std
    )
    classifier, whole = Classifier(architecture), masks.ones(architecture)
    variables = trainer.train(
        jax.random.key(1),
        classifier,
        zoo.init(jax.random.key(0), architecture),
        {},
        loaded.train,
        trainer.Recipe(epochs=options.epochs, adversarial=PGD(EPS, 3), clean_epochs=3),
    )
    adversarial = shared_adversarial_set(
        jax.random.key(2),
        *(classifier, variables, whole, loaded.search, PGD(EPS, 10), PRESETS["faithful"]),
        list(whole),
    )
    races = []
    for number, (group, alive) in enumerate(whole.items()):
        for i in range(options.populations):
            key = jax.random.fold_in(jax.random.key(3), 1000 * number + i)
            order = np.asarray(jax.random.permutation(key, len(loaded.search.labels)))
            splits = [Split(*(x[order] for x in split)) for split in (loaded.search, adversarial)]
            task = subproblem.make_task(classifier, variables, whole, group, *splits, batch_size=64)
            for preset in ("faithful", "snes"):
                races += run(task, draw(key, alive, preset), preset)
        print(group, len(races), "races")
    record = {"images": len(loaded.search.labels), "rows": table(races), **devices.machine()}
    write(options.out, "racing", record)
    for row in record["rows"]:
        print(row)


def draw(key: jax.Array, alive: Any, preset: str) -> np.ndarray:
    """The first candidates of a preset."""
    alive = np.asarray(alive)
    search, kept = PRESETS[preset], int(alive.sum())
    least = strategies.keep_count(kept, search.keep_floor, search.width_multiple)
    if preset == "faithful":
        size = search.population + 1  # the first is the unpruned mask
        drawn = strategies.initial_masks(key, alive, search.init_keep, least, size=size)[1:]
    else:
        genomes = jax.random.normal(key, (search.population, len(alive)))
        drawn = strategies.decode(genomes, alive, least, decoder="topk")
    return np.unique(np.asarray(drawn), axis=0)


def run(task: Task, members: np.ndarray, preset: str) -> list[dict]:
    """Races of one population, each compared with the full evaluation."""
    full, races = fitness.score(task, members), []
    for objective in ("accuracy", "loss"):
        value = selection.weighted_sum(full.objectives(objective))
        for confidence in (0.8, 0.95, 0.99):
            found = fitness.score(task, members, racing=Racing(confidence, objective=objective))
            stayed = found.images == task.images
            raced = selection.weighted_sum(found.objectives(objective))
            regret = value[np.where(stayed, raced, np.inf).argmin()] - value.min()
            races.append(
                {
                    "preset": preset,
                    "objective": objective,
                    "confidence": confidence,
                    "regret": float(regret),
                    "images": float(found.images.mean() / task.images),
                }
            )
    return races


def table(races: list[dict]) -> list[dict]:
    """Summary of the races by preset, objective and confidence."""
    rows, kinds = [], ("preset", "objective", "confidence")
    for kind in dict.fromkeys(tuple(race[name] for name in kinds) for race in races):
        some = [race for race in races if tuple(race[name] for name in kinds) == kind]
        regret = np.array([race["regret"] for race in some])
        rows.append(
            dict(zip(kinds, kind, strict=True))
            | {
                "races": len(some),
                "choice_differs": float((regret > 0).mean()),
                "mean_regret": float(regret.mean()),
                "largest_regret": float(regret.max()),
                "share_of_images": float(np.mean([race["images"] for race in some])),
            }
        )
    return rows


if __name__ == "__main__":
    main()
