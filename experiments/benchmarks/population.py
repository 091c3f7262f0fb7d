"""Candidate masks scored a second: ours, without sharing, plain vmap, and SpikingJelly.

    make oracles; .venv/bin/python experiments/benchmarks/population.py

For every group of a network, the clean and adversarial error and cross-entropy of candidate
masks, four ways that take turns in one run, on the same weights, images, precision and threads:

  ours          `fitness.score`: what candidates share is computed once; on a CPU its cores are
                devices that candidates are dealt out to
  unshared      the whole masked network for every candidate, one at a time, at the batch size
                that suits it best
  vmap          `jax.vmap` of the whole network over full mask trees, at the same batch size
  spikingjelly  at its best: multi-step neurons, time folded into the batch, the constant first
                convolution once, channels last, inference mode, masks as multiplications, one
                candidate at a time, at the batch size that suits it best

and `racing`, ours where beaten candidates drop out, on more images; and on small images
`white_box`, where 5 steps of PGD attack every candidate in place of the shared set. Networks are
trained on the digits for some steps (`vgg11` on digits scaled up to 32 x 32 x 3), so that masks
matter; the candidates are those of the preset `faithful`: each filter kept with probability 0.95,
0.9 of them at least. A sweep is all groups, each with what its candidates share computed once for
`--evaluations` of them, as many as a round of that preset has.
Writes results/population.json and population.png.

On two cores (jax 0.10.2, torch 2.15, SpikingJelly 2.0), ours over SpikingJelly, unshared and vmap:
small 4.5, 3.2, 3.4; vgg11 2.2, 2.2, 2.3 (--population 4 --rounds 2, 17 minutes, most of them
training and warming up; vgg11 had 4 epochs then). Races on vgg11 are of a later run (--networks
vgg11 --only-races --population 8, 37 minutes, 8 epochs): eight candidates over 896 images, which
saw 26 to 70 % of them, by layer. That is 2.0 times as fast as exact scores, and with those 4.4
times SpikingJelly. Of few images races save less: candidates that keep nine tenths of a wide
layer's filters differ by too little for some hundred images to tell.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

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
from ccsrp_jax.networks.architecture import group_of, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.nodes import Spike
from ccsrp_jax.reporting import figure_style
from ccsrp_jax.training import trainer
from ccsrp_jax.utils import compilation, devices
from common import machine, parser, write
from peers.torch_twin import FoldedTwin, nchw

# name: side and channels of the images; training images, epochs, learning rate; search images,
# batch size of ours, those that the others may choose from; images of a race
NETWORKS = {
    "small": (8, 1, None, 5, 5e-3, 256, 256, (16, 32, 64, 128, 256), 287),
    "vgg11": (32, 3, 512, 8, 5e-3, 32, 32, (16, 32), 896),
}
WAYS = ("ours", "unshared", "vmap", "spikingjelly")


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    flags.add_argument("--population", type=int, default=8, help="candidates a turn")
    flags.add_argument("--evaluations", type=int, default=40, help="candidates of a sweep's group")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--only-races", action="store_true", help="beside what is recorded")
    flags.add_argument("--vmap", type=int, default=2, help="candidates that vmap takes at once")
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
        recorded = record["networks"].get(name)
        record["networks"][name] = benchmark(name, options, recorded)
        write(options.out, "population", record)
    write(options.out, "population", record, figure(record))


def benchmark(name: str, options: argparse.Namespace, recorded: dict | None) -> dict:
    """All groups of one network, all ways; or races alone, beside what is recorded."""
    side, channels, train_images, epochs, rate, count, batch, choices, race = NETWORKS[name]
    splits = datasets.load(
        "digits",
        search_fraction=0.64 if race > 287 else 0.2,
        train_images=train_images,
        search_images=max(count, race),
    )
    train, search = (scaled(split, side, channels) for split in (splits.train, splits.search))
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
        trainer.Recipe(epochs=epochs, batch_size=64, learning_rate=rate),
    )
    fooled = PGD(1 / 16, 5)
    adversarial = [
        fooled(classifier, (variables, whole), images, labels, jax.random.key(2))[:real]
        for images, labels, real in padded_batches(search, batch)
    ]
    adversarial = Split(np.concatenate(adversarial), search.labels)
    rows, mesh = {}, devices.mesh()
    if options.only_races:
        for number, group in enumerate(groups(architecture)):
            make = partial(
                subproblem.make_task,
                classifier,
                variables,
                whole,
                group,
                batch_size=batch,
                mesh=mesh,
            )
            members = candidates(number, whole[group], options.population)
            first = [Split(*(part[:batch] for part in split)) for split in (search, adversarial)]
            fitness.score(make(*first, population=len(members)), members)  # compiles the others
            rows[group] = recorded["groups"][group]
            rows[group]["race"] = raced(make, search, adversarial, members)
            print(name, group, rows[group]["race"], flush=True)
        return recorded | rates(rows, recorded["evaluations"])
    clean, attacked = (Split(*(part[:count] for part in s)) for s in (search, adversarial))
    score_whole = jax.jit(lambda trees, x, y: scoring.judge(classifier((variables, trees), x), y))
    score_all = jax.jit(jax.vmap(score_whole, in_axes=(0, None, None), out_axes=1))
    twin = MaskedTwin(architecture, variables, (clean, attacked))
    twin_batch = min(choices, key=lambda size: seconds_of(lambda: twin.score(None, None, size)))

    def unshared(trees, split_batches):
        return mean([[score_whole(trees, *b) for b in s] for s in split_batches])

    def load(size):
        return [[part[:2] for part in padded_batches(s, size)] for s in (clean, attacked)]

    by_size = {size: load(size) for size in choices}
    own_batch = min(choices, key=lambda size: seconds_of(lambda: unshared(whole, by_size[size])))
    loaded = by_size[own_batch]

    with compilation.count_compilations() as compiled:
        for number, group in enumerate(groups(architecture)):
            members = candidates(number, whole[group], options.population)
            make = partial(
                subproblem.make_task,
                classifier,
                variables,
                whole,
                group,
                batch_size=batch,
                mesh=mesh,
            )
            task = make(clean, attacked, population=options.population)
            trees = trees_of(whole, group, members[: options.vmap])
            tree = dict(whole) | {group: jnp.asarray(members[0])}

            def vmapped(trees=trees):
                return mean([[score_all(trees, *b) for b in s] for s in loaded])

            def ours(task=task, members=members):
                scores = fitness.score(task, members)
                return np.array(
                    [[scores.error, scores.loss], [scores.robust_error, scores.robust_loss]]
                )

            def share(task=task):
                for b in task.clean + task.adversarial:
                    jax.block_until_ready(task.prefix(b._replace(prefix=None)))

            runs = {
                "ours": (ours, len(members)),
                "unshared": (partial(unshared, tree, loaded), 1),
                "vmap": (vmapped, min(options.vmap, len(members))),
                "spikingjelly": (partial(twin.score, group, members[0], twin_batch), 1),
                "prefix": (share, 1),
            }
            if side < 32:
                attacking = make(clean, None, attack=PGD(1 / 16, 5), key=jax.random.key(4))
                runs["white_box"] = partial(fitness.score, attacking, members[:4]), 4
            found = {way: run() for way, (run, _) in runs.items()}  # compiles, warms up
            seconds = {way: [] for way in runs}
            for _ in range(options.rounds):
                for way, (run, evaluations) in runs.items():
                    started = time.perf_counter()
                    run()
                    seconds[way].append((time.perf_counter() - started) / evaluations)
            first = found["ours"][:, :, 0]
            differences = {
                way: np.abs(np.reshape(found[way], (2, 2, -1))[:, :, 0] - first).max(0).tolist()
                for way in WAYS[1:]
            }
            rows[group] = {
                "seconds": {way: statistics.median(times) for way, times in seconds.items()},
                "member_chunk": task.member_chunk,
                "error_and_loss_differ_by": differences,
                "race": raced(make, search, adversarial, members),
            }
            print(name, group, {k: round(v, 4) for k, v in rows[group]["seconds"].items()})
    return rates(rows, options.evaluations) | {
        "compiled_programs": len(compiled.programs),
        "compile_seconds": compiled.seconds,
        "population": options.population,
        "evaluations": options.evaluations,
        "rounds": options.rounds,
        "images": count,
        "batch": batch,
        "unshared_and_vmap_batch": own_batch,
        "spikingjelly_batch": twin_batch,
        "accuracy": float(1 - found["ours"][0, 0, 0]),
    }


def candidates(number: int, alive: np.ndarray, count: int) -> np.ndarray:
    """Masks of a group as the preset `faithful` starts with."""
    key = jax.random.fold_in(jax.random.key(3), number)
    least = round(0.9 * len(alive))
    return np.asarray(strategies.initial_masks(key, alive, 0.95, least, size=count + 1))[1:]


def raced(make, search: Split, adversarial: Split, members: np.ndarray) -> dict:
    """A race of the candidates over more images, beside the full evaluation of one a device on a
    quarter of them (its time is linear in both; whether choices differ is racing.py's question)."""
    order = np.random.default_rng(0).permutation(len(search.labels))
    shuffled = [Split(*(part[order] for part in split)) for split in (search, adversarial)]
    task, seconds = make(*shuffled, population=len(members)), {}
    jax.block_until_ready([batch.prefix for batch in task.clean + task.adversarial])
    few, quarter = members[: jax.device_count()], len(task.clean) // 4
    part = task._replace(clean=task.clean[:quarter], adversarial=task.adversarial[:quarter])
    first = part._replace(clean=task.clean[:1], adversarial=task.adversarial[:1])
    fitness.score(first, members[:1])  # compiles the last program, for what is dealt out by batch
    runs = {"full": (part, few, None), "race": (task, members, Racing(objective="loss"))}
    for way, (some, candidates, racing) in runs.items():
        started = time.perf_counter()
        scores = fitness.score(some, candidates, racing=racing)
        passed = time.perf_counter() - started
        seconds[way] = passed / len(candidates) * task.images / some.images
    return {
        "images": task.images,
        "candidates": len(members),
        "seconds": seconds["race"],
        "full_seconds": seconds["full"],
        "share_of_images": float(scores.images.mean() / task.images),
        "accuracy": float(1 - scores.error.min()),
    }


def rates(rows: dict, evaluations: int) -> dict:
    """The sweep's rates, with so many evaluations a group, and their ratios."""
    per = {way: sum(row["seconds"][way] for row in rows.values()) for way in (*WAYS, "prefix")}
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
    """The mask tree of every member."""
    repeated = {name: jnp.repeat(mask[None], len(members), 0) for name, mask in whole.items()}
    return repeated | {group: jnp.asarray(members)}


def mean(scored: list[list]) -> np.ndarray:
    """(2, 2, ...) by set and kind: means over the images of all batches."""
    return np.stack([np.concatenate(jax.device_get(s), -1).mean(-1, np.float64) for s in scored])


def scaled(split: Split, side: int, channels: int) -> Split:
    """The digits as larger images of more channels."""
    factor = side // split.images.shape[1]
    images = split.images.repeat(factor, 1).repeat(factor, 2).repeat(channels, 3)
    return Split(images, split.labels)


class MaskedTwin:
    """The network in SpikingJelly, with one mask that multiplies the spikes of its group."""

    def __init__(self, architecture, variables, splits):
        self.network = FoldedTwin(architecture, variables).to(memory_format=torch.channels_last)
        self.group, self.mask = None, None
        self.splits = splits
        for node in architecture.nodes:
            if isinstance(node, Spike):
                gate = partial(self._gate, group_of(architecture)[node.name])
                self.network.layer(node).register_forward_hook(gate)

    def _gate(self, group, layer, inputs, spikes):
        if group != self.group:
            return None
        return spikes * self.mask.reshape(-1, *[1] * (spikes.ndim - 3))

    def score(self, group: str | None, member: np.ndarray | None, batch: int) -> np.ndarray:
        """(2, 2): by set, error and cross-entropy."""
        self.group, self.mask = group, None if member is None else torch.tensor(member)
        found = []
        with torch.inference_mode():
            for split in self.splits:
                wrong = loss = 0.0
                for start in range(0, len(split.labels), batch):
                    images, labels = (part[start : start + batch] for part in split)
                    images = nchw(images).to(memory_format=torch.channels_last)
                    labels = torch.from_numpy(np.array(labels)).long()
                    logits = self.network(images)
                    wrong += (logits.argmax(-1) != labels).sum()
                    loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                found.append([float(wrong), float(loss)])
        return np.array(found) / len(self.splits[0].labels)


def seconds_of(run: Callable[[], object]) -> float:
    """Median of three calls after one."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def figure(record: dict) -> Figure:
    """Seconds an evaluation by group and way."""
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
