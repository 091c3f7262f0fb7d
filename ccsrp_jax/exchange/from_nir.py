"""Import of NIR files as networks of this library."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ccsrp_jax.exchange.nir_graph import METADATA, FlatGraph, read_graph
from ccsrp_jax.exchange.nir_layers import CONVERTERS, Draft, Layer, add_inputs, scale_input
from ccsrp_jax.exchange.nir_neurons import KINDS, Neurons, check_step, discretized
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.node_base import IMAGE
from ccsrp_jax.networks.nodes import Flatten, Spike
from ccsrp_jax.networks.serialization import check_variables
from ccsrp_jax.networks.spike_rate import SpikeRate
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.fields import SIZE, converted

DT, RESET = 1e-4, "hard"  # of SpikingJelly's and snnTorch's exports


def from_nir(
    source: Any,
    *,
    time_steps: int | None = None,
    dt: float | None = None,
    reset: str | None = None,
    input_shape: Sequence[int] | None = None,
    **settings: Any,
) -> tuple[Architecture, dict]:
    """A network from a NIR file, with the spikes that its source has.

    NIR says neither the time step, nor the number of steps, nor the kind of reset, so whoever
    imports a file gives those of its source. Files of `export_nir` say them. What the exporters of
    other libraries write, in their versions of 2026:

      * SpikingJelly: dt 1e-4 unless told otherwise, hard resets only: the defaults here.
      * snnTorch: dt 1e-4 and always a reset to 0, also for networks that reset by subtraction:
        its default, `reset_mechanism="subtract"`, is `reset="soft_delayed"` here, with
        `reset_delay=False` it is `soft`, and "zero" with `reset_delay=False` is `hard`.
      * Norse: `to_nir(..., dt=1)` writes time constants in seconds, to be imported with the dt of
        the simulation, 1e-3 by default. Its own default, `dt=0.001`, writes them times 1e-3: give
        dt=1e-6 then. A `LIFCell` is not what its file says, see `networks.cuba_lif`.

    See `nir_neurons` for the discretization. A layer whose time constant differs from others' gets
    a learned leak. A last layer of neurons becomes the classifier `SpikeRate`; otherwise logits are
    the last linear layer's output, averaged over time. A bias of zeros is left out.

    Args:
      source: path of the file, or a `nir.NIRGraph`.
      time_steps: T, steps per image.
      dt: length of a step, in the unit of the file's time constants; by default 1e-4.
      reset: `hard` (by default), `soft` or `soft_delayed`, see `LIF`.
      input_shape: (H, W, C) of an image, if the file says the number of its pixels only; with the
        encoding `frames`, C channels for each of the frames.
      settings: `mean`, `std`, `encoding` and `noise` of `Architecture`; by default mean 0 and
        standard deviation 1, images as they are.

    Returns:
      The architecture and its variables.

    Raises:
      InputError: the file cannot be read or used, in one sentence that names the node.
    """
    graph = read_graph(source)
    stated = graph.metadata.get(METADATA, {})
    stated = stated if isinstance(stated, dict) else {}
    time_steps = stated.get("time_steps") if time_steps is None else time_steps
    if time_steps is None:
        raise InputError(
            f"{graph.source} does not say the number of time steps: give time_steps, the number "
            "that the network was trained with."
        )
    dt = float(stated.get("dt", DT)) if dt is None else dt
    reset = str(stated.get("reset", RESET)) if reset is None else reset
    check_step(dt, reset)
    neurons = discretized(graph, dt, reset)
    shape = _input_shape(graph, input_shape)
    draft = _draft(graph, neurons, shape)
    if settings.get("encoding") == "frames":
        shape = (*shape[:2], shape[2] * int(time_steps))
    defaults = {"mean": (0.0,), "std": (1.0,)}
    try:
        architecture = Architecture(
            tuple(layer.node for layer in draft.layers.values()),
            shape,
            int(time_steps),
            neurons.neuron,
            **{**defaults, **settings},
        )
    except InputError as error:
        raise InputError(f"{graph.source} cannot be imported: {error}") from error
    except TypeError as error:
        unknown = set(settings) - {field.name for field in dataclasses.fields(Architecture)}
        raise InputError(
            f"{', '.join(sorted(unknown)) or 'a setting'} is no setting of an import: give mean, "
            "std, encoding or noise."
        ) from error
    variables = _variables(draft, neurons)
    tensors = {
        f"params/{name}/{key}": value
        for name, leaves in variables["params"].items()
        for key, value in leaves.items()
    }
    check_variables(graph.source, architecture, tensors)
    return architecture, variables


def _input_shape(graph: FlatGraph, given: Any) -> tuple[int, int, int]:
    """(H, W, C) of an image, of one frame of it."""
    inputs = [name for name, node in graph.nodes.items() if type(node).__name__ == "Input"]
    if len(inputs) != 1:
        raise InputError(
            f"{graph.source} has {len(inputs)} inputs: give a network of one, the image."
        )
    kind = getattr(graph.nodes[inputs[0]], "input_type", None) or {}
    sizes = next(iter(kind.values()), None)
    found = [] if sizes is None else [int(size) for size in np.ravel(sizes)]
    if len(found) in (2, 4) and found[0] == 1:  # some exporters keep the batch of their sample
        found = found[1:]
    if given is not None:
        shape: tuple[int, int, int] = converted("input_shape", given, tuple[int, int, int], SIZE)
        if found and math.prod(found) != math.prod(shape):
            raise InputError(
                f"input_shape {shape} has {math.prod(shape)} values, and {graph.source} takes "
                f"{tuple(found)}: give (H, W, C) of its images."
            )
        return shape
    if len(found) == 1:
        return (1, 1, found[0])
    if len(found) != 3:
        raise InputError(
            f"{graph.source} takes inputs of shape {tuple(found)}, and an image has (C, H, W): "
            "give input_shape, (H, W, C)."
        )
    channels, height, width = found
    return (height, width, channels)


def _draft(graph: FlatGraph, neurons: Neurons, shape: tuple[int, int, int]) -> Draft:
    """The layers of the network, in order."""
    draft = Draft(graph, {}, {IMAGE: shape}, {}, {})
    outputs: list[str] = []
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        if kind == "Input":
            draft.named[name] = IMAGE
            if np.size(next(iter(node.input_type.values()), ())) in (1, 2):  # features
                draft.add(name, Layer(Flatten(draft.fresh("pixels"), IMAGE), {}), shape)
            continue
        if not graph.reads[name]:
            raise graph.refused(name, "nothing leads to it", "remove it")
        source = add_inputs(draft, name)
        if kind in ("Output", "Pass"):
            draft.named[name] = source
            outputs += [name] if kind == "Output" else []
        elif kind in KINDS:
            scale_input(draft, name, source, neurons.factors[name])
            draft.add(name, Layer(Spike(draft.fresh(name), source), {}), draft.order.get(source))
        elif kind in CONVERTERS:
            CONVERTERS[kind](draft, name, source)
        else:
            known = ", ".join([*CONVERTERS, *KINDS])
            raise graph.refused(name, f"there is no layer for {kind}", f"use {known}")
    _end(draft, outputs)
    return draft


def _end(draft: Draft, outputs: Sequence[str]) -> None:
    """Adds the classifier of a network that ends in spikes, and refuses what leads nowhere."""
    graph = draft.graph
    if len(outputs) != 1:
        raise InputError(f"{graph.source} has {len(outputs)} outputs: give a network of one.")
    last = draft.named[outputs[0]]
    read = {name for layer in draft.layers.values() for name in layer.node.inputs}
    for nir_name, name in draft.named.items():
        if name not in read and name != last and name != IMAGE:
            raise graph.refused(nir_name, "it does not lead to the output", "remove it")
    if last == IMAGE:
        raise InputError(f"{graph.source} has no layers: give a network.")
    if draft.layers[last].node.spiking:
        sizes = draft.shapes[last]
        if len(sizes) != 1:
            raise graph.refused(
                outputs[0], f"the spikes that it reads have shape {sizes}", "flatten them"
            )
        rates = SpikeRate(draft.fresh("rates"), last, sizes[0])
        draft.add("", Layer(rates, {}), None)
    elif next(reversed(draft.layers)) != last:  # the classifier is the last node
        draft.layers[last] = draft.layers.pop(last)


def _variables(draft: Draft, neurons: Neurons) -> dict:
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, layer in draft.layers.items():
        if layer.weights:
            params[name] = {
                key: np.ascontiguousarray(value, np.float32) for key, value in layer.weights.items()
            }
    if neurons.neuron.learned:
        for nir_name, leak in neurons.leaks.items():
            params[draft.named[nir_name]] = {"leak": np.full((1,), leak, np.float32)}
    return {"params": params}
