"""Weights of PyTorch networks, in the layouts of SpikingJelly and snnTorch.

A state dict names tensors by layer, `0.weight`, `features.conv1.bias`; its order is that in which
the layers were made. Layers are matched with those of the architecture of the same kind, in order,
or by the names that one gives.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ccsrp_jax.exchange.channel_order import channels_last, flattened_from
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.interval_rules import NORM_EPSILON
from ccsrp_jax.networks.node_base import Node, Shape
from ccsrp_jax.networks.nodes import Dense, Norm
from ccsrp_jax.networks.serialization import check_variables, tensor_shapes
from ccsrp_jax.utils.errors import InputError, reason, shown

IGNORED = ("num_batches_tracked", "graded_spikes_factor", "reset_mechanism_val", "mem", "syn", "v")
MOMENTS = ("running_mean", "running_var")
NAMED = 3  # names in a message
CLOSE = 1e-5

Layers = dict[str, dict[str, np.ndarray]]  # tensors by the names of a layer and of themselves


def from_torch(
    architecture: Architecture,
    state_dict: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
) -> dict:
    """Variables of a network from the state dict of its PyTorch counterpart.

    Convolutions and linear layers give their weights, batch normalization its learned and running
    values, SpikingJelly's ParametricLIFNode (`w`) and snnTorch's neurons (`beta`) their leaks.
    Where the state dict has no batch normalization, as after fusing it, those of the
    architecture become the identity. Linear layers behind a flattening are put into this
    library's order of features. Thresholds and leaks that the architecture fixes must be the same.

    Args:
      architecture: the network, with the layers of the PyTorch one.
      state_dict: tensors or arrays by name; PyTorch itself is not needed.
      names: by node of the architecture, the prefix of its tensors, if the PyTorch network made its
        layers in another order than it runs them, such as shortcuts; all nodes with parameters.

    Returns:
      The variables, `{"params", "batch_stats"}`.

    Raises:
      InputError: layers or tensors are missing or too many, or have other shapes; values are not
        finite; or neurons differ.
    """
    if not isinstance(architecture, Architecture):
        raise InputError(f"the architecture is {shown(architecture)}: give an Architecture.")
    layers = _by_layer(state_dict)
    matched, left = _matched(architecture, layers, names)
    order = flattened_from(architecture)
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for node in architecture.nodes:
        if node.has_kernel:
            prefix = matched[node.name]
            params[node.name] = _weights(node, prefix, layers[prefix], order.get(node.input))
        elif isinstance(node, Norm):
            params[node.name], stats[node.name] = _norm(node, matched, layers, params)
    params |= _neurons(architecture, {name: layers[name] for name in left})
    variables = {"params": params} | ({"batch_stats": stats} if stats else {})
    _check(architecture, variables)
    return variables


def _by_layer(state_dict: Any) -> Layers:
    """Arrays by layer, without those that say nothing about the network."""
    if not isinstance(state_dict, Mapping):
        raise InputError(
            f"the state dict is {shown(state_dict)}: give what `state_dict()` of a module returns."
        )
    layers: Layers = {}
    for key, tensor in state_dict.items():
        prefix, _, name = str(key).rpartition(".")
        if name not in IGNORED:
            layers.setdefault(prefix, {})[name] = _array(str(key), tensor)
    return layers


def _array(key: str, tensor: Any) -> np.ndarray:
    try:
        if hasattr(tensor, "detach"):  # of PyTorch, on any device
            tensor = tensor.detach().cpu().float().numpy()
        array = np.asarray(tensor, np.float32)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{key} is no tensor ({reason(error)}): give a state dict.") from error
    if not np.isfinite(array).all():
        raise InputError(
            f"{key} has values that are not finite: train the network again, with a lower learning "
            "rate."
        )
    return array


def _kind(layer: Mapping[str, np.ndarray]) -> str:
    if "running_mean" in layer:
        return "norm"
    weight = layer.get("weight")
    if weight is None:
        return "neurons"
    return {4: "convolution", 2: "linear layer", 1: "norm"}.get(weight.ndim, "unknown layer")


def _node_kind(node: Node) -> str | None:
    if isinstance(node, Norm):
        return "norm"
    if not node.has_kernel:
        return None
    return "linear layer" if isinstance(node, Dense) else "convolution"


def _matched(
    architecture: Architecture, layers: Layers, names: Mapping[str, str] | None
) -> tuple[dict[str, str], list[str]]:
    """By node, the name of its layer; and the layers that are left, those of neurons."""
    nodes = {node.name: kind for node in architecture.nodes if (kind := _node_kind(node))}
    kinds = {name: _kind(layer) for name, layer in layers.items()}
    if names is not None:
        return _named(nodes, kinds, dict(names))
    matched: dict[str, str] = {}
    for kind in ("convolution", "linear layer", "norm"):
        wanted = [name for name, each in nodes.items() if each == kind]
        given = [name for name, each in kinds.items() if each == kind]
        fused = kind == "norm" and not given
        if len(wanted) != len(given) and not fused:
            raise InputError(
                f"the state dict has {len(given)} of the kind {kind}{_listed(given)}, and the "
                f"architecture {len(wanted)}{_listed(wanted)}: give those of the same network."
            )
        matched |= dict(zip(wanted, given, strict=False))
    return matched, _neuron_layers(kinds)


def _neuron_layers(kinds: Mapping[str, str]) -> list[str]:
    strange = [name for name, kind in kinds.items() if kind == "unknown layer"]
    if strange:
        raise InputError(
            f"the state dict has layers of no known kind{_listed(strange)}: give convolutions in "
            "two dimensions, linear layers, batch normalization and neurons."
        )
    return [name for name, kind in kinds.items() if kind == "neurons"]


def _named(
    nodes: Mapping[str, str], kinds: Mapping[str, str], names: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    norms = {name for name, kind in nodes.items() if kind == "norm"}
    lacking = nodes.keys() - names.keys() - norms
    absent = [name for name in names.values() if name not in kinds]
    unknown = names.keys() - nodes.keys()
    for found, what in (
        (lacking, "names lack these nodes of the architecture"),
        (unknown, "names have these, which are no nodes with parameters"),
        (absent, "the state dict lacks these layers"),
    ):
        if found:
            raise InputError(f"{what}{_listed(sorted(found))}: give one layer for each node.")
    unread = [
        name for name, kind in kinds.items() if kind != "neurons" and name not in names.values()
    ]
    if unread:
        raise InputError(f"the state dict has further layers{_listed(unread)}: name them too.")
    return dict(names), _neuron_layers(kinds)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f" ({', '.join(map(repr, names[:NAMED]))}{more})"


def _weights(
    node: Node, prefix: str, layer: Mapping[str, np.ndarray], order: Shape | None
) -> dict[str, np.ndarray]:
    if extra := layer.keys() - {"weight", "bias"}:
        raise InputError(
            f"layer {prefix!r} of the state dict has tensors of no known kind"
            f"{_listed(sorted(extra))}: give a convolution or linear layer for {node.name!r}."
        )
    weight = layer["weight"]
    if weight.ndim == 4:
        kernel = weight.transpose(2, 3, 1, 0)
    else:
        fits = order is None or weight.shape[1] == np.prod(order)
        kernel = channels_last(weight, order if fits else None)
    found = {"kernel": kernel}
    if "bias" in layer:
        found["bias"] = layer["bias"]
    return found


def _norm(
    node: Norm, matched: Mapping[str, str], layers: Layers, params: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The values of a batch normalization; without one, the identity with the layer's bias."""
    if (prefix := matched.get(node.name)) is None:
        before = params.get(node.input, {})
        width = before["kernel"].shape[-1] if before else 0
        ones, bias = np.ones(width, np.float32), before.pop("bias", np.zeros(width, np.float32))
        moments = {"mean": np.zeros(width, np.float32), "var": ones - np.float32(NORM_EPSILON)}
        return {"scale": ones, "bias": bias}, moments
    layer = layers[prefix]
    if missing := {"weight", "bias", *MOMENTS} - layer.keys():
        raise InputError(
            f"layer {prefix!r} of the state dict lacks{_listed(sorted(missing))}: give a batch "
            f"normalization with learned values and running moments for {node.name!r}."
        )
    learned = {"scale": layer["weight"], "bias": layer["bias"]}
    return learned, {"mean": layer["running_mean"], "var": layer["running_var"]}


def _neurons(architecture: Architecture, layers: Layers) -> dict[str, Any]:
    """Learned leaks; leaks and thresholds that are fixed are compared."""
    neuron = architecture.neuron
    spiking = [node.name for node in architecture.nodes if node.spiking]
    if layers and len(layers) != len(spiking):
        raise InputError(
            f"the state dict has {len(layers)} layers of neurons{_listed(layers)}, and the "
            f"architecture {len(spiking)}{_listed(spiking)}: give those of the same network."
        )
    if neuron.learned and not layers:
        raise InputError(
            "the state dict has no leaks (`w` or `beta`), which the architecture's neurons learn: "
            "give an architecture of neurons with learned=False."
        )
    found = {}
    for name, (prefix, layer) in zip(spiking, layers.items(), strict=False):
        threshold = layer.get("threshold", np.float32(neuron.threshold))
        _check_same(prefix, "threshold", threshold, neuron.threshold)
        if "alpha" in layer:
            decay = 1 - 1 / getattr(neuron, "tau_syn", 1.0)
            _check_same(prefix, "alpha", layer["alpha"], decay)
        leak = _leak(prefix, layer)
        if leak is None:
            continue
        if neuron.learned:
            found[name] = {"leak": np.full((1,), leak, np.float32)}
        else:
            rate = 1 / (1 + np.exp(-np.float64(leak)))
            _check_same(prefix, "leak 1 / tau", rate, 1 / neuron.membrane_tau)
    return found


def _leak(prefix: str, layer: Mapping[str, np.ndarray]) -> float | None:
    """The parameter whose sigmoid is 1 / tau; None if the layer does not say it."""
    value = layer.get("w", layer.get("beta"))
    if value is None:
        return None
    if not np.allclose(value, np.ravel(value)[0], rtol=CLOSE):
        raise InputError(
            f"neurons {prefix!r} of the state dict have leaks of their own: give one to each layer."
        )
    number = float(np.ravel(value)[0])
    if "w" in layer:
        return number
    if not 0 < number < 1:
        raise InputError(f"beta of {prefix!r} in the state dict is {number:g}: give 0 to 1.")
    return float(np.log((1 - number) / number))


def _check_same(prefix: str, what: str, given: Any, wanted: float) -> None:
    if not np.allclose(given, wanted, rtol=CLOSE):
        number = float(np.ravel(given)[0])
        raise InputError(
            f"the {what} of neurons {prefix!r} in the state dict is {number:.6g}, and that of the "
            f"architecture {wanted:.6g}: give an architecture with the same neurons."
        )


def _check(architecture: Architecture, variables: Mapping[str, Any]) -> None:
    tensors = {
        f"{collection}/{name}/{key}": np.ascontiguousarray(value, np.float32)
        for collection, nodes in variables.items()
        for name, leaves in nodes.items()
        for key, value in leaves.items()
    }
    for name in tensor_shapes(architecture):
        if name.endswith("/bias") and name not in tensors:
            raise InputError(
                f"the state dict has no bias for {name.split('/')[1]!r}: give an architecture "
                "without it."
            )
    for name in tensors.keys() - tensor_shapes(architecture).keys():
        if name.endswith("/bias"):
            raise InputError(
                f"the state dict has a bias for {name.split('/')[1]!r}, and the architecture none: "
                "give an architecture with bias=True there, or one with batch normalization."
            )
    check_variables("the state dict", architecture, tensors)
