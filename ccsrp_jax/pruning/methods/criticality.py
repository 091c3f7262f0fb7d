"""Pruning with regeneration by criticality: neurons near their threshold are brought back."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import channel_groups, kernel_shapes, split_channels
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.nodes import IMAGE, Norm
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning.budget import Scores
from ccsrp_jax.pruning.criteria import gamma, l1
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, batches, finetune
from ccsrp_jax.pruning.regrowth import event_epochs, prune_and_regrow
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.training.recipe import learning_rate
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import check_number, unknown

Score = Literal["derivative", "step"]


STEEP = 1.5  # of the smooth step: half its slope, where the threshold is scaled to 0.5


def criticality(
    key: Array,
    problem: Problem,
    *,
    score: Score = "derivative",
    growth: float | int = 0.05,
    regenerate: bool = True,
    slimming: float | int = 0.0,
    penalty: float | int = 1e-4,
) -> Pruned:
    """Network slimming, some of whose channels are exchanged for critical ones; then fine-tuning.

    From the released code: channels are ranked in one order by batch norm's |gamma|; of the n
    that are to stay, the int(growth * n) lowest go too, and as many of all that are gone come
    back, those of the highest criticality in the dense network. n is here the largest number
    whose network, after the exchange, meets the target. Ours, too: what several norms write into
    counts the mean of their |gamma|; a group without batch norm loses the same share as all
    others together, by the mean absolute weight of its neurons; criticality is of search images
    (the code: of all training images).

    Args:
      key: of training.
      problem: see `problem`.
      score: see `channel_criticality`.
      growth: share of the channels that is exchanged; 0.05 in the code.
      regenerate: False is plain slimming, with the same target.
      slimming: share of the budget's epochs that train the dense network, with L1 on gamma, before
        pruning. The code does so for half of all epochs, from scratch; here the network is
        trained already, and by default all epochs are fine-tuning.
      penalty: weight of that L1; 1e-4 in the code. Gamma is shrunk after every epoch, by the
        penalty times the sum of the epoch's learning rates.

    References:
      Chen, Liu, Liu and You, Criticality-guided Efficient Pruning in Spiking Neural Networks,
      arXiv 2311.16141, with its released code. Liu et al., Network Slimming, ICCV 2017.
    """
    check_number("growth", growth, 0, 1)
    check_number("slimming", slimming, 0, 1)
    key_sparse, key_score, key_train = jax.random.split(key, 3)
    variables, masks, search = problem.variables, masking.ones(problem.architecture), Passes()
    epochs = round(slimming * problem.recipe.epochs)
    if epochs:
        shrink = partial(_shrink, problem, epochs, penalty)
        variables, _ = finetune(key_sparse, problem, variables, masks, epochs=epochs, adapt=shrink)
    revival = {}
    if regenerate:
        every, search = channel_criticality(key_score, problem, variables, masks, score)
        revival = {name: every[name] for name in masks}
    masks, _ = prune_and_regrow(
        channel_scales(problem, variables),
        revival,
        problem.cost(),
        problem.limit(),
        lambda count: int(growth * count),
        np.random.default_rng(0),  # two channels are never equal
    )
    left = problem.recipe.epochs - epochs
    variables, _ = finetune(key_train, problem, variables, masks, epochs=left)
    return Pruned(variables, masks, search)


def criticality_weights(
    key: Array,
    problem: Problem,
    *,
    ratio: float | int = 0.2,
    score: Score = "derivative",
    prune_share: float | int = 0.4,
    events: int | None = None,
    regenerate: bool = True,
) -> Pruned:
    """Removes small weights during training, and brings back those of critical channels.

    From the released code: the k-th of K events has sparsity s_k = s (1 - (1 - k/K)^3). The
    weights of least magnitude go, in one order for all layers; the classifier's are done with.
    Of the n others that are to stay, the int(ratio * n) lowest go too, and as many come back, by
    the criticality of their output channel, from 0. There, equal scores all come back, so whole
    filters, and more than was said; here equal ones come back by magnitude, then at random, and
    every event, not the last alone, meets its budget to within one weight. Ours, too:
    training starts from the trained network; s_k counts what the target counts; criticality is of
    search images (the code: of one batch of training).

    Args:
      key: of training and ties.
      problem: see `problem`; the target is `problem.weight_measure`.
      ratio: share of the weights that is exchanged; 0.2 in the paper's run, 0.5 by default there.
      score: see `channel_criticality`. `step` is what the code has for this method.
      prune_share: of the epochs, after which the last event is; 200 of 500 in the code.
      events: by default one after each of these epochs; in the code one in 2000 steps, 39 in all.
      regenerate: False is magnitude pruning with the same schedule and counts.

    Raises:
      InputError: the recipe has no epoch, or a setting is out of range.

    References:
      As for `criticality`.
    """
    check_number("ratio", ratio, 0, 1)
    check_score(score)
    when = event_epochs(problem.recipe.epochs, prune_share, events)
    shapes = kernel_shapes(problem.architecture)
    masks = {masking.kernel(layer): jnp.ones(shape) for layer, shape in shapes.items()}
    measure, search = problem.weight_measure, Passes()
    segments = channel_groups(problem.architecture)
    cost, dense = problem.cost(measure), problem.limit(0.0, measure)
    key_train, key_events = jax.random.split(key)

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal search
        if done not in when:
            return state, masks
        key_event, revival, k = jax.random.fold_in(key_events, done), {}, when.index(done) + 1
        if regenerate:
            variables = state.variables
            every, passes = channel_criticality(key_event, problem, variables, masks, score)
            search += passes
            for layer, shape in shapes.items():
                groups = [segment.group for segment in segments[layer]]
                if every.keys() >= set(groups):
                    values = np.concatenate([every[group] for group in groups])
                    revival[masking.kernel(layer)] = np.broadcast_to(values, shape)
        before, params = masks, masking.fold(state.variables, masks)["params"]
        sparsity = (1 - problem.target.fraction) * (1 - (1 - k / len(when)) ** 3)
        masks, stayed = prune_and_regrow(
            {masking.kernel(layer): np.abs(params[layer]["kernel"]) for layer in shapes},
            revival,
            cost,
            (1 - sparsity) * dense if k < len(when) else problem.limit(measure=measure),
            lambda count: int(ratio * count),
            np.random.default_rng(np.asarray(jax.random.key_data(key_event))),
        )
        kept = {name: mask * np.asarray(before[name]) for name, mask in stayed.items()}
        variables, ema = (
            masking.fold(state.variables, kept),
            state.ema and masking.fold(state.ema, kept),
        )
        masks = {name: jnp.asarray(mask) for name, mask in masks.items()}
        return state._replace(variables=variables, ema=ema), masks

    variables, masks = finetune(key_train, problem, problem.variables, masks, adapt=adapt)
    return Pruned(variables, masks, search)


def channel_scales(problem: Problem, variables: dict) -> Scores:
    """By group, |gamma|; see `criticality` for groups of several norms or of none."""
    segments, key = channel_groups(problem.architecture), jax.random.key(0)
    scales, _ = gamma(key, problem, variables, {})
    weights, _ = l1(key, problem, variables, {})
    normed = {
        segment.group
        for node in problem.architecture.nodes
        if isinstance(node, Norm)
        for segment in segments[node.name]
    }
    known = [values for name, values in scales.items() if name in normed] or [np.array([0.0, 1])]
    for name in set(scales) - normed:
        rank = np.argsort(np.argsort(weights[name], kind="stable"))
        scales[name] = np.quantile(np.concatenate(known), (rank + 0.5) / len(rank))
    return scales


def check_score(score: str) -> None:
    if score not in ("derivative", "step"):
        raise unknown("score of criticality", score, ("derivative", "step"))


def channel_criticality(
    key: Array, problem: Problem, variables: dict, masks: MaskTree, score: Score = "derivative"
) -> tuple[dict[str, np.ndarray], Passes]:
    """How close a channel's neurons come to firing, over the search images.

    Mean over images of the maximum over positions of the mean over time of f(v), with v the
    potential before the reset, and the mean over LIF layers where a group has several (ours).

    Args:
      key: of a stochastic encoding.
      problem, variables, masks: the network.
      score: f. `derivative` is 1 / (1 + (pi (v - threshold))^2), a surrogate's, highest at the
        threshold: the paper's idea, and what the code for channels has. `step` is
        (tanh(1.5 (v / threshold - 1)) + tanh(1.5)) / (2 tanh(1.5)), which rises beyond the
        threshold: what the code for weights has.

    Returns:
      By group (those too that cannot lose filters), a score for every channel; and passes.
    """
    check_score(score)
    total, count = {}, 0
    for number, (images, _, real) in enumerate(batches(problem)):
        key_batch = jax.random.fold_in(key, number)
        sums = _critical(problem.architecture, score, variables, masks, images, real, key_batch)
        total = {name: total.get(name, 0) + np.asarray(sums[name], np.float64) for name in sums}
        count += real
    return {name: value / count for name, value in total.items()}, Passes(forward=count)


@partial(jax.jit, static_argnums=(0, 1))
def _critical(architecture, score, variables, masks, images, real, key):
    """By group, the sum over the real images."""
    network = SpikingNetwork(architecture)
    result: Any = network.apply(variables, images, masks, activity=True, key=key)
    _, active = result
    threshold, found = architecture.neuron.threshold, {}
    for layer, v in active.potentials.items():
        segments = channel_groups(architecture)[layer]
        flattened = v.ndim == 3 and len(set(segments)) < len(segments)
        if flattened or segments[0].group == IMAGE:  # features or pixels, not channels
            continue
        if score == "derivative":
            near = 1 / (1 + (jnp.pi * (v - threshold)) ** 2)
        else:
            end = jnp.tanh(STEEP)
            near = (jnp.tanh(STEEP * (v / threshold - 1)) + end) / (2 * end)
        near = near.mean(0)
        near = near.max(tuple(range(1, near.ndim - 1)))
        near = (jnp.arange(len(images)) < real) @ near
        for group, part in split_channels(architecture, layer, near):
            found.setdefault(group, []).append(part)
    return {name: sum(parts) / len(parts) for name, parts in found.items()}


def _shrink(
    problem: Problem,
    epochs: int,
    penalty: float | int,
    done: int,
    state: TrainState,
    masks: MaskTree,
) -> tuple[TrainState, MaskTree]:
    """The L1 penalty's proximal step, for the epoch that is done."""
    steps = steps_per_epoch(problem.recipe, len(problem.train.labels))
    places = (np.arange((done - 1) * steps, done * steps) + 0.5) / (epochs * steps)
    by = penalty * sum(learning_rate(problem.recipe, float(place)) for place in places)

    def shrunk(variables: dict) -> dict:
        params = dict(variables["params"])
        for node in problem.architecture.nodes:
            if isinstance(node, Norm):
                scale = params[node.name]["scale"]
                scale = jnp.sign(scale) * jnp.maximum(jnp.abs(scale) - by, 0)
                params[node.name] = {**params[node.name], "scale": scale}
        return {**variables, "params": params}

    return state._replace(
        variables=shrunk(state.variables), ema=state.ema and shrunk(state.ema)
    ), masks
