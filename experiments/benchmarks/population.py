"""Candidate masks scored per second: ours, without sharing, plain vmap, and SpikingJelly.

    make oracles; .venv/bin/python experiments/benchmarks/population.py

For every group of a network, the clean and adversarial error and cross-entropy of candidate
masks are computed in four ways, which alternate in one run on the same weights, images,
precision and threads:

  ours          `fitness.score`: the prefix that all candidates share is computed once; on a CPU
                every core is a device, and candidates are sharded over them
  unshared      the whole masked network for every candidate, one at a time, at its best batch
                size
  vmap          `jax.vmap` of the whole network over full mask trees, at the same batch size
  spikingjelly  at its best: multi-step neurons, time folded into the batch, the constant first
                convolution once, channels last, inference mode, masks as multiplications, one
                candidate at a time, at its best batch size

There is also `race`, ours with racing (significantly worse candidates are eliminated) on more
images; and on small images `white_box`, where PGD of 5 steps attacks every candidate instead of
the shared adversarial set. Networks are trained on the digits for some steps (`vgg11` on digits
enlarged to 32 x 32 x 3), so that masks matter; the candidates are those of the preset `faithful`:
each filter kept with probability 0.95, and at least 0.9 of them. A sweep is all groups, each with
one computation of its shared prefix for `--evaluations` candidates, as many as a round of that
preset has. Writes results/population.json and population.png.

On two cores (jax 0.10.2, torch 2.15, SpikingJelly 2.0), ours over SpikingJelly, unshared and vmap:
small 4.5, 3.2, 3.4; vgg11 2.2, 2.2, 2.3 (--population 4 --rounds 2, 17 minutes, most of them
training and warming up; vgg11 had 4 epochs then). Races on vgg11 are from a later run (--networks
vgg11 --only-races --population 8, 37 minutes, 8 epochs): eight candidates over 896 images, of
which they saw 26 to 70 %, depending on the layer. That is 2.0 times as fast as exact scores, and
4.4 times SpikingJelly. With few images races save less: candidates that keep nine tenths of a
wide layer's filters differ too little for a few hundred images to tell them apart.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib.figure import Figure

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before the first array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness, scoring, strategies, subproblem
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.data import datasets
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.reporting import figure_style
from ccsrp_jax.training import trainer
from ccsrp_jax.utils import compilation, devices
from common import machine, medians, parser, take_turns, write
from peers.torch_twin import MaskedTwin


class Setting(NamedTuple):
    """Data and sizes of the measurements of a network."""

    side: int  # of the images
    channels: int
    train_images: int | None
    epochs: int
    images: int  # that candidates are scored on
    batch: int  # ours
    batches: tuple[int, ...]  # batch sizes that the others may choose from
    race_images: int


NETWORKS = {
    "small": Setting(8, 1, None, 5, 256, 256, (16, 32, 64, 128, 256), 287),
    "vgg11": Setting(32, 3, 512, 8, 32, 32, (16, 32), 896),
}
WAYS = ("ours", "unshared", "vmap", "spikingjelly")
ATTACK = PGD(1 / 16, 5)


class Trained(NamedTuple):
    """A trained network, and the images on which its candidates are scored."""

    classifier: Classifier
    variables: dict
    whole: masks.MaskTree
    search: Split
    adversarial: Split

    def first(self, images: int) -> tuple[Split, Split]:
        """The first search images, clean and adversarial."""
        clean, attacked = (
            Split(*(part[:images] for part in split)) for split in (self.search, self.adversarial)
        )
        return clean, attacked

    def task(self, group: str, clean: Split, adversarial: Split | None, **options: Any):
        """The scoring task of a group on clean and adversarial images."""
        network = self.classifier, self.variables, self.whole
        mesh = devices.mesh()
        return subproblem.make_task(*network, group, clean, adversarial, mesh=mesh, **options)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    flags.add_argument("--population", type=int, default=8, help="candidates per turn")
    flags.add_argument(
        "--evaluations", type=int, default=40, help="candidates per group of a sweep"
    )
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--only-races", action="store_true", help="keep the other recorded figures")
    flags.add_argument("--vmap", type=int, default=2, help="candidates per call of vmap")
    options = flags.parse_args()
    torch.set_num_threads(os.cpu_count())
    path = options.out / "population.json"
    found = machine("torch", "spikingjelly")
    record = found | {
        "device": jax.devices()[0].device_kind,
        "machine": found["device"],
        "networks": json.loads(path.read_text())["networks"] if path.exists() else {},
    }
    for name in options.networks:
        if not options.only_races:
            record["networks"][name] = compare(name, options)
        elif name in record["networks"]:
            record["networks"][name] = races_alone(name, options, record["networks"][name])
        else:
            raise SystemExit(f"{path} has no {name}: run without --only-races first.")
        write(options.out, "population", record)
    write(options.out, "population", record, figure(record))


def prepare(name: str) -> Trained:
    """Trains a network on (enlarged) digits, and attacks the search images."""
    setting = NETWORKS[name]
    side, channels = setting.side, setting.channels
    splits = datasets.load(
        "digits",
        search_fraction=0.64 if setting.race_images > 287 else 0.2,
        train_images=setting.train_images,
        search_images=max(setting.images, setting.race_images),
    )
    train, search = (enlarged(split, side, channels) for split in (splits.train, splits.search))
    architecture = zoo.build(
        name, (side, side, channels), 10, mean=splits.mean * channels, std=splits.std * channels
    )
    classifier, whole = Classifier(architecture), masks.ones(architecture)
    variables = trainer.train(
        jax.random.key(1),
        classifier,
        zoo.init(jax.random.key(0), architecture),
        {},
        train,
        trainer.Recipe(epochs=setting.epochs, batch_size=64, learning_rate=5e-3),
    )
    adversarial = [
        ATTACK(classifier, (variables, whole), images, labels, jax.random.key(2))[:real]
        for images, labels, real in padded_batches(search, setting.batch)
    ]
    attacked = Split(np.concatenate(adversarial), search.labels)
    return Trained(classifier, variables, whole, search, attacked)


def compare(name: str, options: argparse.Namespace) -> dict:
    """All groups of one network, scored in all ways."""
    setting, trained = NETWORKS[name], prepare(name)
    images = trained.first(setting.images)
    twin = MaskedTwin(trained.classifier.architecture, trained.variables, images)
    twin_batch = fastest(setting.batches, lambda size: twin.score(None, None, size))
    score_whole = jax.jit(
        lambda trees, x, y: scoring.error_and_loss(
            trained.classifier((trained.variables, trees), x), y
        )
    )
    score_all = jax.jit(jax.vmap(score_whole, in_axes=(0, None, None), out_axes=1))

    loaded = {
        size: [[part[:2] for part in padded_batches(split, size)] for split in images]
        for size in setting.batches
    }

    def in_batches(run: Callable, trees: masks.MaskTree, size: int) -> np.ndarray:
        return mean([[run(trees, *batch) for batch in split] for split in loaded[size]])

    own_batch = fastest(setting.batches, lambda size: in_batches(score_whole, trained.whole, size))
    rows = {}
    with compilation.count_compilations() as compiled:
        for number, group in enumerate(trained.whole):
            members = candidates(number, trained.whole[group], options.population)
            one, some = members[:1], members[: options.vmap]
            tree = dict(trained.whole) | {group: jnp.asarray(one[0])}
            others = {
                "unshared": (partial(in_batches, score_whole, tree, own_batch), 1),
                "vmap": (
                    partial(in_batches, score_all, trees_of(trained.whole, group, some), own_batch),
                    len(some),
                ),
                "spikingjelly": (partial(twin.score, group, one[0], twin_batch), 1),
            }
            rows[group] = compare_group(trained, setting, group, members, others, options.rounds)
            rows[group]["race"] = race(trained, setting, group, members)
            print(name, group, {k: round(v, 4) for k, v in rows[group]["seconds"].items()})
    accuracy = [row.pop("accuracy") for row in rows.values()][-1]
    return rates(rows, options.evaluations) | {
        "compiled_programs": len(compiled.programs),
        "compile_seconds": compiled.seconds,
        "population": options.population,
        "evaluations": options.evaluations,
        "rounds": options.rounds,
        "images": setting.images,
        "batch": setting.batch,
        "unshared_and_vmap_batch": own_batch,
        "spikingjelly_batch": twin_batch,
        "accuracy": accuracy,
    }


def compare_group(
    trained: Trained,
    setting: Setting,
    group: str,
    members: np.ndarray,
    others: Mapping[str, tuple[Callable[[], np.ndarray], int]],
    rounds: int,
) -> dict:
    """Seconds per evaluation by way, and how far the other ways' results are from ours.

    `others` has for each way a function that scores the first members, and how many it scores.
    """
    images = trained.first(setting.images)
    task = trained.task(group, *images, batch_size=setting.batch, population=len(members))

    def ours() -> np.ndarray:
        scores = fitness.score(task, members)
        return np.array([[scores.error, scores.loss], [scores.robust_error, scores.robust_loss]])

    def share() -> None:
        for batch in task.clean + task.adversarial:
            jax.block_until_ready(task.prefix(batch._replace(prefix=None)))

    runs: dict[str, tuple[Callable[[], Any], int]] = {
        "ours": (ours, len(members)),
        **others,
        "prefix": (share, 1),
    }
    if setting.side < 32:
        attacking = trained.task(
            group, images[0], None, batch_size=setting.batch, attack=ATTACK, key=jax.random.key(4)
        )
        few = members[:4]
        runs["white_box"] = partial(fitness.score, attacking, few), len(few)
    first = {way: np.reshape(runs[way][0](), (2, 2, -1))[:, :, 0] for way in WAYS}
    seconds = medians(take_turns({way: run for way, (run, _) in runs.items()}, rounds))
    return {
        "seconds": {way: seconds[way] / evaluations for way, (_, evaluations) in runs.items()},
        "member_chunk": task.member_chunk,
        "error_and_loss_differ_by": {
            way: np.abs(first[way] - first["ours"]).max(0).tolist() for way in WAYS[1:]
        },
        "accuracy": float(1 - first["ours"][0, 0]),
    }


def races_alone(name: str, options: argparse.Namespace, recorded: dict) -> dict:
    """The recorded figures of a network, with new races."""
    setting, trained = NETWORKS[name], prepare(name)
    rows = {}
    for number, group in enumerate(trained.whole):
        members = candidates(number, trained.whole[group], options.population)
        first = trained.first(setting.batch)
        task = trained.task(group, *first, batch_size=setting.batch, population=len(members))
        fitness.score(task, members)  # compiles what races do not compile beforehand
        found = race(trained, setting, group, members)
        rows[group] = recorded["groups"][group] | {"race": found}
        print(name, group, found, flush=True)
    return recorded | rates(rows, recorded["evaluations"])


def candidates(number: int, alive: Any, count: int) -> np.ndarray:
    """Masks of a group as the preset `faithful` draws them first: (count, filters)."""
    key = jax.random.fold_in(jax.random.key(3), number)
    least, alive = round(0.9 * len(alive)), np.asarray(alive)
    return np.asarray(strategies.initial_masks(key, alive, 0.95, least, size=count + 1))[1:]


def race(trained: Trained, setting: Setting, group: str, members: np.ndarray) -> dict:
    """A race of the candidates over more images, and full evaluations for comparison.

    Of the latter, one per device is timed on a quarter of the images: their time is linear in
    both. Whether a race chooses another mask is the question of racing.py.
    """
    order = np.random.default_rng(0).permutation(len(trained.search.labels))
    shuffled = [
        Split(*(part[order] for part in split)) for split in (trained.search, trained.adversarial)
    ]
    task = trained.task(group, *shuffled, batch_size=setting.batch, population=len(members))
    jax.block_until_ready([batch.prefix for batch in task.clean + task.adversarial])
    few, quarter = members[: jax.device_count()], max(1, len(task.clean) // 4)
    part = task._replace(clean=task.clean[:quarter], adversarial=task.adversarial[:quarter])
    first = part._replace(clean=task.clean[:1], adversarial=task.adversarial[:1])
    fitness.score(first, members[:1])  # compiles the program that shards images, not members
    started = time.perf_counter()
    fitness.score(part, few)
    full = (time.perf_counter() - started) / len(few) * task.images / part.images
    started = time.perf_counter()
    scores = fitness.score(task, members, racing=Racing(objective="loss"))
    seconds = (time.perf_counter() - started) / len(members)
    return {
        "images": task.images,
        "candidates": len(members),
        "seconds": seconds,
        "full_seconds": full,
        "share_of_images": float(scores.images.mean() / task.images),
        "accuracy": float(1 - scores.error.min()),
    }


def rates(rows: dict, evaluations: int) -> dict:
    """The sweep's rates with this number of evaluations per group, and their ratios."""
    per: dict[str, float] = {
        way: sum(row["seconds"][way] for row in rows.values()) for way in (*WAYS, "prefix")
    }
    prefix = per.pop("prefix") / evaluations
    per["ours"] += prefix
    found = {way: len(rows) / seconds for way, seconds in per.items()}
    speedup = sum(row["race"]["full_seconds"] for row in rows.values()) / sum(
        row["race"]["seconds"] for row in rows.values()
    )
    found["racing"] = len(rows) / ((per["ours"] - prefix) / speedup + prefix)
    white_box = sum(row["seconds"].get("white_box", 0) for row in rows.values())
    result = {
        "white_box_over_ours": white_box / per["ours"] or None,
        "sweep_evaluations_per_second": found,
        "ours_over": {way: found["ours"] / found[way] for way in WAYS},
        "racing_over": {way: found["racing"] / found[way] for way in WAYS},
        "groups": rows,
    }
    print(json.dumps({k: v for k, v in result.items() if k.endswith("over")}, indent=1))
    return result


def trees_of(whole: masks.MaskTree, group: str, members: np.ndarray) -> masks.MaskTree:
    """The mask trees of all members, stacked."""
    repeated = {name: jnp.repeat(mask[None], len(members), 0) for name, mask in whole.items()}
    return repeated | {group: jnp.asarray(members)}


def mean(scored: Sequence[Sequence[Any]]) -> np.ndarray:
    """(2, 2, ...) by set and kind: means over the images of all batches."""
    return np.stack([np.concatenate(jax.device_get(s), -1).mean(-1, np.float64) for s in scored])


def enlarged(split: Split, side: int, channels: int) -> Split:
    """The digits as larger images of more channels."""
    factor = side // split.images.shape[1]
    images = split.images.repeat(factor, 1).repeat(factor, 2).repeat(channels, 3)
    return Split(images, split.labels)


def fastest(sizes: Sequence[int], run: Callable[[int], object]) -> int:
    """The size that takes least time: median of three calls after one."""

    def seconds(size: int) -> float:
        times = []
        for _ in range(4):
            started = time.perf_counter()
            run(size)
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    return min(sizes, key=seconds)


def figure(record: dict) -> Figure:
    """Seconds per evaluation by group and way."""
    styles = {
        "spikingjelly": (figure_style.INK, "s"),
        "vmap": (figure_style.GREY, "v"),
        "unshared": (figure_style.VERMILION, "o"),
        "ours": (figure_style.BLUE, "o"),
    }
    drawing = Figure(figsize=(4.6 * len(record["networks"]), 3.4), layout="constrained")
    axes = drawing.subplots(1, len(record["networks"]), squeeze=False)[0]
    for ax, (name, found) in zip(axes, record["networks"].items(), strict=True):
        for way, (color, marker) in styles.items():
            seconds = [row["seconds"][way] for row in found["groups"].values()]
            ax.semilogy(list(found["groups"]), seconds, color=color, marker=marker, label=way)
        ax.set_title(f"{name}: one candidate's evaluation", fontsize=10)
        ax.set_xlabel("group whose mask changes")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds (median)")
    axes[-1].legend(frameon=False, fontsize=8)
    return drawing


if __name__ == "__main__":
    main()
