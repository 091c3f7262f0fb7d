"""How far scoring is from the fastest it could be, group by group.

    .venv/bin/python experiments/benchmarks/floor.py

The floor is the time of the multiply-accumulates that must be done, members x images x
suffix MACs over all T steps, at the rate of a 2048 x 2048 x 2048 float32 matrix product, timed
in the same run, taking turns with the scoring. What all candidates share is computed before.
Networks: `small` on 8 x 8 x 1 and `vgg11` on 32 x 32 x 3 images, T = 4, random weights under
which every layer spikes, random images and as many adversarial ones.

For the three groups furthest from the floor, and the one that takes most time, the parts of
a call are timed one at a time, as the library's own code compiled by itself: convolutions
and dense layers, each with its rate; spikes from uint8 to float, times the mask and pooled;
the rest of the element-wise work; and the cost of the call itself, measured on the same graph
with one filter a layer and one image. Parts lose what XLA gains by fusing them, and calls of
one score may overlap, so they need not add up.

On two cores (jax 0.10.2; product at 98.5 GMAC/s) the sweep takes 1.10 times its floor on vgg11
(91 %), where the worst are fc2 (7 %: 0.75 ms calls, half of which are the call itself), conv8
(73 %) and fc1 (74 %: dense layers of 64 rows at three quarters of the product's rate). On
`small` it is 45 %: its convolutions of 24 and 48 channels run at 35 to 42 % of the product's
rate, which bounds conv1 (43 %) and conv2 (62 %); conv3 (4 %) is the conversion of spikes and a
classifier of 10 columns.

Writes results/floor.json and floor.png.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ccsrp_jax.coevolution import fitness, subproblem
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.architecture import Architecture, gate_position, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cost import layer_macs, suffix_macs
from ccsrp_jax.networks.nodes import Conv, Dense
from ccsrp_jax.networks.spiking_network import SpikingNetwork, Values
from ccsrp_jax.reporting.figure_style import BLUE, GREEN, GREY, INK, VERMILION, style_axes, to_png
from ccsrp_jax.utils import devices

RESULTS = Path(__file__).parents[1] / "results"
GAIN = 16  # of random kernels, so that layers pass on as many spikes as they read
INPUTS = {"small": (8, 8, 1), "medium": (32, 32, 3), "vgg11": (32, 32, 3)}
CPU = jax.default_backend() == "cpu"
SIZES = {  # images and population that fill the device, and take seconds
    "small": (256, 16) if CPU else (1024, 256),
    "vgg11": (16, 2) if CPU else (256, 64),
}
PARTS = {"layers": BLUE, "gate": GREEN, "neurons": VERMILION, "dispatch": GREY}
PART_NAMES = {
    "layers": "convolutions, dense layers",
    "gate": "spikes to float, mask, pooling",
    "neurons": "batch norm, LIF, pooling",
    "dispatch": "the call itself",
}


def machine() -> dict:
    """What the figures depend on beside the code."""
    device = jax.devices()[0]
    return {
        "device": platform.processor() or platform.machine() if CPU else device.device_kind,
        "backend": jax.default_backend(),
        "threads": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def with_widths(architecture: Architecture, width: Callable[[int], int]) -> Architecture:
    """The network with other widths, but for the classifier's."""
    *nodes, last = (
        dataclasses.replace(node, width=width(node.width))
        if isinstance(node, Conv | Dense)
        else node
        for node in architecture.nodes
    )
    last = dataclasses.replace(last, width=architecture.classes)
    return dataclasses.replace(architecture, nodes=(*nodes, last))


def spiking_variables(architecture: Architecture, seed: int = 0) -> dict:
    """Random weights under which every layer spikes: fresh ones leave deep layers silent."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            kernel = random.standard_normal(leaf.shape, np.float32)
            return jnp.asarray(GAIN * kernel / np.float32(np.prod(leaf.shape[:-1]) ** 0.5))
        return jnp.full(leaf.shape, float(name in ("var", "scale")))

    shapes = jax.eval_shape(lambda key: zoo.init(key, architecture), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def problem(
    architecture: Architecture,
    variables: dict,
    group: str,
    population: int,
    images: int,
    **options: Any,
) -> tuple[subproblem.Task, np.ndarray]:
    """A task on random images and a population for it."""
    random = np.random.default_rng(0)
    labels = random.integers(0, architecture.classes, images).astype(np.int32)
    clean, adversarial = (
        Split(random.uniform(size=(images, *architecture.input_shape)).astype(np.float32), labels)
        for _ in range(2)
    )
    network = Classifier(architecture), variables, masks.ones(architecture)
    task = subproblem.make_task(
        *network, group, clean, adversarial, population=population, **options
    )
    members = random.integers(0, 2, (population, groups(architecture)[group])).astype(np.float32)
    members[:, 0] = 1
    return task, members


def calls(task: subproblem.Task, members: np.ndarray) -> int:
    """How often a score calls `score_members`."""
    size = task.member_chunk * devices.device_count(task.mesh)
    return len(task.clean + task.adversarial) * -(-len(members) // size)


def take_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round; a round before them warms up.

    They take turns, so that a drift of the machine's speed meets all of them.
    """
    seconds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


@partial(jax.jit, static_argnums=(0, 1, 2))
def gate_part(architecture: Architecture, gate: int, end: int, prefix: Values, members):
    """Spikes as float, times each member, and pooled where the next layer reads them so."""
    values = {k: v.astype(jnp.float32) for k, v in prefix.items()}
    network, name = SpikingNetwork(architecture), architecture.nodes[gate].name

    def walk(member):
        gated = values | {name: values[name] * member}
        return network.apply({}, gated, begin=gate + 1, end=end, method="walk")[0]

    return jax.vmap(walk)(members)


@partial(jax.jit, static_argnums=(0, 1, 2))
def walk_part(architecture: Architecture, begin: int, end: int, variables, masks_, values):
    """A stretch of the network, for all members of a chunk."""
    network = SpikingNetwork(architecture)

    def walk(values):
        stretch = {"begin": begin, "end": end, "method": "walk"}
        return network.apply(variables, values, masks_, **stretch)[0]

    return jax.vmap(walk)(values)


def breakdown(task: subproblem.Task, members: np.ndarray, seconds: float, rounds: int) -> dict:
    """Seconds that the parts of a call take, each by itself; `seconds` are a whole score's."""
    architecture, batch = task.classifier.architecture, task.clean[0]
    nodes, gate = architecture.nodes, gate_position(architecture, task.group)
    count = calls(task, members)
    together = min(count, 8)  # calls that one timing holds, as a score's are dispatched together
    chunk = np.resize(np.arange(len(members)), task.member_chunk)
    starts = [i for i in range(gate, len(nodes)) if isinstance(nodes[i], Conv | Dense)]
    runs, kinds = {}, {}

    def add(name, kind, part):
        runs[name], kinds[name] = lambda: [part() for _ in range(together)], kind
        return part()

    opening = architecture, gate, starts[0], task.prefix(batch), jnp.asarray(members[chunk])
    values = add("gate", "gate", partial(gate_part, *opening))
    for start, end in pairwise([*starts, len(nodes)]):
        for begin, stop in ((start, start + 1), (start + 1, end)):
            if begin < stop:
                kind = "layers" if begin == start else "neurons"
                network = architecture, begin, stop, task.variables, task.masks
                values = add(nodes[begin].name, kind, partial(walk_part, *network, values))
    thin = with_widths(architecture, lambda width: 1)
    thin_task, thin_members = problem(
        *(thin, spiking_variables(thin), task.group, len(members), len(task.clean)),
        batch_size=1,
        member_chunk=task.member_chunk,
    )
    runs["dispatch"] = partial(fitness.score, thin_task, thin_members)
    timed = {name: statistics.median(times) for name, times in take_turns(runs, rounds).items()}
    timed = {k: v / (count if k == "dispatch" else together) for k, v in timed.items()}
    parts = dict.fromkeys(PARTS, 0.0) | {"dispatch": timed["dispatch"]}
    for name, kind in kinds.items():
        parts[kind] += timed[name]
    macs, done, layers = layer_macs(architecture), len(batch.labels) * len(chunk) / 1e9, {}
    for name in (nodes[start].name for start in starts):
        layers[name] = {
            "gmacs": done * macs[name],
            "seconds": timed[name],
            "gmacs_per_second": done * macs[name] / timed[name],
        }
    call = seconds / count
    return {
        "call_seconds": call,
        "parts_seconds": parts,
        "parts_share": {name: part / call for name, part in parts.items()},
        "layers": layers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--images", type=int, help="of each set; by default by model and device")
    parser.add_argument("--population", type=int, help="likewise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small only, in seconds")
    options = parser.parse_args()
    side, products = 2048, 5 if CPU else 100  # products that one timing holds
    if options.quick:
        options.models, side, options.rounds = ["small"], 256, 1
        options.images, options.population = options.images or 8, options.population or 2
    square, multiply = jax.random.normal(jax.random.key(0), (side, side)), jax.jit(jnp.matmul)
    prepared, runs = {}, {"product": lambda: [multiply(square, square) for _ in range(products)]}
    for model in options.models:
        architecture = zoo.build(model, INPUTS[model], 10)
        variables = spiking_variables(architecture)
        images, population = SIZES[model]
        images, population = options.images or images, options.population or population
        for group in groups(architecture):
            task, members = problem(architecture, variables, group, population, images)
            prepared[model, group] = task, members
            runs[model, group] = partial(fitness.score, task, members)
    timings = take_turns(runs, options.rounds)
    median = {name: statistics.median(times) for name, times in timings.items()}
    rate = products * side**3 / median["product"]
    record = {
        "what": "share of the floor that scoring reaches, by group; see floor.py",
        "product": {
            "side": side,
            "timings": timings["product"],
            "gmacs_per_second": rate / 1e9,
        },
        "networks": {},
    }
    for model in options.models:
        found = {}
        for (name, group), (task, members) in prepared.items():
            if name == model:
                todo = 2 * len(members) * task.images  # the adversarial images are as many
                macs = todo * suffix_macs(task.classifier.architecture, group)
                seconds = median[name, group]
                found[group] = {
                    "member_chunk": task.member_chunk,
                    "calls": calls(task, members),
                    "gmacs": macs / 1e9,
                    "seconds": seconds,
                    "timings": timings[name, group],
                    "floor_seconds": macs / rate,
                    "fraction": macs / rate / seconds,
                }
        total = sum(each["seconds"] for each in found.values())
        for each in found.values():
            each["share_of_sweep"] = each["seconds"] / total
        shown = sorted(found, key=lambda group: found[group]["fraction"])[:3]
        costly = max(found, key=lambda group: found[group]["seconds"])
        record["networks"][model] = {
            "input_shape": INPUTS[model],
            "time_steps": task.classifier.architecture.time_steps,
            "images": task.images,
            "population": len(members),
            "sweep_fraction": sum(each["floor_seconds"] for each in found.values()) / total,
            "groups": found,
            "breakdown": {
                group: breakdown(*prepared[model, group], found[group]["seconds"], options.rounds)
                for group in dict.fromkeys([*shown, costly])
            },
        }
    record |= machine()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "floor.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "floor.png").write_bytes(to_png(figure(record)))
    show(record)


def show(record: dict) -> None:
    """The record in lines."""
    rate = record["product"]["gmacs_per_second"]
    print(f"matrix product: {rate:.1f} GMAC/s")
    for model, network in record["networks"].items():
        print(f"{model}: {network['sweep_fraction']:.0%} of the floor over the sweep")
        for group, each in network["groups"].items():
            print(
                f"  {group:<12}{each['fraction']:7.1%} of the floor"
                f"{each['share_of_sweep']:8.1%} of the time"
            )
        for group, parts in network["breakdown"].items():
            words = [f"{PART_NAMES[k]} {share:.0%}" for k, share in parts["parts_share"].items()]
            print(f"  {group}, of a call of {1000 * parts['call_seconds']:.2f} ms:")
            print("    " + "; ".join(words))
            rates = {k: v["gmacs_per_second"] / rate for k, v in parts["layers"].items()}
            words = [f"{name} {share:.0%}" for name, share in rates.items()]
            print("    of the product's rate: " + ", ".join(words))


def figure(record: dict) -> Figure:
    """The share of the floor by group, and the parts of a call of some."""
    networks = record["networks"]
    rows = [max(len(each["groups"]), 4) for each in networks.values()]
    drawn = Figure(figsize=(9, 1.8 + 0.3 * sum(rows)), layout="constrained")
    grid = drawn.subplots(len(networks), 2, squeeze=False, height_ratios=rows)
    for (model, network), (left, right) in zip(networks.items(), grid, strict=True):
        shares = {group: 100 * each["fraction"] for group, each in network["groups"].items()}
        whole = f"{model}: {network['sweep_fraction']:.0%} of the floor over the sweep"
        style_axes(left, whole)
        bars = left.barh(list(shares), list(shares.values()), color=BLUE, height=0.65)
        times = [f"{each['share_of_sweep']:.0%} of the time" for each in network["groups"].values()]
        left.bar_label(bars, times, padding=4, fontsize=8, color=GREY)
        left.set_xlim(0, 1.45 * max(shares.values()))
        left.set_xlabel("share of the floor reached (%)", fontsize=9, color=INK)
        style_axes(right, "Parts of a call, each by itself")
        starts = dict.fromkeys(network["breakdown"], 0.0)
        for part, colour in PARTS.items():
            each = [100 * cut["parts_share"][part] for cut in network["breakdown"].values()]
            bar = {"left": list(starts.values()), "color": colour, "height": 0.6}
            right.barh(list(starts), each, label=PART_NAMES[part], **bar)
            starts = {k: v + more for (k, v), more in zip(starts.items(), each, strict=True)}
        right.axvline(100, color=INK, linewidth=0.9, linestyle=":")
        right.set_xlabel("share of the call's time (%)", fontsize=9, color=INK)
        for ax in (left, right):
            ax.invert_yaxis()
            ax.grid(visible=False, axis="y")
            ax.grid(visible=True, axis="x", color="#EBEBEB", linewidth=0.8)
    legend = {"loc": "outside lower center", "ncols": 4, "frameon": False, "fontsize": 8.5}
    drawn.legend(*grid[0, 1].get_legend_handles_labels(), labelcolor=INK, **legend)
    return drawn


if __name__ == "__main__":
    main()
