"""The spiking network as a Flax module, and builders of the architectures we ship."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ccsrp_jax.architecture import (
    IMAGE,
    Add,
    Architecture,
    Conv,
    Dense,
    Flatten,
    Node,
    Norm,
    Pool,
    Spike,
    group_of,
    live_at,
    shapes,
)
from ccsrp_jax.errors import InputError, check_number, unknown
from ccsrp_jax.gradients import AdaptiveSharpness, Backward, Distances, Surrogate, respond
from ccsrp_jax.masks import MaskTree, check_fit
from ccsrp_jax.neurons import LIF

Seen = dict[str, tuple[Distances, ...]]  # by LIF node, the statistics of every step
Values = dict[str, Array]  # node name -> (S, B, *features), S = T or 1 where constant in time


class Activity(NamedTuple):
    """What the LIF layers did, by the name of their node: each (T, B, *features)."""

    spikes: Values  # after the gate
    potentials: Values  # before the reset, before the gate
    distances: Seen  # for `gradients.AdaptiveSharpness` only


class SpikingNetwork(nn.Module):
    """Runs an `Architecture` on images in [0, 1].

    Time is folded into the batch for convolution, dense and batch norm; only the LIF
    layers run over T. What is constant in time (everything before the first LIF layer) is
    computed once and not T times.

    Attributes:
      architecture: the graph, T, the neuron and the input normalisation.
      dtype: compute type of convolutions and dense layers; parameters, batch statistics
        and membranes stay float32.
    """

    architecture: Architecture
    dtype: DTypeLike = jnp.float32

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        masks: MaskTree | None = None,
        *,
        surrogate: Backward = Surrogate(),
        train: bool = False,
        activity: bool = False,
        key: Array | None = None,
        seen: Seen | None = None,
    ) -> Float[Array, "B K"] | tuple[Float[Array, "B K"], Activity]:
        """Logits, averaged over time.

        Args:
          images: NHWC in [0, 1]; normalisation happens in here.
          masks: group name to a 0/1 vector over its filters; groups that are missing are
            kept whole.
          surrogate: through what to differentiate; it does not change the output, but for
            `gradients.Relu`.
          train: batch norm uses (and updates, with `mutable=["batch_stats"]`) the batch.
          activity: also return the spikes and potentials of every LIF layer.
          key: for a stochastic encoding.
          seen: by LIF node, what `gradients.AdaptiveSharpness` has seen before.
        """
        values, active = self.walk(
            self.encode(images, key),
            masks,
            surrogate=surrogate,
            train=train,
            activity=activity,
            seen=seen,
        )
        logits = self.readout(values)
        return (logits, active) if activity else logits

    def encode(self, images: Float[Array, "B H W C"], key: Array | None = None) -> Values:
        """The normalised input of each step; one that holds for all if nothing is random.

        Gradients pass straight through the draws of the Poisson encoding.

        Raises:
          InputError: a stochastic encoding without a key.
        """
        a = self.architecture
        x_SxBxHxWxC = images[None]
        if a.stochastic:
            if key is None:
                raise InputError(f"the {a.encoding} encoding draws at random: give it a key.")
            shape = (a.time_steps, *images.shape)
            if a.encoding == "poisson":
                spikes = jax.random.bernoulli(key, jnp.clip(images, 0, 1), shape)
                x_SxBxHxWxC = spikes + (images - jax.lax.stop_gradient(images))
            else:
                x_SxBxHxWxC = images + a.noise * jax.random.normal(key, shape, images.dtype)
        mean, std = jnp.array(a.mean), jnp.array(a.std)
        return {IMAGE: ((x_SxBxHxWxC - mean) / std).astype(self.dtype)}

    def readout(self, values: Values) -> Float[Array, "B K"]:
        """Mean over time of the classifier's output."""
        return values[self.architecture.nodes[-1].name].astype(jnp.float32).mean(0)

    @nn.compact
    def walk(
        self,
        values: Values,
        masks: MaskTree | None = None,
        *,
        begin: int = 0,
        end: int | None = None,
        keep: Sequence[str] = (),
        surrogate: Backward = Surrogate(),
        train: bool = False,
        activity: bool = False,
        seen: Seen | None = None,
    ) -> tuple[Values, Activity]:
        """Runs the nodes from `begin` to `end` on the values that they read.

        `walk` to a group's gate and `walk` on from there equal one walk: fitness
        evaluation shares the first among all candidates for that group.

        Args:
          values: by name, what the nodes read from before `begin`.
          masks, surrogate, train, activity, seen: as in `__call__`.
          begin, end: positions in `architecture.nodes`.
          keep: names of further values to return.

        Returns:
          The values that nodes from `end` on read (the classifier's output, where `end`
          is the end) together with `keep`, and the activity, empty unless asked for.

        Raises:
          InputError: a mask of an unknown group or of a wrong length.
        """
        nodes = self.architecture.nodes
        end = len(nodes) if end is None else end
        member, masks = group_of(self.architecture), masks or {}
        check_fit(self.architecture, masks)
        values, active = dict(values), Activity({}, {}, {})
        for node in nodes[begin:end]:
            x = values[node.input]
            match node:
                case Spike(name=name):
                    x, potential, distances = respond(
                        x,
                        self.architecture.neuron,
                        surrogate,
                        self.architecture.time_steps,
                        (seen or {}).get(name),
                    )
                    if (mask := masks.get(member[name])) is not None:
                        x = x * mask.astype(x.dtype)
                    if activity:
                        active.spikes[name], active.potentials[name] = x, potential
                        if distances is not None:
                            active.distances[name] = distances
                case Pool(window=w, kind=kind):
                    s, b, h, v, c = x.shape
                    x = x[:, :, : h // w * w, : v // w * w].reshape(s, b, h // w, w, v // w, w, c)
                    x = x.max((3, 5)) if kind == "max" else x.mean((3, 5))
                case Flatten():
                    x = x.reshape(*x.shape[:2], -1)
                case Add(other=other):
                    x = x + values[other]
                case _:
                    folded = self._layer(node, train)(x.reshape(-1, *x.shape[2:]))
                    x = folded.reshape(*x.shape[:2], *folded.shape[1:])
            values[node.name] = x
        wanted = {*live_at(self.architecture, end), *keep}
        if end == len(nodes):
            wanted.add(nodes[-1].name)
        return {name: value for name, value in values.items() if name in wanted}, active

    def _layer(self, node: Node, train: bool) -> nn.Module:
        """The Flax layer with the weights of a node."""
        match node:
            case Conv(name, _, width, kernel, stride, bias):
                return nn.Conv(
                    width,
                    (kernel, kernel),
                    stride,
                    [(kernel // 2, kernel // 2)] * 2,
                    use_bias=bias,
                    dtype=self.dtype,
                    conv_general_dilated=_aligned_conv,
                    name=name,
                )
            case Dense(name, _, width, bias):
                return nn.Dense(width, use_bias=bias, dtype=self.dtype, name=name)
            case Norm(name):
                return nn.BatchNorm(
                    use_running_average=not train, momentum=0.9, dtype=self.dtype, name=name
                )
        raise TypeError(f"no layer for {node}")


def _aligned_conv(x, kernel, *args, **options):
    """Convolution with its input channels filled up with zeros to a multiple of 4.

    XLA's convolution on CPUs takes twice the time where they are not, as they seldom are
    once a network is pruned.
    """
    spare = -x.shape[-1] % 4 if x.shape[-1] > 2 else 0
    if spare:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])
        kernel = jnp.pad(kernel, [(0, 0), (0, 0), (0, spare), (0, 0)])
    return jax.lax.conv_general_dilated(x, kernel, *args, **options)


@dataclass(frozen=True)
class Classifier:
    """`(variables, masks), images -> logits` in evaluation mode.

    Hashable by value, so that jitted code may take it as a static argument. What attacks
    may know of a classifier beyond that, see `attacks`.

    Attributes:
      architecture: the network.
      surrogate: what gradients of its output go through.
    """

    architecture: Architecture
    surrogate: Backward = Surrogate()

    @property
    def stochastic(self) -> bool:
        """Whether it must be called with a key."""
        return self.architecture.stochastic

    def __call__(
        self,
        params: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "B K"]:
        variables, masks = params
        network = SpikingNetwork(self.architecture)
        return network.apply(variables, images, masks, surrogate=self.surrogate, key=key)

    def with_backward(self, surrogate: Backward) -> "Classifier":
        """The same network, differentiated through something else."""
        return dataclasses.replace(self, surrogate=surrogate)

    @property
    def remembers(self) -> bool:
        """Whether its gradient depends on the iterations before."""
        return isinstance(self.surrogate, AdaptiveSharpness)

    def recall(
        self,
        params: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        memory: Seen,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B K"], Seen]:
        """Logits whose gradient goes by a memory, at first `fresh_memory`, and the next one."""
        variables, masks = params
        logits, active = SpikingNetwork(self.architecture).apply(
            variables,
            images,
            masks,
            surrogate=self.surrogate,
            activity=True,
            key=key,
            seen=memory,
        )
        return logits, active.distances

    def fresh_memory(self, count: int) -> Seen:
        """What is known of `count` images before an attack."""
        a = self.architecture
        return {
            node.name: self.surrogate.fresh(a.time_steps, (count, *shapes(a)[node.name]))
            for node in a.nodes
            if isinstance(node, Spike)
        }


def init(key: Array, architecture: Architecture) -> dict:
    """Fresh variables, `{"params", "batch_stats"}`, of a network."""
    image = jnp.zeros((1, *architecture.input_shape))
    return jax.jit(SpikingNetwork(architecture).init)(key, image, key=key)


POOLS = {"A": "avg", "M": "max"}


def plain(
    plan: Sequence[int | str],
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    dense: Sequence[int] = (),
    width: float | int = 1,
    time_steps: int = 4,
    neuron: LIF = LIF(),
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
) -> Architecture:
    """A feed-forward network in the VGG manner.

    Args:
      plan: a width adds 3 x 3 convolution, batch norm and LIF; `"A"` and `"M"` add 2 x 2
        average and max pooling.
      input_shape: (H, W, C) of the images.
      classes: width of the classifier.
      dense: widths of fully connected LIF layers before the classifier.
      width: multiplies all of these widths; at least 1 filter is left of each.
      time_steps, neuron, mean, std: as in `Architecture`.

    Raises:
      InputError: an empty plan, a width below 1, or images too small for the poolings.
    """
    for step in plan:
        if isinstance(step, str) and step not in POOLS:
            raise unknown("step of the model plan", step, POOLS)
    if not any(isinstance(step, int) for step in plan) or any(
        step < 1 for step in (*plan, *dense) if isinstance(step, int)
    ):
        raise InputError(f"model plan {tuple(plan)} needs at least one layer, of width 1 or more.")
    check_number("model width", width, 0, above=True)
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
            add(Conv(f"conv{convs}", last, max(1, round(step * width))))
            add(Norm(f"norm{convs}", last))
            add(Spike(f"lif{convs}", last))
        else:
            pools += 1
            add(Pool(f"pool{pools}", last, kind=POOLS[step]))
    add(Flatten("flatten", last))
    for i, features in enumerate(dense, 1):
        add(Dense(f"fc{i}", last, max(1, round(features * width))))
        add(Spike(f"fc{i}.lif", last))
    add(Dense("classifier", last, classes))
    architecture = Architecture(tuple(nodes), input_shape, time_steps, neuron, mean, std)
    shapes(architecture)  # refuses what does not fit
    return architecture


def _plan(*plan: int | str, dense: Sequence[int] = ()) -> Callable[..., Architecture]:
    return partial(plain, plan, dense=dense)


# Name to `build(input_shape, classes, *, width, time_steps, neuron, mean, std)`.
MODELS: dict[str, Callable[..., Architecture]] = {
    "small": _plan(24, 48, "A", 48, "A"),  # 8 x 8 digits in minutes on two cores
    "medium": _plan(24, "A", 48, "A", 96, "A"),  # 28 x 28 and 32 x 32 images on a CPU
    # the robustness literature's VGG-11 (SNN-RAT's widths)
    "vgg11": _plan(64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512, dense=(4096, 4096)),
    # CCEP's VGG-16: 13 convolutions and one hidden layer
    "vgg16": _plan(
        *(64, 64, "A", 128, 128, "A", 256, 256, 256, "A"),
        *(512, 512, 512, "A", 512, 512, 512, "A"),
        dense=(512,),
    ),
}


def build(name: str, input_shape: tuple[int, int, int], classes: int, **options) -> Architecture:
    """The architecture of that name in `MODELS`, for these images and classes."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name](input_shape, classes, **options)
