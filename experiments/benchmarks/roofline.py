"""How close scoring comes to the roofline, group by group.

    .venv/bin/python experiments/benchmarks/roofline.py

The roofline is the rate of a 2048 x 2048 x 2048 float32 matrix product, timed in the same run
and alternating with the scoring; the floor is the time that the multiply-accumulates of a score
(members x images x suffix MACs over all T steps) take at that rate. The prefix that all
candidates share is computed beforehand. Networks: `small` on 8 x 8 x 1 and `vgg11` on
32 x 32 x 3 images, T = 4, random weights under which every layer spikes, random images and as
many adversarial ones.

For the three groups furthest from the roofline, and the one that takes most time, the parts of
a call are timed one at a time, each compiled separately from the library's own code:
convolutions and dense layers, each with its rate; conversion of spikes from uint8 to float,
masking and pooling; the other element-wise work; and the overhead of the call, measured on the
same graph with one filter a layer and one image. XLA fuses the parts within a call, and the
calls of one score may overlap, so the parts need not add up to the whole.

On two cores (jax 0.10.2; product at 98.5 GMAC/s) the sweep takes 1.10 times its floor on vgg11
(91 %), where the slowest are fc2 (7 %: calls of 0.75 ms, half of it overhead), conv8 (73 %) and
fc1 (74 %: dense layers of 64 rows at three quarters of the product's rate). On `small` it is
45 %: its convolutions of 24 and 48 channels run at 35 to 42 % of the product's rate, which
limits conv1 (43 %) and conv2 (62 %); conv3 (4 %) is dominated by the conversion of spikes and a
classifier of 10 columns.

Writes results/roofline.json and roofline.png.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ccsrp_jax.coevolution import fitness
from ccsrp_jax.coevolution.task import Task
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.architecture import groups
from ccsrp_jax.networks.cost import suffix_macs
from ccsrp_jax.reporting.figure_style import BLUE, GREEN, GREY, INK, VERMILION, style_axes
from common import (
    CPU,
    INPUTS,
    PARTS,
    breakdown,
    machine,
    medians,
    parser,
    random_problem,
    score_calls,
    spiking_variables,
    take_turns,
    write,
)

SIZES = {  # images and population that fill the device, and take seconds
    "small": (256, 16) if CPU else (1024, 256),
    "vgg11": (16, 2) if CPU else (256, 64),
}
COLOURS = dict(zip(PARTS, (BLUE, GREEN, VERMILION, GREY), strict=True))
PART_NAMES = {
    "layers": "convolutions, dense layers",
    "gate": "spikes to float, mask, pooling",
    "neurons": "batch norm, LIF, pooling",
    "dispatch": "the call itself",
}


class Scoring(NamedTuple):
    """Candidates for one group of one network, and the times of their score."""

    task: Task
    members: np.ndarray
    timings: list[float]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    made.add_argument("--images", type=int, help="of each set; by default by model and device")
    made.add_argument("--population", type=int, help="likewise")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--quick", action="store_true", help="small only, in seconds")
    options = made.parse_args()
    if options.quick:
        options.models, options.rounds = ["small"], 1
        options.images, options.population = options.images or 8, options.population or 2
    product, scorings = timed(options, side=256 if options.quick else 2048)
    rate = 1e9 * product["gmacs_per_second"]
    record = {
        "what": "share of the roofline that scoring reaches, by group; see roofline.py",
        "product": product,
        "networks": {
            model: by_group(model, found, rate, options.rounds) for model, found in scorings.items()
        },
        **machine(),
    }
    write(options.out, "roofline", record, figure(record))
    show(record)


def timed(options: argparse.Namespace, side: int) -> tuple[dict, dict[str, dict[str, Scoring]]]:
    """The matrix product's rate, and the timed scores by model and group; all alternate."""
    products = 5 if CPU else 100  # in one timing
    square, multiply = jax.random.normal(jax.random.key(0), (side, side)), jax.jit(jnp.matmul)
    problems: dict[tuple[str, str], tuple[Task, np.ndarray]] = {}
    runs: dict[Any, Callable[[], Any]] = {
        "product": lambda: [multiply(square, square) for _ in range(products)]
    }
    for model in options.models:
        architecture = zoo.build(model, INPUTS[model], 10)
        variables = spiking_variables(architecture)
        images, population = SIZES[model]
        images, population = options.images or images, options.population or population
        for group in groups(architecture):
            problems[model, group] = random_problem(
                architecture, variables, group, population, images
            )
            runs[model, group] = partial(fitness.score, *problems[model, group])
    timings = take_turns(runs, options.rounds)
    rate = products * side**3 / medians(timings)["product"]
    product = {"side": side, "timings": timings["product"], "gmacs_per_second": rate / 1e9}
    scorings = {model: {} for model in options.models}
    for (model, group), (task, members) in problems.items():
        scorings[model][group] = Scoring(task, members, timings[model, group])
    return product, scorings


def by_group(model: str, scorings: dict[str, Scoring], rate: float, rounds: int) -> dict:
    """The share of the roofline of every group of a network, and the parts of some calls."""
    seconds = medians({group: scoring.timings for group, scoring in scorings.items()})
    total, found = sum(seconds.values()), {}
    for group, (task, members, timings) in scorings.items():
        evaluations = 2 * len(members) * task.images  # the adversarial images are as many
        macs = evaluations * suffix_macs(task.classifier.architecture, group)
        found[group] = {
            "member_chunk": task.member_chunk,
            "calls": score_calls(task, members),
            "gmacs": macs / 1e9,
            "seconds": seconds[group],
            "timings": timings,
            "floor_seconds": macs / rate,
            "fraction": macs / rate / seconds[group],
            "share_of_sweep": seconds[group] / total,
        }
    slowest = sorted(found, key=lambda group: found[group]["fraction"])[:3]
    costliest = max(seconds, key=lambda group: seconds[group])
    task, members, _ = next(iter(scorings.values()))
    return {
        "input_shape": INPUTS[model],
        "time_steps": task.classifier.architecture.time_steps,
        "images": task.images,
        "population": len(members),
        "sweep_fraction": sum(each["floor_seconds"] for each in found.values()) / total,
        "groups": found,
        "breakdown": {
            group: breakdown(*scorings[group][:2], seconds[group], rounds)
            for group in dict.fromkeys([*slowest, costliest])
        },
    }


def show(record: dict) -> None:
    """Prints the record."""
    rate = record["product"]["gmacs_per_second"]
    print(f"matrix product: {rate:.1f} GMAC/s")
    for model, network in record["networks"].items():
        print(f"{model}: {network['sweep_fraction']:.0%} of the roofline over the sweep")
        for group, each in network["groups"].items():
            print(
                f"  {group:<12}{each['fraction']:7.1%} of the roofline"
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
    """The share of the roofline by group, and the parts of a call of some."""
    networks = record["networks"]
    rows = [max(len(each["groups"]), 4) for each in networks.values()]
    drawn = Figure(figsize=(9, 1.8 + 0.3 * sum(rows)), layout="constrained")
    grid = drawn.subplots(len(networks), 2, squeeze=False, height_ratios=rows)
    for (model, network), (left, right) in zip(networks.items(), grid, strict=True):
        shares = {group: 100 * each["fraction"] for group, each in network["groups"].items()}
        whole = f"{model}: {network['sweep_fraction']:.0%} of the roofline over the sweep"
        style_axes(left, whole)
        bars = left.barh(list(shares), list(shares.values()), color=BLUE, height=0.65)
        times = [f"{each['share_of_sweep']:.0%} of the time" for each in network["groups"].values()]
        left.bar_label(bars, times, padding=4, fontsize=8, color=GREY)
        left.set_xlim(0, 1.45 * max(shares.values()))
        left.set_xlabel("share of the roofline reached (%)", fontsize=9, color=INK)
        style_axes(right, "Parts of a call, each by itself")
        starts = dict.fromkeys(network["breakdown"], 0.0)
        for part, colour in COLOURS.items():
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
