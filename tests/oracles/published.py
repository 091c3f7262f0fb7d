"""The networks that `models` builds, as torch modules written from the papers' descriptions.

They know nothing of our nodes: layers are registered in the order in which an image meets them,
shortcuts after what they shorten, and `load` fills them with our weights by that order.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.neurons import LIF, Surrogate
from ccsrp_jax.networks.nodes import Conv, Dense, Norm, Spike
from peers.torch_twin import SURROGATES, lif_node, tensor

Neuron = Callable[[], nn.Module]


class Channels(nn.Module):
    """(B, C, H, W) to features, channel fastest, as we have them."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Mean(nn.Module):
    """Over all positions."""

    def forward(self, x):
        return x.mean((2, 3))


def convolution(into: int, out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Without a bias, and batch normalisation."""
    conv = nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out)]


def vgg(
    stages: Sequence[Sequence[int]],
    hidden: Sequence[int],
    classes: int,
    image: tuple[int, int, int],
    fires: Neuron,
    *,
    pool: type[nn.Module] = nn.AvgPool2d,
    last_pool: bool = True,
) -> nn.Sequential:
    """VGG: stages of 3 x 3 convolutions with 2 x 2 pooling between, then dense layers.

    Args:
      stages: widths of the convolutions of each.
      hidden: widths of the dense layers that fire.
      classes: width of the classifier.
      image: (H, W, C).
      fires: makes a layer of neurons.
      pool: of window and stride 2.
      last_pool: whether one follows the last stage.
    """
    side, _, into = image
    layers: list[nn.Module] = []
    for i, stage in enumerate(stages):
        for out in stage:
            layers += [*convolution(into, out), fires()]
            into = out
        if last_pool or i < len(stages) - 1:
            layers.append(pool(2))
            side //= 2
    layers.append(Channels())
    features = into * side * side
    for out in hidden:
        layers += [nn.Linear(features, out), fires()]
        features = out
    return nn.Sequential(*layers, nn.Linear(features, classes))


class Block(nn.Module):
    """He et al.'s basic block with neurons in place of ReLUs, or SEW's with ADD.

    In the first the sum of both branches' currents meets neurons; in the second each branch
    fires by itself, an identity shortcut apart, and the spikes add.
    """

    def __init__(self, into: int, out: int, stride: int, fires: Neuron, sew: bool) -> None:
        super().__init__()
        first = [*convolution(into, out, stride=stride), fires()]
        second = [*convolution(out, out), *([fires()] if sew else [])]
        self.branch = nn.Sequential(*first, *second)
        self.shortcut = nn.Identity()
        if stride > 1 or into != out:
            projection = convolution(into, out, kernel=1, stride=stride)
            self.shortcut = nn.Sequential(*projection, *([fires()] if sew else []))
        self.after = nn.Identity() if sew else fires()

    def forward(self, x):
        return self.after(self.branch(x) + self.shortcut(x))


def resnet(
    blocks: Sequence[int],
    widths: Sequence[int],
    stem: int,
    hidden: Sequence[int],
    classes: int,
    channels: int,
    fires: Neuron,
    *,
    sew: bool = False,
) -> nn.Sequential:
    """A residual network for small images: the first stage keeps the size, each other halves it.

    Args:
      blocks, widths: of each stage.
      stem: width of the first convolution.
      hidden: widths of the dense layers that fire, behind the mean over positions.
      classes, channels: of the images.
      fires: makes a layer of neurons.
      sew: spikes add, and not currents.
    """
    layers: list[nn.Module] = [*convolution(channels, stem), fires()]
    into = stem
    for i, (count, out) in enumerate(zip(blocks, widths, strict=True)):
        for j in range(count):
            layers.append(Block(into, out, 2 if i > 0 and j == 0 else 1, fires, sew))
            into = out
    layers.append(Mean())
    for out in hidden:
        layers += [nn.Linear(into, out), fires()]
        into = out
    return nn.Sequential(*layers, nn.Linear(into, classes))


def published(
    name: str, image: tuple[int, int, int], classes: int, fires: Neuron, width: float = 1
) -> nn.Sequential:
    """The network of that name in `models.MODELS`, every hidden width times `width`."""

    def wide(*filters: int) -> tuple[int, ...]:
        return tuple(round(width * n) for n in filters)

    def stages(*counts: tuple[int, int]) -> list[tuple[int, ...]]:
        return [wide(*[filters] * count) for filters, count in counts]

    c = image[-1]
    match name:
        case "vgg11":  # Ding et al., SNN-RAT (2022): three poolings, 4096 twice
            plan = [wide(64), wide(128, 256), wide(512, 512, 512), wide(512, 512)]
            return vgg(plan, wide(4096, 4096), classes, image, fires, last_pool=False)
        case "vgg16":  # Simonyan and Zisserman's D, with one hidden layer
            plan = stages((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
            return vgg(plan, wide(512), classes, image, fires)
        case "6conv2fc":
            plan, pool = stages((128, 2), (256, 2), (512, 2)), nn.MaxPool2d
            return vgg(plan, wide(512), classes, image, fires, pool=pool, last_pool=False)
        case "resnet18" | "sew_resnet18":
            widths, sew = wide(64, 128, 256, 512), name.startswith("sew")
            return resnet((2, 2, 2, 2), widths, widths[0], (), classes, c, fires, sew=sew)
        case "resnet19":  # Zheng et al. (2021), table 1, but for a stem of 64
            return resnet((3, 3, 2), wide(128, 256, 512), *wide(64), wide(256), classes, c, fires)
        case "resnet8":
            return resnet((1, 1, 1), wide(16, 32, 64), *wide(16), (), classes, c, fires)
    raise ValueError(name)


PUBLISHED = ("vgg11", "vgg16", "6conv2fc", "resnet18", "sew_resnet18", "resnet19", "resnet8")


def neurons(lif: LIF, shape: Surrogate = Surrogate()) -> Neuron:
    """Makes layers of SpikingJelly's neurons with our constants."""
    if not lif.learned:
        return lambda: lif_node(lif, shape)
    return lambda: neuron.ParametricLIFNode(
        init_tau=lif.tau,
        decay_input=lif.decay_input,
        v_threshold=lif.threshold,
        v_reset={"hard": 0.0, "soft": None}[lif.reset],
        surrogate_function=SURROGATES[shape.name](shape.width),
        detach_reset=lif.detach_reset,
    )


def load(network: nn.Module, architecture: Architecture, variables: dict) -> nn.Module:
    """Fills in our weights by order, for evaluation."""
    weights, statistics = variables["params"], variables["batch_stats"]
    kinds = {
        nn.Conv2d: Conv,
        nn.BatchNorm2d: Norm,
        nn.Linear: Dense,
        neuron.ParametricLIFNode: Spike,
    }
    layers = [layer for layer in network.modules() if type(layer) in kinds]
    nodes = [node for node in architecture.nodes if node.name in weights]
    with torch.no_grad():
        for layer, node in zip(layers, nodes, strict=True):
            assert isinstance(node, kinds[type(layer)]), (layer, node)
            ours = weights[node.name]
            match layer:
                case nn.Conv2d():
                    layer.weight.copy_(tensor(ours["kernel"]).permute(3, 2, 0, 1))
                case nn.BatchNorm2d():
                    layer.weight.copy_(tensor(ours["scale"]))
                    layer.running_mean.copy_(tensor(statistics[node.name]["mean"]))
                    layer.running_var.copy_(tensor(statistics[node.name]["var"]))
                case nn.Linear():
                    layer.weight.copy_(tensor(ours["kernel"]).T)
                case _:
                    layer.w.copy_(tensor(ours["leak"])[0])
            if "bias" in ours:
                layer.bias.copy_(tensor(ours["bias"]))
    return network.eval()


def logits(network: nn.Module, steps: int, images: torch.Tensor) -> torch.Tensor:
    """Mean over time of the network's answers to a constant input, one step at a time."""
    functional.reset_net(network)
    return torch.stack([network(images) for _ in range(steps)]).mean(0)


def sizes(network: nn.Module, image: tuple[int, int, int]) -> tuple[int, list[int]]:
    """Trainable parameters, and the MACs of every convolution and dense layer, by hooks."""
    macs: dict[nn.Module, int] = {}

    def count(layer, _, out):
        macs[layer] = out[0].numel() * layer.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    h, w, c = image
    with torch.no_grad():
        logits(network.eval(), 1, torch.zeros(1, c, h, w))
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in network.parameters()), [macs[layer] for layer in layers]


def plif_by_spikingjelly(
    current: np.ndarray, lif: LIF, shape: Surrogate, d_spikes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Spikes with a learned leak, and gradients for the current (T, N) and its parameter.

    The gradients are of the spikes' sum weighted by `d_spikes`.
    """
    x, node = tensor(current).requires_grad_(), neurons(lif, shape)()
    spikes = torch.stack([node(step) for step in x])
    (spikes * tensor(d_spikes)).sum().backward()
    return spikes.detach().numpy(), x.grad.numpy(), node.w.grad.item()
