"""Export of networks as NIR files, which other simulators and tools of chips read."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ccsrp_jax.exchange.channel_order import flattened_from
from ccsrp_jax.exchange.folding import folded_weights
from ccsrp_jax.exchange.from_nir import DT, from_nir
from ccsrp_jax.exchange.nir_graph import METADATA
from ccsrp_jax.exchange.nir_nodes import GraphDraft, check_step_of, convert, neuron_note
from ccsrp_jax.exchange.report import (
    ExportReport,
    as_network,
    check_close,
    check_deterministic,
    check_images,
    imported,
    target_path,
)
from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.node_base import IMAGE
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.networks.spike_rate import SpikeRate
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.io import replacing

TOLERANCE = 1e-3  # of a logit, where all spikes agree; folding rounds
SPIKES = 1e-3  # share of spikes that rounding may change


def nir_graph(network: Any, *, dt: float = DT, normalization: bool = True) -> Any:
    """The `nir.NIRGraph` of a network; see `export_nir`."""
    architecture, variables = as_network(network)
    return _graph(architecture, variables, dt, normalization)


def export_nir(
    network: Any,
    path: Any,
    images: Any = None,
    *,
    dt: float = DT,
    normalization: bool = True,
) -> ExportReport:
    """Writes a network to a NIR file, and compares what `from_nir` reads from it with the network.

    Batch normalization is folded into the layers before it, and an addition becomes two edges to
    one node. The neurons' time constants are tau dt, with r = 1 where inputs are divided by tau
    and r = tau (for IF neurons, 1 / dt) where they are not. The input normalization becomes a
    1 x 1 convolution. Values that NIR cannot say are in the graph's metadata: dt, the number of
    time steps and the kind of reset.

    Which simulators read a file, in their versions of 2026:

      * SpikingJelly, `import_from_nir(graph, dt)`: no sum pooling, no groups.
      * snnTorch, `import_from_nir(graph)`: with the default dt, but no IF neurons and no groups.
      * Norse, `from_nir(graph, dt=dt)`: networks without branches and average pooling whose inputs
        are divided by tau (`decay_input`).

    snnTorch and Norse take `Flatten` literally: give them one image at a time, without an axis for
    the batch. A soft reset must be set in each of them, NIR does not say it.

    Args:
      network: path of a saved network, or (architecture, variables); masked filters are removed
        with `compact` before.
      path: of the file.
      images: for the comparison; by default 16 of noise.
      dt: length of a time step, in seconds.
      normalization: whether the graph normalizes images; else it takes normalized ones.

    Returns:
      The comparison.

    Raises:
      InputError: `nir` is not installed, or the network has what NIR does not; nothing is written.
    """
    nir = imported("nir", "nir")
    target = target_path(path)
    architecture, variables = as_network(network)
    images = check_images(architecture, images)
    graph = _graph(architecture, variables, dt, normalization)
    with replacing(target) as partial:
        nir.write(partial, graph)
        settings: dict[str, Any] = (
            {} if normalization else {"mean": architecture.mean, "std": architecture.std}
        )
        settings["encoding"] = architecture.encoding
        again = from_nir(partial, **settings)
        difference, spikes, neurons = _difference((architecture, variables), again, images)
        if spikes > SPIKES * neurons:
            raise InputError(
                f"the NIR export differs from the network in {spikes} of {neurons} neurons and "
                "steps: nothing was written; report this network as a bug."
            )
        check_close("NIR", difference, np.inf if spikes else TOLERANCE)
    notes = (neuron_note(architecture, dt), _input_note(architecture, normalization))
    compared = "read back from NIR and compared with the network"
    return ExportReport(target, "nir", compared, len(images), difference, spikes, notes)


def _graph(
    architecture: Architecture, variables: Mapping[str, Any], dt: float, normalization: bool
) -> Any:
    nir = imported("nir", "nir")
    check_step_of(architecture, dt)
    check_deterministic(architecture, "NIR")
    shape = shapes(architecture)
    weights = folded_weights(architecture, variables, "NIR")
    order = flattened_from(architecture)
    draft = GraphDraft(nir, architecture, variables, weights, float(dt), {}, [], {}, order)
    height, width, channels = shape[IMAGE]
    draft.add("input", nir.Input(input_type=np.array([channels, height, width])), [])
    draft.sources[IMAGE] = ["input"]
    if normalization:
        draft.normalize(architecture.mean, architecture.std)
    for node in architecture.nodes:
        if isinstance(node, Norm | SpikeRate):  # folded; the average over time
            draft.passes(node)
        else:
            convert(draft, node)
    last = architecture.nodes[-1].name
    output = nir.Output(output_type=np.array(shape[last]))
    draft.add("output", output, draft.sources[last])
    stated = {
        "dt": float(dt),
        "time_steps": architecture.time_steps,
        "reset": architecture.neuron.reset,
    }
    grouped = any(getattr(node, "groups", 1) != 1 for node in draft.nodes.values())
    return nir.NIRGraph(
        nodes=draft.nodes,
        edges=draft.edges,
        metadata={METADATA: stated},
        type_check=not grouped,  # `nir` counts the channels of one group only
    )


def _difference(one: tuple, other: tuple, images: Any) -> tuple[float, int, int]:
    """Largest difference of a logit, number of spikes that differ, and of neurons and steps."""
    found = []
    for architecture, variables in (one, other):
        network = SpikingNetwork(architecture)

        def run(variables, images, network=network):
            return network.apply(variables, images, activity=True)

        logits, active = jax.jit(run)(variables, images)
        found.append((np.asarray(logits), [np.asarray(each) for each in active.spikes.values()]))
    (logits, spikes), (others, other_spikes) = found
    differ = sum(int((a != b).sum()) for a, b in zip(spikes, other_spikes, strict=True))
    return float(np.abs(logits - others).max()), differ, sum(each.size for each in spikes)


def _input_note(architecture: Architecture, normalization: bool) -> str:
    given = "images in [0, 1]"
    if not normalization:
        given = f"images normalized by mean {architecture.mean} and std {architecture.std}"
    steps = architecture.time_steps
    what = "the same in every step" if architecture.encoding == "direct" else "a frame a step"
    return (
        f"The graph takes {given}, channels first, {what}; logits are the mean of its output over "
        f"{steps} steps."
    )
