"""Images per second in evaluation and training: ours, SpikingJelly, snnTorch, Norse, Spyx.

    .venv/bin/pip install -e '.[oracles]'
    .venv/bin/python experiments/benchmarks/throughput.py

The same networks (`small` on 8 x 8 x 1 and `vgg11` on 32 x 32 x 3 images), random weights under
which every layer spikes, random images, T = 4, float32 (TF32 on GPUs) and all cores; the
libraries alternate, and figures are medians. Forward is the evaluation of one batch; training is
forward, backward through batch norm in training mode, and SGD with momentum. Missing peers are
skipped. Every peer is at its best:

  SpikingJelly  multi-step LIFNode, which selects its CUDA or Triton kernel on a GPU; time folded
                into the batch, channels last, the constant first convolution once
  snnTorch      Leaky with reset to zero, without delay, the division by tau in the weights; the
                same layers around it, and its loop over time compiled with torch.compile (its
                tutorials step the whole network through time)
  Norse         LIFBoxCell, likewise (documented: SequentialState, or Lift, step by step); its
                surrogate is SuperSpike
  Spyx          LIF, which subtracts the threshold and fires one step late, so that no spike passes
                more layers than there are steps (run times do not depend on it); its leak is a
                parameter that learns; `run` scans each neuron layer separately, around Flax's
                layers (its examples scan the whole network, which is far slower on CPUs)

Logits of the first three are compared with ours, and the losses of two training steps are in the
JSON: SpikingJelly's, with our surrogate, equal ours. Ours runs on one device; with the batch
sharded, where there are several devices (cores, on a CPU); and in bfloat16.

Shares are of the rate of a large float32 matrix product. MACs are over all steps, with the first
layer's counted once as its input is constant, and three times that in training but for the
gradient of the first layer's input. The three heaviest convolutions are timed separately, as
XLA's and as torch's.

Writes results/throughput.json and throughput.png.

On two cores (jax 0.10.2, torch 2.15; `--repeats 3`, 6 minutes), images per second, forward and
training, and the bottlenecks. `small`, batch 256: ours 7555 and 1853, with one device per core
9311 and 3599, SpikingJelly 4152 and 2656, snnTorch 8834 and 3096, Norse 11510 and 3541, Spyx 3996
and 906. `vgg11`, batch 16: ours 30.0 and 8.8 (one device per core 32.8 and 5.5, presumably because
two gradients of 61 M weights are summed), SpikingJelly 32.4 and 10.1, snnTorch 35.3 and 12.0,
Norse 42.2 and 12.1, Spyx 22.3 and 6.2. So torch trains vgg11 1.15 to 1.4 times as fast as we do,
because of its convolutions: oneDNN's run at 1.3 to 2.3 times the rate of XLA's (8 times for the
weight gradient of a narrow layer). We sum that gradient over parts of the batch (see
`networks/convolution.py`), which took a quarter off the time of a step on `small`, and less on
`vgg11`. Shares above 1 mean that oneDNN convolves faster than JAX multiplies large matrices here.
bfloat16 gains nothing on this CPU. With random weights a potential may equal the threshold up to
rounding: on vgg11 4 of 16 images had a spike flipped, in all torch libraries alike.
"""

import argparse
import importlib.util
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # peers need memory as well

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before the first array

from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.cost import layer_macs
from ccsrp_jax.networks.nodes import IMAGE
from ccsrp_jax.reporting.figure_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    VERMILION,
    style_axes,
)
from ccsrp_jax.training.parallel import ParallelClassifier
from ccsrp_jax.utils import devices
from common import (
    CPU,
    INPUTS,
    machine,
    parser,
    spiking_variables,
    take_turns,
    write,
)
from convolutions import convolutions

BATCHES = {"small": 256 if CPU else 4096, "vgg11": 16 if CPU else 256}
RATE, MOMENTUM = 1e-3, 0.9  # of SGD
NEEDS = {  # packages that a peer needs
    "spikingjelly": ("torch", "spikingjelly"),
    "snntorch": ("torch", "spikingjelly", "snntorch"),  # its layers are those of the twin
    "norse": ("torch", "spikingjelly", "norse"),
    "spyx": ("spyx",),
}
NAMES = {
    "ours": "ours, one device",
    "ours_dealt": "ours, one device per core",
    "ours_bfloat16": "ours, bfloat16",
    "spikingjelly": "SpikingJelly",
    "snntorch": "snnTorch",
    "norse": "Norse",
    "spyx": "Spyx",
}
TASKS = ("forward", "training")
PASSES = {"forward": BLUE, "input gradient": GREEN, "weight gradient": VERMILION}


class Runs(NamedTuple):
    """The timed calls of a library, without arguments; each returns the result to wait for."""

    forward: Callable[[], Any]  # logits
    training: Callable[[], Any]  # loss, and for ours the next state


def training_macs(architecture: Architecture) -> int:
    """MACs of a training step per image: of outputs, weight gradients and input gradients.

    Layers that read the image need no gradient of their input.
    """
    macs = layer_macs(architecture)
    first = [node.name for node in architecture.nodes if node.input == IMAGE]
    return 3 * sum(macs.values()) - sum(macs[name] for name in first)


def ours(
    architecture: Architecture,
    variables: dict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Any = jnp.float32,
) -> Runs:
    """Our network; with a mesh, images are sharded over its devices."""
    network, optimizer = (
        ParallelClassifier(architecture, dtype=dtype, mesh=mesh),
        optax.sgd(RATE, MOMENTUM),
    )
    batch = devices.put(mesh, (images, labels), sharded=True)
    variables = devices.put(mesh, variables)
    state = jax.tree.map(jnp.copy, (variables, optimizer.init(variables["params"])))

    @partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        variables, moments = state

        def loss_of(params):
            trained = {**variables, "params": params}
            logits, _, updates = network.forward(trained, None, images, None, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.mean(0), labels)
            return losses.mean(), updates

        found = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        (loss, updates), gradients = found
        changes, moments = optimizer.update(gradients, moments)
        params = optax.apply_updates(variables["params"], changes)
        return ({"params": params, **updates}, moments), loss

    def training():
        nonlocal state
        state, loss = step(state, *batch)
        return loss, state

    return Runs(partial(jax.jit(network), (variables, None), batch[0]), training)


def in_torch(
    peer: str,
    architecture: Architecture,
    variables: dict,
    images: np.ndarray,
    labels: np.ndarray,
) -> Runs:
    """The torch twin with a peer's neurons, at its fastest."""
    import torch

    from peers.torch_neurons import twin_of
    from peers.torch_twin import nchw

    device = "cpu" if CPU else "cuda"
    twin = twin_of(peer, architecture, variables)
    twin = twin.to(device, memory_format=torch.channels_last).requires_grad_(True)
    batch = nchw(images).to(device, memory_format=torch.channels_last)
    truth = torch.from_numpy(labels).long().to(device)
    optimizer = torch.optim.SGD(twin.parameters(), RATE, MOMENTUM, fused=True)

    def wait(result):
        if not CPU:
            torch.cuda.synchronize()
        return result

    def forward():
        twin.eval()
        with torch.inference_mode():
            return wait(twin(batch))

    def training():
        twin.train()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(batch), truth)
        loss.backward()
        optimizer.step()
        return wait(loss.detach())

    return Runs(forward, training)


def in_spyx(
    architecture: Architecture, variables: dict, images: np.ndarray, labels: np.ndarray
) -> Runs:
    """The network with Spyx's neurons, and Spyx's training step."""
    import spyx
    from flax import nnx

    from peers.spyx_network import with_weights

    def loss_of(network, images, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(network(images), labels)
        return losses.mean()

    network, batch = (
        with_weights(architecture, variables),
        (jnp.asarray(images), jnp.asarray(labels)),
    )
    optimizer = nnx.Optimizer(network, optax.sgd(RATE, MOMENTUM), wrt=nnx.Param)
    frozen = nnx.view(network, use_running_average=True)
    network = nnx.view(network, use_running_average=False)
    step = spyx.optimize.make_train_step(loss_of)
    forward = nnx.cached_partial(nnx.jit(lambda network, images: network(images)), frozen)
    return Runs(
        partial(forward, batch[0]), partial(nnx.cached_partial(step, network, optimizer), *batch)
    )


def agreement(libraries: dict[str, Runs]) -> dict:
    """How far the logits of those with our weights and neurons are from ours, and the losses of
    the first two training steps, in full float32."""
    with jax.default_matmul_precision(None if CPU else "highest"):
        logits = {name: runs.forward() for name, runs in libraries.items()}
        losses = {name: [runs.training() for _ in range(2)] for name, runs in libraries.items()}
    reference = np.asarray(logits["ours"])
    scale, found = np.abs(reference).max(), {}
    for name in libraries:
        far = np.abs(np.asarray(logits[name].tolist()) - reference).max(-1) / scale
        steps = [loss[0] if isinstance(loss, tuple) else loss for loss in losses[name]]
        found[name] = {
            "largest_logit_difference": float(far.max()),
            "images_within_1e-4": float((far < 1e-4).mean()),
            "losses": [float(loss) for loss in steps],
        }
    return found


def measured(name: str, options: argparse.Namespace, peers: list[str]) -> dict:
    """All libraries on one network."""
    batch = options.batch or BATCHES[name]
    architecture = zoo.build(name, INPUTS[name], 10, time_steps=options.time_steps)
    variables, random = spiking_variables(architecture), np.random.default_rng(0)
    images = random.uniform(size=(batch, *INPUTS[name])).astype(np.float32)
    problem = architecture, variables, images, random.integers(0, 10, batch).astype(np.int32)
    libraries = {"ours": ours(*problem)}
    if (mesh := devices.mesh()) is not None and batch % mesh.size == 0:
        libraries["ours_dealt"] = ours(*problem, mesh=mesh)
    libraries["ours_bfloat16"] = ours(*problem, dtype=jnp.bfloat16)
    for peer in peers:
        libraries[peer] = in_spyx(*problem) if peer == "spyx" else in_torch(peer, *problem)
    agrees = agreement(libraries)
    for peer in {"spikingjelly", "snntorch", "norse"} & set(peers):
        if agrees[peer]["images_within_1e-4"] < 0.5:  # rounding may flip a spike, which spreads
            raise SystemExit(f"{peer}'s logits on {name} are not ours: {agrees[peer]}")
    products, side = (1, 2048) if CPU else (10, 8192)
    square, multiply = jax.random.normal(jax.random.key(0), (side, side)), jax.jit(jnp.matmul)
    runs = {("product", ""): lambda: [multiply(square, square) for _ in range(products)]}
    for library, each in libraries.items():
        runs |= {(library, task): getattr(each, task) for task in TASKS}
    seconds = take_turns(runs, options.repeats)
    median = {key: statistics.median(times) for key, times in seconds.items()}
    peak = products * side**3 / median["product", ""]
    macs = {"forward": sum(layer_macs(architecture).values())}
    macs["training"] = training_macs(architecture)
    single = [library for library in ("ours", "ours_dealt") if library in libraries]
    best = {task: min(median[library, task] for library in single) for task in TASKS}
    record = {
        "input_shape": INPUTS[name],
        "time_steps": options.time_steps,
        "batch": batch,
        "product_gmacs_per_second": peak / 1e9,
        "gmacs": {task: batch * count / 1e9 for task, count in macs.items()},
        "agreement": agrees,
        "libraries": {
            library: {
                task: {
                    "seconds": median[library, task],
                    "timings": seconds[library, task],
                    "images_per_second": batch / median[library, task],
                    "share_of_the_product": batch * macs[task] / median[library, task] / peak,
                    "our_best_over_it": median[library, task] / best[task],
                    "ours_over_it": median[library, task] / median["ours", task],
                }
                for task in TASKS
            }
            for library in libraries
        },
    }
    del libraries, runs
    record["convolutions"] = convolutions(
        architecture, batch, options.repeats, any("torch" in NEEDS[peer] for peer in peers)
    )
    return record


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=BATCHES, default=list(BATCHES))
    flags.add_argument("--batch", type=int, help="by default by network and device")
    flags.add_argument("--time-steps", type=int, default=4)
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--quick", action="store_true", help="small only, in seconds")
    options = flags.parse_args()
    if options.quick:
        options.networks, options.repeats, options.batch = ["small"], 1, options.batch or 8
    peers = []
    for peer, needs in NEEDS.items():
        if missing := [each for each in needs if importlib.util.find_spec(each) is None]:
            print(f"{NAMES[peer]} is left out; not installed: {', '.join(missing)}")
        else:
            peers.append(peer)
    if not peers:
        raise SystemExit("nothing to compare with: install one of " + ", ".join(NEEDS))
    packages = ["optax", *peers]
    if any("torch" in NEEDS[peer] for peer in peers):
        packages.append("torch")
        import torch

        torch.set_num_threads(os.cpu_count())
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as in JAX
    what = {"what": "images per second; see throughput.py", "networks": {}}
    record = machine(*packages) | what
    for name in options.networks:
        record["networks"][name] = measured(name, options, peers)
        show(name, record["networks"][name])
        write(options.out, "throughput", record)
    write(options.out, "throughput", record, figure(record))


def show(name: str, network: dict) -> None:
    """Prints the record of a network."""
    batch, steps = network["batch"], network["time_steps"]
    rate = network["product_gmacs_per_second"]
    print(f"{name}, batch {batch}, T = {steps}; matrix product: {rate:.1f} GMAC/s")
    for library, tasks in network["libraries"].items():
        words = [
            f"{task} {each['images_per_second']:8.1f} images/s, {each['share_of_the_product']:5.1%}"
            f" of the product, ours over it {each['ours_over_it']:.2f}"
            for task, each in tasks.items()
        ]
        print(f"  {NAMES[library]:<23}" + "; ".join(words))
    for layer, libraries in network["convolutions"].items():
        for library, passes in libraries.items():
            words = [f"{name} {rate:.1f}" for name, rate in passes.items()]
            print(f"  {layer} in {library}, GMAC/s: " + ", ".join(words))
    for library, each in network["agreement"].items():
        print(f"  {NAMES[library]}: {each}")


def figure(record: dict) -> Figure:
    """Images per second by library, and the rates of the heaviest convolutions."""
    networks = record["networks"]
    drawn = Figure(figsize=(12, 3.4 * len(networks)), layout="constrained")
    grid = drawn.subplots(len(networks), 3, squeeze=False)
    for (name, network), row in zip(networks.items(), grid, strict=True):
        for task, ax in zip(TASKS, row, strict=False):
            style_axes(ax, f"{name}: {task}, batch {network['batch']}, T = {network['time_steps']}")
            rates = {k: each[task] for k, each in network["libraries"].items()}
            bars = ax.barh(
                [NAMES[library] for library in rates],
                [each["images_per_second"] for each in rates.values()],
                color=[BLUE if k.startswith("ours") else GREY for k in rates],
                height=0.65,
            )
            shares = [f"{each['share_of_the_product']:.0%}" for each in rates.values()]
            ax.bar_label(bars, shares, padding=4, fontsize=8, color=INK)
            ax.margins(x=0.15)
            words = "images per second; at the bars, share of a matrix product's rate"
            ax.set_xlabel(words, fontsize=8, color=INK)
        ax = row[-1]
        style_axes(ax, "Heaviest convolutions")
        rates = [(layer, k) for layer, each in network["convolutions"].items() for k in each]
        for i, (passed, colour) in enumerate(PASSES.items()):
            places = [place + 0.27 * (i - 1) for place in range(len(rates))]
            heights = [network["convolutions"][layer][k][passed] for layer, k in rates]
            ax.barh(places, heights, height=0.25, color=colour, label=passed)
        ax.set_yticks(range(len(rates)), [f"{layer}, {k}" for layer, k in rates])
        ax.axvline(network["product_gmacs_per_second"], color=INK, linewidth=0.9, linestyle=":")
        ax.set_xlabel("GMAC/s; dotted, the matrix product", fontsize=8, color=INK)
        place = {"loc": "upper center", "bbox_to_anchor": (0.4, -0.16), "ncols": 3}
        ax.legend(frameon=False, fontsize=8, labelcolor=INK, **place)
        for ax in row:
            ax.invert_yaxis()
            ax.grid(visible=False, axis="y")
            ax.grid(visible=True, axis="x", color="#EBEBEB", linewidth=0.8)
    return drawn


if __name__ == "__main__":
    main()
