"""Shared parts of the benchmarks: random spiking networks, scoring problems, timing and records."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ccsrp_jax.coevolution import fitness, subproblem
from ccsrp_jax.coevolution.task import Task
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.architecture import Architecture, gate_position, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cost import layer_macs
from ccsrp_jax.networks.nodes import Conv, Dense
from ccsrp_jax.networks.spiking_network import SpikingNetwork, Values
from ccsrp_jax.reporting.figure_style import to_png
from ccsrp_jax.utils import devices

EXPERIMENTS = Path(__file__).parents[1]
RESULTS = EXPERIMENTS / "results"
sys.path.append(str(EXPERIMENTS))  # for `peers`, which scripts in both folders import

Name = TypeVar("Name", bound=Hashable)
GAIN = 16  # of random kernels, so that layers pass on as many spikes as they read
INPUTS = {"small": (8, 8, 1), "medium": (32, 32, 3), "vgg11": (32, 32, 3)}
CPU = jax.default_backend() == "cpu"
PARTS = ("layers", "gate", "neurons", "dispatch")  # of a call that scores candidates


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with a script's first line as its description, and --out."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    return made


def machine(*packages: str) -> dict:
    """Device, backend, cores and versions (of JAX, and of `packages`)."""
    device = jax.devices()[0]
    return {
        "device": platform.processor() or platform.machine() if CPU else device.device_kind,
        "backend": jax.default_backend(),
        "threads": os.cpu_count(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", *packages)
        },
    }


def write(folder: Path, name: str, record: dict, figure: Figure | None = None) -> None:
    """Writes NAME.json, and NAME.png if there is a figure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    if figure is not None:
        (folder / f"{name}.png").write_bytes(to_png(figure))


def with_widths(architecture: Architecture, width: Callable[[int], int]) -> Architecture:
    """The network with `width` applied to the width of every layer but the classifier."""
    *nodes, last = (
        dataclasses.replace(node, width=width(node.width))
        if isinstance(node, Conv | Dense)
        else node
        for node in architecture.nodes
    )
    last = dataclasses.replace(last, width=architecture.classes)
    return dataclasses.replace(architecture, nodes=(*nodes, last))


def spiking_variables(architecture: Architecture, seed: int = 0) -> dict:
    """Random weights under which every layer spikes (at initialization deep layers are silent)."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            kernel = random.standard_normal(leaf.shape, np.float32)
            return jnp.asarray(GAIN * kernel / np.float32(np.prod(leaf.shape[:-1]) ** 0.5))
        return jnp.full(leaf.shape, float(name in ("var", "scale")))

    shapes = jax.eval_shape(lambda key: zoo.init(key, architecture), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_problem(
    architecture: Architecture,
    variables: dict,
    group: str,
    population: int,
    images: int,
    **options: Any,
) -> tuple[Task, np.ndarray]:
    """A task on random images, and a random population for it: (members, filters)."""
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


def score_calls(task: Task, members: np.ndarray) -> int:
    """The number of calls of `score_members` in one score."""
    size = task.member_chunk * devices.device_count(task.mesh)
    return len(task.clean + task.adversarial) * -(-len(members) // size)


def take_turns(runs: Mapping[Name, Callable[[], Any]], rounds: int) -> dict[Name, list[float]]:
    """Seconds of every run in every round, after one round to warm up.

    The runs alternate, so that a drift of the machine's speed affects all of them.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(timings: Mapping[Name, list[float]]) -> dict[Name, float]:
    return {name: statistics.median(times) for name, times in timings.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def gate_part(architecture: Architecture, gate: int, end: int, prefix: Values, members):
    """Spikes as float, multiplied by each mask, and pooled if the next node pools."""
    values = {k: v.astype(jnp.float32) for k, v in prefix.items()}
    network, name = SpikingNetwork(architecture), architecture.nodes[gate].name

    def walk(member):
        gated = values | {name: values[name] * member}
        return network.apply({}, gated, begin=gate + 1, end=end, method="walk")[0]

    return jax.vmap(walk)(members)


@partial(jax.jit, static_argnums=(0, 1, 2))
def walk_part(architecture: Architecture, begin: int, end: int, variables, masks_, values):
    """Nodes `begin` to `end`, for all members of a chunk."""
    network = SpikingNetwork(architecture)

    def walk(values):
        stretch = {"begin": begin, "end": end, "method": "walk"}
        return network.apply(variables, values, masks_, **stretch)[0]

    return jax.vmap(walk)(values)


def parts_of_call(task: Task, members: np.ndarray) -> dict[str, tuple[str, Callable[[], Any]]]:
    """By node: the kind of part (see `PARTS`), and a function that computes it for one chunk."""
    architecture, batch = task.classifier.architecture, task.clean[0]
    nodes, gate = architecture.nodes, gate_position(architecture, task.group)
    chunk = np.resize(np.arange(len(members)), task.member_chunk)
    starts = [i for i in range(gate, len(nodes)) if isinstance(nodes[i], Conv | Dense)]
    parts = {}

    def add(name, kind, part):
        parts[name] = kind, part
        return part()

    opening = architecture, gate, starts[0], task.prefix(batch), jnp.asarray(members[chunk])
    values = add("gate", "gate", partial(gate_part, *opening))
    for start, end in pairwise([*starts, len(nodes)]):
        for begin, stop in ((start, start + 1), (start + 1, end)):
            if begin < stop:
                kind = "layers" if begin == start else "neurons"
                network = architecture, begin, stop, task.variables, task.masks
                values = add(nodes[begin].name, kind, partial(walk_part, *network, values))
    return parts


def dispatch_only(task: Task, members: np.ndarray) -> Callable[[], Any]:
    """Scores as many candidates on the same graph with one filter a layer and one image."""
    thin = with_widths(task.classifier.architecture, lambda width: 1)
    thin_task, thin_members = random_problem(
        *(thin, spiking_variables(thin), task.group, len(members), len(task.clean)),
        batch_size=1,
        member_chunk=task.member_chunk,
    )
    return partial(fitness.score, thin_task, thin_members)


def breakdown(task: Task, members: np.ndarray, seconds: float, rounds: int) -> dict:
    """Seconds of the parts of a call, each timed by itself; a whole score takes `seconds`."""
    architecture, batch = task.classifier.architecture, task.clean[0]
    count = score_calls(task, members)
    repeats = min(count, 8)  # in one timing, as the calls of a score are dispatched together
    parts = parts_of_call(task, members)
    runs: dict[str, Callable[[], Any]] = {
        name: lambda part=part: [part() for _ in range(repeats)]
        for name, (_, part) in parts.items()
    }
    runs["dispatch"] = dispatch_only(task, members)
    timed = {
        name: time / (count if name == "dispatch" else repeats)
        for name, time in medians(take_turns(runs, rounds)).items()
    }
    by_kind = dict.fromkeys(PARTS, 0.0) | {"dispatch": timed["dispatch"]}
    for name, (kind, _) in parts.items():
        by_kind[kind] += timed[name]
    macs = layer_macs(architecture)
    evaluations = len(batch.labels) * task.member_chunk / 1e9
    layers = {
        name: {
            "gmacs": evaluations * macs[name],
            "seconds": timed[name],
            "gmacs_per_second": evaluations * macs[name] / timed[name],
        }
        for name, (kind, _) in parts.items()
        if kind == "layers"
    }
    call = seconds / count
    return {
        "call_seconds": call,
        "parts_seconds": by_kind,
        "parts_share": {name: part / call for name, part in by_kind.items()},
        "layers": layers,
    }
