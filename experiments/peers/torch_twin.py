"""Torch twins of our networks: SpikingJelly's neurons, torch's layers, our weights."""

from functools import partial

import jax
import numpy as np
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from ccsrp_jax.networks.architecture import Architecture, group_of
from ccsrp_jax.networks.neurons import LIF, Neuron, Surrogate
from ccsrp_jax.networks.nodes import (
    IMAGE,
    Add,
    Concat,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalPool,
    Node,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.zoo import init

# Our width to the peer's alpha, by the shapes' definitions.
SURROGATES = {
    "atan": lambda width: surrogate.ATan(alpha=2 / width),
    "triangle": lambda width: surrogate.PiecewiseQuadratic(alpha=1 / width),
    "rectangle": lambda width: surrogate.Rect(alpha=1 / width),
    "sigmoid": lambda width: surrogate.Sigmoid(alpha=4 / width),
}


def tensor(array) -> torch.Tensor:
    """A float32 copy."""
    return torch.from_numpy(np.array(array, np.float32))


def nchw(images) -> torch.Tensor:
    """Our images (B, H, W, C) in torch's layout."""
    return tensor(images).permute(0, 3, 1, 2).contiguous()


def lif_node(lif: Neuron, shape: Surrogate = Surrogate()) -> neuron.LIFNode:
    """SpikingJelly's LIFNode with our constants; it has no `soft_delayed` reset."""
    if not isinstance(lif, LIF):
        raise NotImplementedError(f"the torch twin has LIF neurons only, not {lif!r}.")
    return neuron.LIFNode(
        tau=lif.tau,
        decay_input=lif.decay_input,
        v_threshold=lif.threshold,
        v_reset={"hard": 0.0, "soft": None}[lif.reset],
        surrogate_function=SURROGATES[shape.name](shape.width),
        detach_reset=lif.detach_reset,
    )


def random_network(seed: int, architecture: Architecture) -> dict:
    """Variables with large weights and a batch norm that is not the identity: all layers spike."""
    variables = init(jax.random.key(seed), architecture)
    rng = np.random.default_rng(seed)
    draw = {
        "kernel": lambda value: 3 * np.asarray(value),
        "scale": lambda value: rng.uniform(0.5, 1.5, value.shape),
        "bias": lambda value: rng.normal(0.3, 0.5, value.shape),
        "mean": lambda value: rng.normal(0, 0.3, value.shape),
        "var": lambda value: rng.uniform(0.5, 2, value.shape),
        "leak": lambda value: rng.normal(0, 0.5, value.shape),
    }

    def redraw(path, value):
        return draw[path[-1].key](value).astype(np.float32)

    return jax.tree_util.tree_map_with_path(redraw, variables)


class Twin(nn.Module):
    """An `Architecture` in torch, in evaluation mode, stepped through time literally.

    It takes (B, C, H, W) images in [0, 1] and returns logits averaged over time. Every
    step runs every layer on its own, so it shares neither the folding of time into the
    batch nor the constant prefix with `SpikingNetwork`. Its input gradients equal ours,
    but not through max pooling of spikes: torch gives all to the first of equal maxima,
    JAX shares among them.
    """

    def __init__(
        self, architecture: Architecture, variables: dict, shape: Surrogate = Surrogate()
    ) -> None:
        super().__init__()
        self.architecture = architecture
        mean, std = tensor(architecture.mean), tensor(architecture.std)
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        self.layers = nn.ModuleDict()
        weights, statistics = variables["params"], variables.get("batch_stats", {})
        for node in architecture.nodes:
            if isinstance(node, Spike):
                self.layers[_key(node.name)] = lif_node(architecture.neuron, shape)
            elif isinstance(node, Conv | DepthwiseConv | Dense | Norm):
                layer = _layer(node, weights[node.name], statistics.get(node.name, {}))
                self.layers[_key(node.name)] = layer
        self.eval()

    def layer(self, node: Node) -> nn.Module:
        """The torch layer of a node."""
        return self.layers[_key(node.name)]

    def layer_named(self, name: str) -> nn.Module:
        """The torch layer of the node of that name."""
        return self.layers[_key(name)]

    def replace_layer(self, node: Node, layer: nn.Module) -> None:
        self.layers[_key(node.name)] = layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self)
        x = (images - self.mean) / self.std
        steps = [self._step(x) for _ in range(self.architecture.time_steps)]
        return torch.stack(steps).mean(0)

    def _step(self, image: torch.Tensor) -> torch.Tensor:
        values = {IMAGE: image}
        for node in self.architecture.nodes:
            x = values[node.input]
            match node:
                case Pool(window=window, kind="max"):
                    x = nn.functional.max_pool2d(x, window)
                case Pool(window=window):
                    x = nn.functional.avg_pool2d(x, window)
                case GlobalPool():
                    x = x.mean((2, 3), keepdim=True)
                case Flatten():
                    x = x.permute(0, 2, 3, 1).flatten(1)  # ours is channel last
                case Add(other=other):
                    x = x + values[other]
                case Concat(others=others):
                    x = torch.cat([x, *(values[other] for other in others)], 1)
                case Dropout():
                    pass  # the twin is in evaluation mode
                case Conv() | DepthwiseConv() | Dense() | Norm() | Spike():
                    x = self.layer(node)(x)
                case _:
                    raise _unknown(node)
            values[node.name] = x
        return x


class FoldedTwin(Twin):
    """The twin at its fastest, for plain networks with average pooling.

    Multi-step neurons, time folded into the batch, and what is constant in time once.
    """

    def __init__(self, architecture, variables, shape=Surrogate()):
        super().__init__(architecture, variables, shape)
        functional.set_step_mode(self, "m")
        self.requires_grad_(False)  # attacks need the images' gradients alone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self)
        steps, x = self.architecture.time_steps, (images - self.mean) / self.std
        folded = 1  # how many steps lie in the batch
        for node in self.architecture.nodes:
            match node:
                case Spike():
                    x = x.reshape(folded, -1, *x.shape[1:])
                    x = self.layer(node)(x.expand(steps, *x.shape[1:])).flatten(0, 1)
                    folded = steps
                case Pool(window=window, kind="avg"):
                    x = nn.functional.avg_pool2d(x, window)
                case Flatten():
                    x = x.permute(0, 2, 3, 1).flatten(1)
                case Conv() | Dense() | Norm():
                    x = self.layer(node)(x)
                case _:
                    raise _unknown(node)
        return x.reshape(steps, -1, x.shape[-1]).mean(0)


class MaskedTwin:
    """The network in SpikingJelly, with a mask that multiplies the spikes of one group."""

    def __init__(self, architecture, variables, splits):
        self.network = FoldedTwin(architecture, variables).to(memory_format=torch.channels_last)
        self.group: str | None = None
        self.mask = torch.ones(1)
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
        """Error and cross-entropy of every split, (splits, 2); without a group, unmasked."""
        self.group = group
        if member is not None:
            self.mask = torch.tensor(member)
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


def _key(name: str) -> str:
    return name.replace(".", "_")  # torch takes no dots in names


def _unknown(node: Node) -> NotImplementedError:
    return NotImplementedError(f"this torch twin has no layer for {type(node).__name__} nodes.")


def _layer(node: Node, weights: dict, statistics: dict) -> nn.Module:
    """The torch layer with these Flax weights."""
    match node:
        case Conv(kernel=k, stride=stride, width=width, bias=bias):
            kernel = tensor(weights["kernel"]).permute(3, 2, 0, 1)  # HWIO to OIHW
            layer = nn.Conv2d(kernel.shape[1], width, k, stride, k // 2, bias=bias)
        case DepthwiseConv(kernel=k, stride=stride):
            kernel = tensor(weights["kernel"]).permute(3, 2, 0, 1)
            channels = len(kernel)
            layer = nn.Conv2d(channels, channels, k, stride, k // 2, groups=channels, bias=False)
        case Dense(width=width, bias=bias):
            kernel = tensor(weights["kernel"]).T
            layer = nn.Linear(kernel.shape[1], width, bias=bias)
        case Norm():
            kernel = tensor(weights["scale"])
            layer = nn.BatchNorm2d(len(kernel))
            layer.running_mean.copy_(tensor(statistics["mean"]))
            layer.running_var.copy_(tensor(statistics["var"]))
        case _:
            raise _unknown(node)
    with torch.no_grad():
        layer.weight.copy_(kernel)
        if layer.bias is not None:
            layer.bias.copy_(tensor(weights["bias"]))
    return layer
