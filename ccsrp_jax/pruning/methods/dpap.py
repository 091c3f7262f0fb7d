"""DPAP: neurons and synapses that a learning rule of the brain leaves idle die in training.

Traces of spikes drive the Bienenstock-Cooper-Munro (BCM) rule; what it says of a neuron raises or
lowers its survival, and what falls below 0 is pruned for good.
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

TRACE = 0.5  # what is left of a trace after a step


LOWER = {"conv": 0.65, "dense": 1.5}  # by how much survival falls where a score is 0


BONUS = {"conv": 5.0, "dense": 2.0}  # for what does not fall


PERIOD = {"conv": 12, "dense": 13}  # epochs after which changes count exp(-1) times as much


class Link(NamedTuple):
    """A layer that writes into a prunable group: what it reads, and whose spikes it makes."""

    kind: str
    group: str
    before: str
    after: str


class Memory(NamedTuple):
    """What is summed over all batches so far, of all epochs.

    Attributes:
      bcm: by layer, for each pair of a channel and a neuron, (in, out).
      traces: by layer, of its neurons, (out,).
      images: how many.
    """

    bcm: dict[str, Array]
    traces: dict[str, Array]
    images: Array


def links(architecture: Architecture) -> dict[str, Link]:
    """By name, the layers whose neurons can be pruned."""
    member, found, nodes = group_of(architecture), {}, architecture.nodes
    shapes = kernel_shapes(architecture)
    for i, node in enumerate(nodes):
        if node.opens_group and (group := member[node.name]) in groups(architecture):
            behind = (n.name for n in nodes[i:] if n.spiking and member.get(n.name) == group)
            if (after := next(behind, None)) is None:
                raise InputError(
                    f"no layer of neurons holds the channels of {node.name!r} alone, which DPAP "
                    "needs: put one before they are concatenated with others."
                )
            kind = "conv" if len(shapes[node.name]) == 4 else "dense"
            found[node.name] = Link(kind, group, node.input, after)
    return found


def trace(values: Float[Array, "S B ..."], steps: int) -> Float[Array, "B C"]:
    """S <- S / 2 + s over the steps, over T, and summed over space."""
    fades = TRACE ** jnp.arange(steps)[::-1]
    if len(values) == 1:  # constant in time
        faded = values[0] * fades.sum() / steps
    else:
        faded = jnp.tensordot(fades, values, 1) / steps
    return faded.sum((1, 2)) if faded.ndim == 4 else faded


def bcm(pre: Float[Array, "B I"], post: Float[Array, "B O"], mean: Float[Array, "O"]):
    """BCM's change of every pair, sum over images of pre post (post - mean), (I, O)."""
    return pre.T @ (post * (post - mean))


@partial(jax.jit, static_argnums=0)
def observe(
    architecture: Architecture,
    variables: dict,
    masks: MaskTree,
    memory: Memory,
    images: Float[Array, "B H W C"],
    real: Float[Array, "B"],
) -> Memory:
    """Adds a batch; where `real` is 0, images only fill it up."""
    network, found = SpikingNetwork(architecture), links(architecture)
    values = network.apply(variables, images, method="encode")
    wanted = {name for link in found.values() for name in (link.before, link.after)}
    rest, _ = network.apply(variables, values, masks, keep=sorted(wanted), method="walk")
    values = {
        name: trace(value, architecture.time_steps) * real[:, None]
        for name, value in (values | rest).items()
        if name in wanted
    }
    sums, traces = {}, {}
    for name, link in found.items():
        pre, post = values[link.before], values[link.after]
        mean = memory.traces[name] / jnp.maximum(memory.images, 1)
        sums[name] = memory.bcm[name] + bcm(pre, post, mean)
        traces[name] = memory.traces[name] + post.sum(0)
    return Memory(sums, traces, memory.images + real.sum())


def change(scores: np.ndarray, kind: str) -> np.ndarray:
    """How survival changes: by how far a score is up to the layer's upper quartile.

    Where all scores are equal, as in a silent layer, they are no reason to prune: all are at it.
    """
    above, high = scores - scores.min(), np.percentile(scores, 75) - scores.min()
    if high > 0:
        scaled = np.clip(above / high, 0, 1)
    else:
        scaled = (above >= scores.max() - scores.min()).astype(float)
    delta = 2 * scaled - LOWER[kind]
    return delta + BONUS[kind] * (delta > 0)


def scores_of(memory: Memory, found: dict[str, Link]) -> dict[str, np.ndarray]:
    """Spine scores: by group, of neurons; by `masks.kernel`, of a dense layer's synapses."""
    inputs, traces, synapses = {}, {}, {}
    for name, link in found.items():
        sums = np.asarray(memory.bcm[name], np.float64)
        inputs[link.group] = inputs.get(link.group, 0) + sums.sum(0)
        traces[link.group] = traces.get(link.group, 0) + np.asarray(memory.traces[name], float)
        if link.kind == "dense":
            synapses[masking.kernel(name)] = sums
    return {group: unit(inputs[group]) * unit(traces[group]) for group in inputs} | synapses


def unit(values: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1]; all 0 where they are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros(values.shape)


def order(survival: dict[str, np.ndarray], masks: MaskTree) -> dict[str, np.ndarray]:
    """Scores for `prune_to_budget`: removed first, then survival below 0, then shares of a layer.

    Synapses that are not below 0 go last, after all neurons.
    """
    worst = 1 + max(float(-each.min()) for each in survival.values())
    shares, found = (
        uniform_ranking({name: survival[name] for name in survival if not synaptic(name)}),
        {},
    )
    for name, values in survival.items():
        above = 1 + shares.get(name, 1.0)
        ranked = np.where(values < 0, values / abs(worst), above)
        found[name] = np.where(np.asarray(masks[name]) > 0, ranked, -2)
    return found


def synaptic(name: str) -> bool:
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
    """Developmental plasticity-inspired adaptive pruning, of neurons and of dense synapses.

    After an epoch of training, search images run through the network, and every pair of a
    channel and a neuron gains post (post - mean of post) pre, of their traces. A neuron's score
    is the sum over its pairs times its trace, each scaled to [0, 1] in the layer; a synapse's is
    its pair's. With u the score scaled to [0, 1] between the layer's least and its upper
    quartile, survival R <- 0.999 R + D exp(-int(epochs since the start / 12)), where D is
    2 u - 0.65, and 5 more if above 0 (dense layers: 13; 2 u - 1.5, and 2 more). Below 0 is pruned.

    From the released code: all of that, its constants, and sums that no epoch resets. Readings
    of ours: the mean is that of all images so far, before the batch; a trace is its last value
    over T; what a dense layer reads are features, a trace each, and what a convolution reads,
    sums over space; a residual group sums over its layers.

    Where the harness differs: the constants, made for 300 epochs, are scaled to the recipe's. The
    code reads its traces off the training batches. Here R may prune no more than the target asks
    for, the lowest first, and at the last event, while the target is not met, layers go on to lose
    equal shares of their neurons, the lowest first: to within one filter (or synapse, where they
    count). Synapses save no MACs, and where these are the target they go beside the neurons.

    Args:
      key: of training.
      problem: the network and its budget.
      synapses: prune those of dense layers, too.
      source_epochs: those that the constants are made for; None leaves them as they are.
      begin: epoch of the first event.
      survival: R at the start.
      fade: of R, an epoch.
      rest: share of the epochs, at the end, that train with fixed masks.

    Returns:
      Weights, filter masks, masks of the dense layers' weights, and one pass of the search images
      forward for every event.

    Raises:
      InputError: a setting is out of range, or there is no epoch to train.

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
    architecture, found, cost_of = problem.architecture, links(problem.architecture), problem.cost()
    shapes = kernel_shapes(architecture)
    kinds = {link.group: link.kind for link in found.values()}
    masks = dict(masking.ones(architecture))
    for name, link in found.items():
        if synapses and link.kind == "dense":
            kinds[masking.kernel(name)] = "dense"
            masks[masking.kernel(name)] = jnp.ones(shapes[name])
    memory = Memory(
        {name: jnp.zeros(shapes[name][-2:]) for name in found},
        {name: jnp.zeros(shapes[name][-1]) for name in found},
        jnp.zeros(()),
    )
    alive = {name: np.full(np.shape(masks[name]), survival * scale) for name in kinds}
    limit, seen = problem.limit(), 0

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal memory, alive, seen
        if not first <= done <= last:
            return state, masks
        for images, _, real in batches(problem):
            here = (np.arange(len(images)) < real).astype(np.float32)
            memory = observe(architecture, state.variables, masks, memory, images, here)
        seen += len(problem.search.labels)
        scores = scores_of(memory, found)
        for name, kind in kinds.items():
            slows = math.exp(-int((done - first) / (PERIOD[kind] * scale)))
            delta = change(scores[name], kind) * slows
            alive[name] = fade ** (1 / scale) * alive[name] + delta
        kept = prune_to_budget(order(alive, masks), cost_of, limit)
        for name in kinds:
            goes = (kept[name] == 0) & ((alive[name] < 0) | (done == last))
            masks = {**masks, name: jnp.asarray(np.where(goes, 0, masks[name]), jnp.float32)}
        return state, masks

    variables, masks = finetune(key, problem, problem.variables, masks, adapt=adapt)
    return Pruned(variables, masks, Passes(forward=seen))
