"""Interval bounds of a network's potentials, spikes and logits in an L-infinity ball of images.

Every image in the ball has its potentials and spikes, at every layer and step, inside the
intervals. With the roundoff `UNIT` of float32 this holds for what `SpikingNetwork` computes in
float32, in any order of summation.

References:
  Liang, Xu, Hu, Deng and Xie, Toward Robust Spiking Neural Network Against Adversarial
  Perturbation, NeurIPS 2022 (S-IBP). Gowal et al., arXiv 1810.12715 (IBP), for the last layer
  merged with the difference of classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.interval_neurons import check_monotone, neuron_bounds
from ccsrp_jax.networks.interval_rules import IntervalRun, interval_rule
from ccsrp_jax.networks.intervals import UNIT, Interval, gamma
from ccsrp_jax.networks.masks import MaskTree, check_fit, gate, kernel
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.networks.nodes import IMAGE, Dense
from ccsrp_jax.utils.errors import InputError


class Bounds(NamedTuple):
    """Intervals by name of the node."""

    values: dict[str, Interval]  # of its output, (S, B, *features), S = T or 1
    potentials: dict[str, Interval]  # of `Spike` nodes, (T, B, *features), before the reset


def check_bounded(architecture: Architecture) -> None:
    """Refuses networks that have no interval bounds.

    Raises:
      InputError: the encoding is not direct; a node kind or the neurons have no rule; or the last
        node is of a kind derived from `Dense`.
    """
    if architecture.encoding != "direct":
        raise InputError(
            f"the {architecture.encoding} encoding has no interval bounds: give a network with the "
            "direct encoding."
        )
    if architecture.stochastic:
        raise InputError(
            "a network that draws at random has no interval bounds: give a deterministic one."
        )
    check_monotone(architecture.neuron)
    for node in architecture.nodes:
        if not node.spiking:
            interval_rule(node)
    if type(architecture.nodes[-1]) is not Dense:
        raise InputError(
            f"the last node is a {type(architecture.nodes[-1]).__name__}: interval bounds of the "
            "logits need a Dense."
        )


def ball(
    images: Float[Array, "B H W C"], eps: Float[Array, ""] | float | int, unit: float = UNIT
) -> Interval:
    """The images within `eps` in L-infinity and within [0, 1].

    With a roundoff above 0 it includes those that an attack's projection leaves outside by
    rounding.
    """
    reach = eps + 4 * unit
    return Interval(jnp.clip(images - reach, 0, 1), jnp.clip(images + reach, 0, 1))


def propagate(
    architecture: Architecture,
    variables: dict,
    images: Interval,
    masks: MaskTree | None = None,
    *,
    surrogate: Surrogate = Surrogate(),
    unit: float = UNIT,
    split_kernel_gradient: bool = False,
) -> Bounds:
    """Bounds of a network in evaluation mode for all images of the interval.

    Args:
      architecture, variables, masks: the network.
      images: (B, H, W, C), as of `ball`.
      surrogate: of the spikes' ends in the backward pass.
      unit: roundoff, see `intervals`.
      split_kernel_gradient: as in `SpikingNetwork`.

    Raises:
      InputError: as in `check_bounded`, or masks that do not fit.
    """
    check_bounded(architecture)
    masks = masks or {}
    check_fit(architecture, masks)
    bounds = Bounds({IMAGE: _encoded(architecture, images, unit)}, {})
    for node in architecture.nodes:
        inputs = [bounds.values[name] for name in node.inputs]
        own = {name: value[node.name] for name, value in variables.items() if node.name in value}
        leaves = {name: leaf for each in own.values() for name, leaf in each.items()}
        if node.spiking:
            leak = jax.nn.sigmoid(leaves["leak"])[0] if architecture.neuron.learned else None
            spikes, bounds.potentials[node.name] = neuron_bounds(
                inputs[0], architecture.neuron, surrogate, architecture.time_steps, leak, unit
            )
            if (mask := gate(architecture, node.name, masks)) is not None:
                spikes = spikes.map(lambda end, mask=mask: end * mask.astype(end.dtype))
            bounds.values[node.name] = spikes
        else:
            run = IntervalRun(leaves, masks.get(kernel(node.name)), unit, split_kernel_gradient)
            bounds.values[node.name] = interval_rule(node)(node, run, *inputs)
    return bounds


def worst_margins(
    architecture: Architecture,
    variables: dict,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    eps: Float[Array, ""] | float | int,
    masks: MaskTree | None = None,
    *,
    unit: float = UNIT,
    **options: Any,
) -> Float[Array, "B K"]:
    """`margin_bounds` in the L-infinity balls of images.

    Args:
      architecture, variables, masks: the network.
      images: centres of the balls, in [0, 1].
      labels: y.
      eps: radius in pixel units.
      unit: roundoff, see `intervals`.
      options: of `propagate`.
    """
    balls = ball(images, eps, unit)
    bounds = propagate(architecture, variables, balls, masks, unit=unit, **options)
    return margin_bounds(architecture, variables, bounds, labels, masks, unit=unit)


def margin_bounds(
    architecture: Architecture,
    variables: dict,
    bounds: Bounds,
    labels: Int[Array, "B"],
    masks: MaskTree | None = None,
    *,
    unit: float = UNIT,
) -> Float[Array, "B K"]:
    """Upper bounds of z_k - z_y for every class k and the label y; 0 for k = y.

    The last layer is merged with the difference, so that what both logits share cancels. Infinite
    where a potential of the image is not bounded.

    Args:
      architecture, variables, masks: the network.
      bounds: of its nodes, from `propagate`.
      labels: y.
      unit: roundoff, see `intervals`.
    """
    last = architecture.nodes[-1]
    weights, mask = variables["params"][last.name]["kernel"], (masks or {}).get(kernel(last.name))
    weights = weights if mask is None else weights * mask.astype(weights.dtype)
    bias = variables["params"][last.name].get("bias", jnp.zeros(weights.shape[-1]))
    features = bounds.values[last.input]
    rates = features.map(lambda end: end.mean(0))  # the mean of logits is that of mean inputs
    centre = (rates.lower + rates.upper) / 2
    radius = (rates.upper - rates.lower) / 2
    own = weights.T[labels]  # (B, F)
    difference = weights[None] - own[:, :, None]  # (B, F, K)
    margins = jnp.einsum("bf,bfk->bk", centre, difference) + bias - bias[labels][:, None]
    margins += jnp.einsum("bf,bfk->bk", radius, jnp.abs(difference))
    if unit:
        size = features.magnitude.max(0) @ jnp.abs(weights) + jnp.abs(bias)
        terms = len(features.lower) + len(weights) + 16
        margins += (
            8 * gamma(terms, unit) * (size + jnp.take_along_axis(size, labels[:, None], axis=1))
        )
    for each in bounds.potentials.values():
        known = (jnp.isfinite(each.lower) & jnp.isfinite(each.upper)).all(
            axis=(0, *range(2, each.lower.ndim))
        )
        margins = jnp.where(known[:, None], margins, jnp.inf)
    return jnp.where(jax.nn.one_hot(labels, margins.shape[-1], dtype=bool), 0.0, margins)


def _encoded(architecture: Architecture, images: Interval, unit: float) -> Interval:
    """The normalized input, constant in time."""
    mean, std = jnp.array(architecture.mean), jnp.array(architecture.std)
    slack = 8 * unit * (images.magnitude + jnp.abs(mean)) / std
    return images.map(lambda end: ((end - mean) / std)[None]).widened(slack)
