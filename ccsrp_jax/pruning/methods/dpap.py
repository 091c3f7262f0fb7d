"""DPAP: developmental plasticity-inspired pruning of neurons and synapses during training.

Traces of spikes drive the Bienenstock-Cooper-Munro (BCM) rule. The resulting scores raise or lower
a survival value for every neuron and synapse; those whose survival falls below 0 are pruned
permanently.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture, group_of, groups, kernel_shapes
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning.budget import prune_to_budget, uniform_ranking
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, batches, finetune
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import InputError, check_number

TRACE_DECAY = 0.5  # factor per time step


OFFSET = {"conv": 0.65, "dense": 1.5}  # decrease of survival for a score of 0


BONUS = {"conv": 5.0, "dense": 2.0}  # added to positive changes of survival


DECAY_EPOCHS = {"conv": 12, "dense": 13}  # in which changes of survival decay by exp(-1)


class Link(NamedTuple):
    """A layer whose outputs are a prunable group.

    Attributes:
      kind: `conv` or `dense`.
      group: of its outputs.
      before: node that the layer reads.
      after: node of neurons that its outputs drive.
    """

    kind: str
    group: str
    before: str
    after: str


class Statistics(NamedTuple):
    """Sums over all batches of all epochs so far.

    Attributes:
      bcm: by layer, the BCM changes of each pair of an input channel and a neuron, (in, out).
      traces: by layer, the traces of its neurons, (out,).
      images: number of images.
    """

    bcm: dict[str, Array]
    traces: dict[str, Array]
    images: Array


def links(architecture: Architecture) -> dict[str, Link]:
    """The layers whose neurons can be pruned, by name.

    Raises:
      InputError: no node of neurons has the channels of a layer alone.
    """
    member, by_layer, nodes = group_of(architecture), {}, architecture.nodes
    shapes = kernel_shapes(architecture)
    for i, node in enumerate(nodes):
        if node.opens_group and (group := member[node.name]) in groups(architecture):
            spiking = (n.name for n in nodes[i:] if n.spiking and member.get(n.name) == group)
            if (after := next(spiking, None)) is None:
                raise InputError(
                    f"no layer of neurons holds the channels of {node.name!r} alone, which DPAP "
                    "needs: put one before they are concatenated with others."
                )
            kind = "conv" if len(shapes[node.name]) == 4 else "dense"
            by_layer[node.name] = Link(kind, group, node.input, after)
    return by_layer


def trace(values: Float[Array, "S B ..."], steps: int) -> Float[Array, "B C"]:
    """The last value of the trace S <- S / 2 + s, divided by T, and summed over space."""
    weights = TRACE_DECAY ** jnp.arange(steps)[::-1]
    if len(values) == 1:  # constant in time
        last = values[0] * weights.sum() / steps
    else:
        last = jnp.tensordot(weights, values, 1) / steps
    return last.sum((1, 2)) if last.ndim == 4 else last


def bcm(pre: Float[Array, "B I"], post: Float[Array, "B O"], mean: Float[Array, "O"]):
    """BCM's change of each synapse, pre post (post - mean), summed over images, (I, O)."""
    return pre.T @ (post * (post - mean))


@partial(jax.jit, static_argnums=0)
def observe(
    architecture: Architecture,
    variables: dict,
    masks: MaskTree,
    statistics: Statistics,
    images: Float[Array, "B H W C"],
    real: Float[Array, "B"],
) -> Statistics:
    """Statistics with those of a batch added; images where `real` is 0 are padding."""
    network, layers = SpikingNetwork(architecture), links(architecture)
    values = network.apply(variables, images, method="encode")
    wanted = {name for link in layers.values() for name in (link.before, link.after)}
    rest, _ = network.apply(variables, values, masks, keep=sorted(wanted), method="walk")
    values = {
        name: trace(value, architecture.time_steps) * real[:, None]
        for name, value in (values | rest).items()
        if name in wanted
    }
    sums, traces = {}, {}
    for name, link in layers.items():
        pre, post = values[link.before], values[link.after]
        mean = statistics.traces[name] / jnp.maximum(statistics.images, 1)
        sums[name] = statistics.bcm[name] + bcm(pre, post, mean)
        traces[name] = statistics.traces[name] + post.sum(0)
    return Statistics(sums, traces, statistics.images + real.sum())


def survival_change(scores: np.ndarray, kind: str) -> np.ndarray:
    """The change of survival, from the position of each score between minimum and upper quartile.

    If all scores are equal, as in a silent layer, none of them lowers survival.
    """
    above, high = scores - scores.min(), np.percentile(scores, 75) - scores.min()
    if high > 0:
        scaled = np.clip(above / high, 0, 1)
    else:
        scaled = (above >= scores.max() - scores.min()).astype(float)
    delta = 2 * scaled - OFFSET[kind]
    return delta + BONUS[kind] * (delta > 0)


def spine_scores(statistics: Statistics, layers: dict[str, Link]) -> dict[str, np.ndarray]:
    """Scores of neurons, by group, and of the synapses of dense layers, by `masks.kernel`."""
    inputs, traces, synapses = {}, {}, {}
    for name, link in layers.items():
        sums = np.asarray(statistics.bcm[name], np.float64)
        inputs[link.group] = inputs.get(link.group, 0) + sums.sum(0)
        traces[link.group] = traces.get(link.group, 0) + np.asarray(statistics.traces[name], float)
        if link.kind == "dense":
            synapses[masking.kernel(name)] = sums
    return {
        group: min_max_scaled(inputs[group]) * min_max_scaled(traces[group]) for group in inputs
    } | synapses


def min_max_scaled(values: np.ndarray) -> np.ndarray:
    """Values scaled to [0, 1]; all 0 if they are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros(values.shape)


def removal_scores(survival: dict[str, np.ndarray], masks: MaskTree) -> dict[str, np.ndarray]:
    """Scores for `prune_to_budget`, which removes in this order what is masked already, neurons
    and synapses of survival below 0, equal shares of the other neurons, and the other synapses."""
    worst = 1 + max(float(-each.min()) for each in survival.values())
    neurons = {name: survival[name] for name in survival if not is_weight_mask(name)}
    shares, scores = uniform_ranking(neurons), {}
    for name, values in survival.items():
        above = 1 + shares.get(name, 1.0)
        ranked = np.where(values < 0, values / abs(worst), above)
        scores[name] = np.where(np.asarray(masks[name]) > 0, ranked, -2)
    return scores


def is_weight_mask(name: str) -> bool:
    return name.endswith(masking.KERNEL)


def dpap(
    key: Array,
    problem: Problem,
    *,
    synapses: bool = True,
    source_epochs: int | None = 300,
    begin: float | int = 5,
    survival: float | int = 10,
    fade: float | int = 0.999,
    rest: float | int = 0.25,
) -> Pruned:
    """Developmental plasticity-inspired adaptive pruning of neurons and of dense synapses.

    After an epoch of training, the search images are passed through the network, and the BCM value
    of every pair of an input channel and a neuron increases by pre post (post - mean of post), of
    their traces. A neuron's score is the sum over its pairs times its trace, each scaled to [0, 1]
    within the layer; a synapse's score is the BCM value of its pair. Let u be the score scaled so
    that the layer's minimum is 0 and its upper quartile 1, clipped to [0, 1]. Survival is updated
    by R <- 0.999 R + D exp(-int(epochs since the first event / 12)), where D is 2 u - 0.65, plus 5
    if that is positive (dense layers: 13; 2 u - 1.5, plus 2). Neurons and synapses with R < 0 are
    pruned.

    From the released code: all of the above, its constants, and sums that are never reset. Our
    readings: the mean is over all images of earlier batches; a trace is its last value divided by
    T; inputs of dense layers have a trace for each feature, inputs of convolutions are summed over
    space; the scores of a residual group are summed over its layers.

    Ours: the constants, chosen for 300 epochs, are scaled to the recipe's epochs. Traces are of
    search images (there: of training batches). R prunes no more than the target requires, the
    lowest first. If the target is not met at the last event, layers lose equal shares of their
    neurons, the lowest first, to within one filter (or one synapse, if they count). Synapses save
    no MACs, and with a target in MACs they are pruned by R alone.

    Args:
      key: of training.
      problem: the trained network and its budget.
      synapses: also prune synapses of dense layers.
      source_epochs: epochs that the constants are chosen for; None: constants are not scaled.
      begin: epoch of the first event.
      survival: initial R.
      fade: decay factor of R per epoch.
      rest: share of the epochs, at the end, that train with fixed masks.

    Returns:
      Weights, filter masks, weight masks of dense layers, and one forward pass of the search
      images for every event.

    Raises:
      InputError: the target cannot be met, a setting is out of range, or the recipe has no epochs.

    References:
      Han et al., IEEE TPAMI, arXiv 2211.12714.
    """
    epochs = problem.recipe.epochs
    check_number("rest", rest, 0, 1)
    check_number("fade", fade, 0, 1)
    check_number("survival", survival, 0, above=True)
    check_number("begin", begin, 0)
    check_number("source_epochs", 1 if source_epochs is None else source_epochs, 1)
    check_number("epochs of dpap, which prunes while it trains,", epochs, 1)
    scale = 1.0 if source_epochs is None else epochs / source_epochs
    last = max(1, epochs - math.ceil(rest * epochs))
    first = min(max(1, round(begin * scale)), last)
    architecture, cost_of = problem.architecture, problem.cost()
    layers = links(architecture)
    shapes = kernel_shapes(architecture)
    kinds = {link.group: link.kind for link in layers.values()}
    masks = dict(masking.ones(architecture))
    for name, link in layers.items():
        if synapses and link.kind == "dense":
            kinds[masking.kernel(name)] = "dense"
            masks[masking.kernel(name)] = jnp.ones(shapes[name])
    problem.check_reachable(masks)
    statistics = Statistics(
        {name: jnp.zeros(shapes[name][-2:]) for name in layers},
        {name: jnp.zeros(shapes[name][-1]) for name in layers},
        jnp.zeros(()),
    )
    survivals = {name: np.full(np.shape(masks[name]), survival * scale) for name in kinds}
    limit, seen = problem.limit(), 0

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal statistics, survivals, seen
        if not first <= done <= last:
            return state, masks
        for images, _, real in batches(problem):
            valid = (np.arange(len(images)) < real).astype(np.float32)
            statistics = observe(architecture, state.variables, masks, statistics, images, valid)
        seen += len(problem.search.labels)
        scores = spine_scores(statistics, layers)
        for name, kind in kinds.items():
            decay = math.exp(-int((done - first) / (DECAY_EPOCHS[kind] * scale)))
            delta = survival_change(scores[name], kind) * decay
            survivals[name] = fade ** (1 / scale) * survivals[name] + delta
        fitted = prune_to_budget(removal_scores(survivals, masks), cost_of, limit)
        for name in kinds:
            pruned = (fitted[name] == 0) & ((survivals[name] < 0) | (done == last))
            masks = {**masks, name: jnp.asarray(np.where(pruned, 0, masks[name]), jnp.float32)}
        return state, masks

    variables, masks = finetune(key, problem, problem.variables, masks, adapt=adapt)
    return Pruned(variables, masks, Passes(forward=seen))
