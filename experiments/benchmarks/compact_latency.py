"""Latency of compact networks relative to the dense one.

    .venv/bin/python experiments/benchmarks/compact_latency.py [--model vgg11]

From every group of `medium` (32 x 32 x 3 images) and `small` (8 x 8 x 1), 25, 50 and 75 % of
the filters are removed, chosen at random, three times; counts kept are rounded to multiples
of 4. Timed is `cost.latency_ms`, one jitted forward pass over T = 4 steps of 1 and of 256
images; the networks alternate. Ideal is the ratio of the MACs over all steps, with the first
layer's counted once, as its input is constant. The JSON also has the largest difference from the
masked network's logits.

On two cores (jax 0.10.2), speed-up at batch 1 and 256, and the ideal: medium, 25 % removed
1.24, 1.44 (1.87), 50 % 1.33, 1.80 (3.87), 75 % 1.73, 2.94 (12.3); small 1.20, 1.73 (1.92),
1.48, 2.51 (3.98), 1.65, 3.53 (12.9). Compact networks are far from the ideal: narrow
convolutions run at a fraction of the rate of wide ones (roofline.py), and at batch 1 the overhead
of the call and the neurons take more time than the MACs.

Writes results/compact_latency.json and compact_latency.png.
"""

import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ccsrp_jax.networks import compaction, cost, zoo
from ccsrp_jax.networks.architecture import Architecture, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cost import layer_macs
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.reporting.figure_style import BLUE, GREEN, GREY, INK, VERMILION, style_axes
from common import INPUTS, machine, parser, spiking_variables, write

REMOVED, SEEDS, MULTIPLE = (0.25, 0.5, 0.75), 3, 4
COLOURS, MARKERS = (BLUE, VERMILION, GREEN, INK), ("o", "s", "D", "^")  # by batch size


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", choices=INPUTS, nargs="+", default=["medium", "small"])
    flags.add_argument("--batches", type=int, nargs="+", default=[1, 256])
    flags.add_argument("--repeats", type=int, default=30)
    flags.add_argument("--quick", action="store_true", help="small only, in seconds")
    options = flags.parse_args()
    if options.quick:
        options.model, options.batches, options.repeats = ["small"], [1, 4], 3
    shares, seeds = (REMOVED[1:2], 1) if options.quick else (REMOVED, SEEDS)
    record = {
        "what": "latency of compact networks, ms a batch; see compact_latency.py",
        "networks": {
            model: measured(model, shares, seeds, options.batches, options.repeats)
            for model in options.model
        },
        **machine(),
    }
    write(options.out, "compact_latency", record, figure(record))
    show(record)


def even_masks(architecture: Architecture, removed: float, seed: int) -> MaskTree:
    """Random masks that remove this share of every group, and keep a multiple of 4."""
    random, masks = np.random.default_rng(seed), {}
    for name, width in groups(architecture).items():
        kept = max(MULTIPLE, MULTIPLE * round((1 - removed) * width / MULTIPLE))
        masks[name] = np.zeros(width, np.float32)
        masks[name][random.permutation(width)[:kept]] = 1
    return masks


def measured(
    model: str, shares: tuple[float, ...], seeds: int, batches: list[int], repeats: int
) -> dict:
    """Latencies of the dense network and of compact networks made of it."""
    architecture = zoo.build(model, INPUTS[model], 10)
    variables, random = spiking_variables(architecture), np.random.default_rng(0)
    images = random.uniform(size=(max(batches), *INPUTS[model]))
    images, dense = jnp.asarray(images, jnp.float32), Classifier(architecture)
    networks, found, masked = [(dense, (variables, None))], [], jax.jit(dense)
    macs = sum(layer_macs(architecture).values())
    for removed, seed in itertools.product(shares, range(seeds)):
        masks = even_masks(architecture, removed, seed)
        smaller, fewer = compaction.compact(architecture, variables, masks)
        compact, params = Classifier(smaller), (fewer, None)
        logits = masked((variables, masks), images[: batches[0]])
        difference = jax.jit(compact)(params, images[: batches[0]]) - logits
        networks.append((compact, params))
        left = sum(layer_macs(smaller).values()) / macs
        found.append(
            {
                "removed": removed,
                "seed": seed,
                "kept": groups(smaller),
                "macs_left": left,
                "ideal_speedup": 1 / left,
                "largest_logit_difference": float(jnp.abs(difference).max()),
                "latency_ms": {},
                "speedup": {},
            }
        )
    record = {"input_shape": INPUTS[model], "macs": macs, "latency_ms": {}, "compact": found}
    for batch in batches:
        first, *rest = cost.latency_ms(networks, images[:batch], repeats)
        record["latency_ms"][str(batch)] = first
        for each, milliseconds in zip(found, rest, strict=True):
            each["latency_ms"][str(batch)] = milliseconds
            each["speedup"][str(batch)] = first / milliseconds
    record["summary"] = [summary(found, removed) for removed in shares]
    return record


def summary(found: list[dict], removed: float) -> dict:
    """Medians over the seeds."""
    same = [each for each in found if each["removed"] == removed]
    return {
        "removed": removed,
        "macs_left": statistics.median(each["macs_left"] for each in same),
        "ideal_speedup": statistics.median(each["ideal_speedup"] for each in same),
        "speedup": {
            batch: statistics.median(each["speedup"][batch] for each in same)
            for batch in same[0]["speedup"]
        },
    }


def show(record: dict) -> None:
    """Prints the record."""
    for model, network in record["networks"].items():
        times = [f"{ms:.2f} ms at batch {batch}" for batch, ms in network["latency_ms"].items()]
        print(f"{model}, dense: " + ", ".join(times))
        for row in network["summary"]:
            gains = [f"{gain:.2f} at batch {batch}" for batch, gain in row["speedup"].items()]
            print(
                f"  {row['removed']:.0%} of the filters removed: x "
                + ", ".join(gains)
                + f"; ideal {row['ideal_speedup']:.2f}"
            )


def figure(record: dict) -> Figure:
    """Latency against MACs, both as shares of the dense network's; one point per network."""
    networks = record["networks"]
    drawn = Figure(figsize=(3.9 * len(networks) + 0.6, 4.2), layout="constrained")
    panels = drawn.subplots(1, len(networks), squeeze=False, sharey=True)[0]
    for ax, (model, network) in zip(panels, networks.items(), strict=True):
        height, width, channels = network["input_shape"]
        style_axes(ax, f"{model}, {height} x {width} x {channels} images")
        ax.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", label="ideal")
        marks = zip(network["latency_ms"].items(), COLOURS, MARKERS, strict=False)
        for (batch, dense), colour, marker in marks:
            points = [(1, dense)] + [
                (each["macs_left"], each["latency_ms"][batch]) for each in network["compact"]
            ]
            x, y = zip(*[(100 * left, 100 * ms / dense) for left, ms in points], strict=True)
            style = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none"}
            ax.plot(x, y, label=f"batch {batch}, dense {dense:.3g} ms", **style)
        ax.set_xlim(0, 105)
        ax.set_xlabel("MACs (% of the dense network's)", fontsize=9, color=INK)
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("latency (% of the dense network's)", fontsize=9, color=INK)
    return drawn


if __name__ == "__main__":
    main()
