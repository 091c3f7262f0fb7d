"""How the cost of scoring grows with population, time steps, width, images, depth and devices.

    .venv/bin/python experiments/benchmarks/scaling.py

From one setting (on a CPU, `small` on 8 x 8 x 1 images, T = 4, 16 candidates for its first
group, 32 clean and 32 adversarial images), one size at a time is swept: population, T, width,
images, devices; and for depth, networks of 2 to 16 equal convolutions, every group of which
is scored, on half of the images. Timed is `fitness.score`. The shared prefix was computed
before, except for depth, where every score recomputes it. There it is compared with whole
networks for each candidate, without sharing (after checking that their scores are the same), and
the last group but one is timed alone, too. The points of a curve alternate; figures are medians
over rounds, after one for warm-up.

`slope` is the slope of log time over log size, and `macs_slope` that of the MACs that must be
computed: 1 for population, T and images, near 2 for width. Where the slope of time is lower,
small sizes are less efficient; `ends` has the parts of a call at both ends of a curve, as in
roofline.py.

Where all layers cost the same, half of them follow a group on average: sharing halves what
a candidate costs in a sweep, which still grows linearly with the number of layers after the first
(the first reads the image, once for all steps, and costs very little; hence a `macs_slope` above
1), and the whole sweep with its square. The cost of a candidate for one group grows only with the
layers after it, apart from its share of the prefix.

On a CPU the devices are forced ones, with one process for each number of devices, and share the
cores; elsewhere they are real. Both score four times the images.

On two cores (jax 0.10.2), slopes of time: 1.02 with population, 1.02 with T, 0.95 with images
(at 8 images the overhead of the call and the neurons matter a little), 1.57 with width, where the
MACs predict 2 (at half the width neurons, gate and overhead take 40 % of it, at 4 times 9 %, and
the rate is 2.5 times as high). In depth 1.13 without sharing, 1.00 with it at half the cost, and
0.21 for the last group but one. At T = 16 the rate falls by a fifth, and neurons take 32 % of a
call instead of 16 %. Two devices of one core each score 1.47 times as fast as one of two cores,
four no faster than two.

Writes results/scaling.json and scaling.png.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ccsrp_jax.coevolution import fitness
from ccsrp_jax.coevolution.call_size import call_macs
from ccsrp_jax.coevolution.scoring import score_attacked
from ccsrp_jax.coevolution.task import Task
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.architecture import groups
from ccsrp_jax.networks.cost import layer_macs, suffix_macs
from ccsrp_jax.reporting.figure_style import BLUE, GREEN, GREY, INK, VERMILION, style_axes
from ccsrp_jax.utils import devices
from common import (
    CPU,
    INPUTS,
    breakdown,
    machine,
    parser,
    random_problem,
    spiking_variables,
    take_turns,
    with_widths,
    write,
)

POPULATION, TIME, WIDTH, IMAGES = "population", "time_steps", "width", "images"
WHOLE, SHARED, LAST = "depth_whole_networks", "depth_shared", "depth_last_group_but_one"
DEVICES = "devices"
SIZES = {
    POPULATION: (4, 8, 16, 32, 64, 128, 256),
    TIME: (1, 2, 4, 8, 16),
    WIDTH: (0.5, 1, 2, 4),
    IMAGES: (8, 16, 32, 64, 128, 256, 512),
    SHARED: (2, 4, 8, 16),
    DEVICES: (1, 2, 4),
}
QUICK = {POPULATION: (2, 4), TIME: (2,), WIDTH: (0.5,), IMAGES: (2,), SHARED: (2,), DEVICES: (2,)}
PANELS = {
    "Candidates": {POPULATION: BLUE},
    "Time steps": {TIME: BLUE},
    "Width, times the network's": {WIDTH: BLUE},
    "Search images": {IMAGES: BLUE},
    "Layers, seconds a candidate": {WHOLE: VERMILION, SHARED: BLUE, LAST: GREEN},
    "Devices": {DEVICES: BLUE},
}
LABELS = {WHOLE: "not shared, ", SHARED: "shared, ", LAST: "last group but one, "}
FILTERS = 24 if CPU else 256  # of every layer where depth is swept


class Point(NamedTuple):
    """One size of a curve: the run that is timed, and the MACs that it must compute."""

    size: float
    run: Callable[[], Any]
    macs: float
    candidates: int = 1  # that time and MACs are divided by
    call: tuple[Task, np.ndarray] | None = None  # whose parts may be timed


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", choices=INPUTS, default="small" if CPU else "vgg11")
    flags.add_argument("--population", type=int, default=16)
    flags.add_argument("--images", type=int, default=32 if CPU else 256, help="of each set")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--quick", action="store_true", help="a few tiny sizes, in seconds")
    flags.add_argument("--serve", type=int, help=argparse.SUPPRESS)  # for `forced_devices`
    options = flags.parse_args()
    if options.quick:
        options.population, options.images, options.rounds = 4, 4, 1
    if options.serve:
        serve(options)
        return
    swept = QUICK if options.quick else SIZES
    curves = {}
    for name in (POPULATION, TIME, WIDTH, IMAGES):
        points = [point(options, size, **{name: size}) for size in swept[name]]
        curves |= measured({name: points}, options.rounds)
    points, difference = depth_points(options, swept[SHARED])
    curves |= measured(points, options.rounds)
    with forced_devices(options, swept[DEVICES]) if CPU else real_devices(options) as points:
        curves |= measured({DEVICES: points}, options.rounds)
    record = {
        "what": "seconds that scoring takes, by size; see scaling.py",
        "model": options.model,
        "population": options.population,
        "images": options.images,
        "largest_relative_difference_of_sharing": difference,
        "curves": curves,
        **machine(),
    }
    write(options.out, "scaling", record, figure(record))
    show(record)


def point(
    options: argparse.Namespace,
    size: float,
    *,
    time_steps: int = 4,
    width: float = 1,
    mesh: jax.sharding.Mesh | None = None,
    **sizes: int,
) -> Point:
    """Candidates for the network's first group; `sizes` may set `population` and `images`."""
    chosen = vars(options) | sizes
    population, images = chosen["population"], chosen["images"]
    network = zoo.build(options.model, INPUTS[options.model], 10, time_steps=time_steps)
    network = with_widths(network, lambda filters: int(filters * width))
    group = next(iter(groups(network)))
    variables = spiking_variables(network)
    task, members = random_problem(network, variables, group, population, images, mesh=mesh)
    macs = 2 * images * population * suffix_macs(network, group)
    return Point(size, partial(fitness.score, task, members), macs, 1, (task, members))


def depth_points(
    options: argparse.Namespace, depths: tuple[int, ...]
) -> tuple[dict[str, list[Point]], float]:
    """Sweeps over all groups without and with the shared prefix, and the last group but one.

    Also returns the largest relative difference of a loss between the two.
    """
    curves, difference = {WHOLE: [], SHARED: [], LAST: []}, 0.0
    population, images = options.population, min(max(options.images // 2, 1), 256)  # one batch
    for depth in depths:
        network = zoo.plain((FILTERS,) * depth, (8, 8, 1), 10)
        variables, whole = spiking_variables(network), sum(layer_macs(network).values())
        shared, apart, done = {}, {}, {}
        for group in groups(network):
            task, members = random_problem(network, variables, group, population, images)
            kept = fitness.score(task, members)
            task = task._replace(  # so that every score computes what is shared
                clean=[batch._replace(prefix=None) for batch in task.clean],
                adversarial=[batch._replace(prefix=None) for batch in task.adversarial],
            )
            shared[group] = partial(fitness.score, task, members)
            apart[group] = whole_networks(task, members, whole)
            losses, expected = (
                apart[group]()[:, 1].mean(-1),
                np.stack([kept.loss, kept.robust_loss]),
            )
            difference = max(difference, np.abs(losses / expected - 1).max())
            after = suffix_macs(network, group)
            done[group] = 2 * images * (population * after + whole - after)
        sweep, last = population * depth, list(shared)[-2]
        alone = 2 * images * whole * sweep
        curves[WHOLE].append(Point(depth, partial(one_by_one, apart), alone, sweep))
        curves[SHARED].append(Point(depth, partial(one_by_one, shared), sum(done.values()), sweep))
        curves[LAST].append(Point(depth, shared[last], done[last], population))
    return curves, float(difference)


def one_by_one(runs: dict[str, Callable[[], Any]]) -> None:
    for run in runs.values():
        run()


def whole_networks(task: Task, members: np.ndarray, macs: int) -> Callable[[], np.ndarray]:
    """Scores every candidate without sharing: (set, kind, member, image)."""
    chunk = max(1, int(call_macs() / (task.images * macs)))  # by the rule of `fitness`
    parts = [members[at : at + chunk] for at in range(0, len(members), chunk)]
    jobs = [
        [
            (
                task.mask_trees(jnp.asarray(part)),
                jnp.broadcast_to(batch.images, (len(part), *batch.images.shape)),
                batch.labels,
            )
            for part in parts
        ]
        for batch in task.clean + task.adversarial
    ]
    network, key = (task.classifier, task.variables), jax.random.key(0)

    def run():
        scored = [[score_attacked(*network, *job, key) for job in batch] for batch in jobs]
        return np.stack([np.concatenate(each, axis=1) for each in jax.device_get(scored)])

    return run


@contextlib.contextmanager
def real_devices(options: argparse.Namespace) -> Iterator[list[Point]]:
    """The same score, sharded over all devices."""
    points = []
    for count in SIZES[DEVICES]:
        if count <= len(jax.devices()):
            images = 4 * options.images
            sharded = point(options, count, images=images, mesh=devices.mesh(count))
            points.append(sharded._replace(macs=sharded.macs / count, call=None))
    yield points


@contextlib.contextmanager
def forced_devices(options: argparse.Namespace, counts: tuple[int, ...]) -> Iterator[list[Point]]:
    """The same score in server processes with these numbers of devices, which take turns."""
    macs = point(options, 1, images=4 * options.images).macs
    command = [sys.executable, __file__, "--model", options.model]
    command += ["--population", str(options.population), "--images", str(options.images)]
    command += ["--quick"] * options.quick
    with contextlib.ExitStack() as stack:
        points = []
        for count in counts:
            forced = f"--xla_force_host_platform_device_count={count}"
            flags = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
            server = subprocess.Popen(
                [*command, "--serve", str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            )
            points.append(Point(count, partial(ask, stack.enter_context(server)), macs))
        yield points


def ask(server: subprocess.Popen) -> None:
    """Requests one score from a server process, and waits for it."""
    if server.stdin is None or server.stdout is None:
        raise RuntimeError("the process was started without pipes.")
    server.stdin.write("score\n")
    server.stdin.flush()
    if server.stdout.readline() != "done\n":
        raise RuntimeError("a process with forced devices has ended: see what it wrote above.")


def serve(options: argparse.Namespace) -> None:
    """The server: scores once for every line of input, on that many devices."""
    mesh = devices.mesh(options.serve)
    sharded = point(options, options.serve, images=4 * options.images, mesh=mesh)
    for _ in sys.stdin:
        sharded.run()
        print("done", flush=True)


def measured(curves: dict[str, list[Point]], rounds: int) -> dict[str, dict]:
    """Times the points of all curves, alternating; by curve, times, MACs, rates and slopes."""
    runs = {(name, at.size): at.run for name, points in curves.items() for at in points}
    timings, found = take_turns(runs, rounds), {}
    for name, points in curves.items():
        sizes = [at.size for at in points]
        times = [[t / at.candidates for t in timings[name, at.size]] for at in points]
        seconds = [statistics.median(each) for each in times]
        macs = [at.macs / at.candidates for at in points]
        found[name] = {
            "sizes": sizes,
            "seconds": seconds,
            "timings": times,
            "gmacs": [each / 1e9 for each in macs],
            "gmacs_per_second": [m / t / 1e9 for m, t in zip(macs, seconds, strict=True)],
            "slope": slope(sizes, seconds),
            "macs_slope": slope(sizes, macs),
            "local_slopes": [
                slope(x, y) for x, y in zip(pairwise(sizes), pairwise(seconds), strict=True)
            ],
            "ends": {
                f"{at.size:g}": breakdown(
                    *at.call, statistics.median(timings[name, at.size]), rounds
                )
                for at in points[:: max(len(points) - 1, 1)]
                if at.call is not None
            },
        }
    return found


def slope(sizes: Any, values: Any) -> float | None:
    """Slope of a straight line through the logarithms; None for a single point."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def in_words(curve: dict) -> str:
    if curve["slope"] is None:
        return "one point"
    return f"slope {curve['slope']:.2f} (MACs {curve['macs_slope']:.2f})"


def show(record: dict) -> None:
    """Prints the record."""
    for name, curve in record["curves"].items():
        rates = ", ".join(f"{rate:.1f}" for rate in curve["gmacs_per_second"])
        print(f"{name:<26}{in_words(curve)}, GMAC/s: {rates}")
        for size, parts in curve["ends"].items():
            shares = [f"{part} {share:.0%}" for part, share in parts["parts_share"].items()]
            print(f"  {size:>6}, of a call: " + ", ".join(shares))
    share = record["largest_relative_difference_of_sharing"]
    print(f"sharing changes a loss by {share:.1g} of it at most")


def figure(record: dict) -> Figure:
    """Time against size, and what the MACs would take at the rate of the largest size."""
    drawn = Figure(figsize=(10, 6.2), layout="constrained")
    for ax, (title, names) in zip(drawn.subplots(2, 3).flat, PANELS.items(), strict=True):
        style_axes(ax, title)
        for name, colour in names.items():
            curve = record["curves"][name]
            sizes, seconds, macs = curve["sizes"], curve["seconds"], curve["gmacs"]
            line = {"color": colour, "linewidth": 1.6, "marker": "o", "markersize": 4}
            ax.plot(sizes, seconds, label=LABELS.get(name, "") + in_words(curve), **line)
            ideal = [each / macs[-1] * seconds[-1] for each in macs]
            ax.plot(sizes, ideal, color=GREY, linewidth=1, linestyle="--", zorder=1)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        low, high = ax.get_ylim()
        span = max(high / low, 4)
        ax.set_ylim(low, low * span ** (1.1 + 0.1 * len(names)))  # room for the legend
        ax.yaxis.set_major_locator(LogLocator(subs=(1,) if span > 100 else (1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
        ax.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("seconds", fontsize=9, color=INK)
    (dashes,) = ax.plot([], [], color=GREY, linewidth=1, linestyle="--")
    words = ["the MACs that must be done, at the rate of the largest size"]
    drawn.legend([dashes], words, loc="outside lower center", frameon=False, fontsize=8.5)
    return drawn


if __name__ == "__main__":
    main()
