"""Model zoo: builders of architectures, and weight initialization."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real
from typing import Any, Literal, SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.neurons import LIF, Neuron
from ccsrp_jax.networks.nodes import (
    IMAGE,
    Add,
    Conv,
    Dense,
    Flatten,
    GlobalPool,
    Node,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError, shown, unknown
from ccsrp_jax.utils.fields import POSITIVE, SIZE, converted, integer, real
from ccsrp_jax.utils.keys import checked_key


def init(key: Array, architecture: Architecture) -> dict:
    """Initial variables, `{"params", "batch_stats"}`, of a network.

    Raises:
      InputError: the key is none.
    """
    key = checked_key(key)
    image = jnp.zeros((1, *architecture.input_shape))
    return jax.jit(SpikingNetwork(architecture).init)(key, image, key=key)


ImageShape = Sequence[int] | np.ndarray  # (H, W, C)

POOLS: dict[str, Literal["avg", "max"]] = {"A": "avg", "M": "max"}
GLOBAL = "G"


NORMS = ("bn", "tdbn")


def plain(
    plan: Sequence[SupportsIndex | str],
    input_shape: ImageShape,
    classes: SupportsIndex,
    *,
    dense: Sequence[SupportsIndex] = (),
    width: SupportsFloat = 1,
    norm: str = "bn",
    first_stride: SupportsIndex = 1,
    neuron: Neuron = LIF(),
    **settings,
) -> Architecture:
    """A feed-forward network in the style of VGG.

    Args:
      plan: layers in order. A number adds a 3 x 3 convolution with this many filters, batch norm
        and LIF; `"A"` and `"M"` add 2 x 2 average and max pooling, `"G"` global average pooling.
      input_shape: (H, W, C) of the images.
      classes: number of classes.
      dense: widths of fully connected LIF layers before the classifier.
      width: factor on all of these widths, which are at least 1.
      norm: `bn`, or `tdbn`, whose scale is initialized to the threshold.
      first_stride: stride of the first convolution.
      neuron, settings: as in `Architecture`.

    Raises:
      InputError: an empty plan, a width below 1, or images too small for the pooling layers.
    """
    plan, dense = _checked_plan(plan), _numbers("dense", dense)
    first_stride = integer("first_stride", first_stride, SIZE)
    scale = _norm_scale(norm, neuron)
    nodes: list[Node] = []
    last = IMAGE

    def add(node: Node) -> None:
        nonlocal last
        nodes.append(node)
        last = node.name

    convs = pools = 0
    for step in plan:
        if isinstance(step, int):
            convs += 1
            stride = first_stride if convs == 1 else 1
            add(Conv(f"conv{convs}", last, _scaled(step, width), stride=stride))
            add(Norm(f"norm{convs}", last, scale))
            add(Spike(f"lif{convs}", last))
        else:
            pools += 1
            name = f"pool{pools}"
            pool = GlobalPool(name, last) if step == GLOBAL else Pool(name, last, kind=POOLS[step])
            add(pool)
    return _with_head(nodes, input_shape, classes, dense, width, neuron, settings)


def residual(
    stages: Sequence[Sequence[SupportsIndex]],
    input_shape: ImageShape,
    classes: SupportsIndex,
    *,
    stem: SupportsIndex,
    spikes_add: bool = False,
    dense: Sequence[SupportsIndex] = (),
    width: SupportsFloat = 1,
    norm: str = "bn",
    neuron: Neuron = LIF(),
    **settings,
) -> Architecture:
    """A residual network of basic blocks for small images, with a 3 x 3 stem and global pooling.

    A block is convolution, norm, LIF, convolution, norm. A shortcut between different shapes has a
    1 x 1 convolution and a norm. Either the currents of both branches are added before a common LIF
    layer (as in tdBN's ResNet-19, arXiv 2011.05280), or each branch ends in a LIF layer and their
    spikes are added (SEW-ResNet with ADD, Fang et al., NeurIPS 2021, arXiv 2102.04159).

    Args:
      stages: (filters, blocks, stride of the first block) of each stage.
      input_shape: (H, W, C) of the images.
      classes: number of classes.
      stem: filters of the first convolution.
      spikes_add: whether spikes are added instead of currents.
      dense, width, neuron, settings: as in `plain`.
      norm: `bn`, or `tdbn`, whose scale is initialized to the threshold, divided by the square
        root of 2 where currents are added.

    Raises:
      InputError: a width that is not above 0, or an unknown norm.
    """
    input_shape = converted("input_shape", input_shape, tuple[int, int, int], SIZE)
    stages = [converted("stages", stage, tuple[int, int, int], SIZE) for stage in stages]
    stem, dense = integer("stem", stem, SIZE), _numbers("dense", dense)
    nodes: list[Node] = []
    scale = _norm_scale(norm, neuron)
    summed = scale if spikes_add or norm == "bn" else scale / math.sqrt(2)

    def layer(
        name: str, source: str, filters: int, *, kernel: int = 3, stride: int = 1, fires: bool
    ) -> str:
        nodes.append(Conv(name, source, _scaled(filters, width), kernel, stride))
        nodes.append(Norm(f"{name}.norm", name, scale if fires else summed))
        if fires:
            nodes.append(Spike(f"{name}.lif", nodes[-1].name))
        return nodes[-1].name

    last, channels, side = layer("stem", IMAGE, stem, fires=True), stem, input_shape[0]
    for i, (filters, blocks, first_stride) in enumerate(stages, 1):
        for j in range(1, blocks + 1):
            stride, block = first_stride if j == 1 else 1, f"stage{i}.block{j}"
            inner = layer(f"{block}.conv1", last, filters, stride=stride, fires=True)
            outer = layer(f"{block}.conv2", inner, filters, fires=spikes_add)
            if stride != 1 or channels != filters:
                name = f"{block}.shortcut"
                last = layer(name, last, filters, kernel=1, stride=stride, fires=spikes_add)
            nodes.append(Add(f"{block}.add", outer, last))
            if not spikes_add:
                nodes.append(Spike(f"{block}.lif", f"{block}.add"))
            last, channels = nodes[-1].name, filters
        side = -(-side // first_stride)
    # the same average; a `Pool` is what networks for square images have always had
    square = input_shape[0] == input_shape[1]
    nodes.append(Pool("pool", last, side) if square else GlobalPool("pool", last))
    return _with_head(nodes, input_shape, classes, dense, width, neuron, settings)


def _with_head(
    nodes: list[Node],
    input_shape: Any,
    classes: Any,
    dense: Sequence[int],
    width: SupportsFloat,
    neuron: Neuron,
    settings: dict,
) -> Architecture:
    """Adds flattening, dense LIF layers and the classifier to the convolutions."""
    nodes = [*nodes, Flatten("flatten", nodes[-1].name)]
    for i, features in enumerate(dense, 1):
        nodes.append(Dense(f"fc{i}", nodes[-1].name, _scaled(features, width)))
        nodes.append(Spike(f"fc{i}.lif", f"fc{i}"))
    nodes.append(Dense("classifier", nodes[-1].name, classes))
    return Architecture(tuple(nodes), input_shape, neuron=neuron, **settings)


def _checked_plan(plan: Sequence[SupportsIndex | str]) -> list[int | str]:
    if isinstance(plan, str) or not isinstance(plan, Iterable):
        raise InputError(f"model plan {shown(plan)} is no sequence: give widths and poolings.")
    plan = list(plan)
    for step in plan:
        if isinstance(step, str) and step not in (*POOLS, GLOBAL):
            raise unknown("step of the model plan", step, (*POOLS, GLOBAL))
    widths = [step for step in plan if not isinstance(step, str)]
    if not widths or any(isinstance(step, Real) and step < 1 for step in widths):
        raise InputError(
            f"model plan {shown(tuple(plan))} needs at least one layer, of width 1 or more."
        )
    return [
        str(step) if isinstance(step, str) else integer("model plan", step, SIZE) for step in plan
    ]


def _numbers(name: str, values: Sequence[SupportsIndex]) -> tuple[int, ...]:
    return converted(name, values, tuple[int, ...], SIZE)


def _scaled(filters: int, width: SupportsFloat) -> int:
    return max(1, round(filters * real("model width", width, POSITIVE)))


def _norm_scale(norm: str, neuron: Neuron) -> float:
    if norm not in NORMS:
        raise unknown("normalization", norm, NORMS)
    return neuron.threshold if norm == "tdbn" else 1.0


RESNET18 = ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))


# By name, functions `(input_shape, classes, *, width, norm, time_steps, neuron, ...)`.
MODELS: dict[str, Callable[..., Architecture]] = {
    # for 8 x 8 digits: a run takes minutes on two cores
    "small": partial(plain, (24, 48, "A", 48, "A")),
    # for 28 x 28 and 32 x 32 images on a CPU
    "medium": partial(plain, (24, "A", 48, "A", 96, "A")),
    # for 32 x 32 images on a CPU, which runs wide layers at a low resolution best: 50 M MACs
    "wide5": partial(plain, (48, 96, "M", 192, 192, "M", 256, "G"), first_stride=2),
    # VGG-11 of the robustness literature (widths as in SNN-RAT)
    "vgg11": partial(
        plain, (64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512), dense=(4096, 4096)
    ),
    # CCEP's VGG-16: 13 convolutions and one hidden layer
    "vgg16": partial(
        plain,
        (64, 64, "A", 128, 128, "A", *[256] * 3, "A", *[512] * 3, "A", *[512] * 3, "A"),
        dense=(512,),
    ),
    # SD-SNN's network; its threshold of 0.5 is to be set by `neuron`
    "6conv2fc": partial(plain, (128, 128, "M", 256, 256, "M", 512, 512), dense=(512,)),
    "resnet18": partial(residual, RESNET18, stem=64),
    "sew_resnet18": partial(residual, RESNET18, stem=64, spikes_add=True),
    # tdBN's layout, with a stem of 64 filters, which agrees with the published 12.63 M parameters
    "resnet19": partial(
        residual, ((128, 3, 1), (256, 3, 2), (512, 2, 2)), stem=64, dense=(256,), norm="tdbn"
    ),
    # a residual network about the size of `medium`
    "resnet8": partial(residual, ((16, 1, 1), (32, 1, 2), (64, 1, 2)), stem=16),
}


def build(name: str, input_shape: ImageShape, classes: SupportsIndex, **options) -> Architecture:
    """The architecture with this name in `MODELS`.

    Args:
      name: a key of `MODELS`.
      input_shape: (H, W, C) of the images.
      classes: number of classes.
      options: as for `plain` and `residual`.

    Raises:
      InputError: unknown name, or options that do not fit.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name](input_shape, classes, **options)
