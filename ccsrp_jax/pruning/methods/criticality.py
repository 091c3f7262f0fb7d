"""Pruning with regeneration by criticality: channels near their threshold are regrown."""

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
from ccsrp_jax.pruning.problem import (
    Passes,
    Problem,
    Pruned,
    batches,
    finetune,
    kernel_masks,
)
from ccsrp_jax.pruning.regrowth import event_epochs, prune_and_regrow
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.training.recipe import learning_rate
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import check_number, unknown

Score = Literal["derivative", "step"]


STEEPNESS = 1.5  # of the smooth step function


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
    """Network slimming with regeneration of critical channels, then fine-tuning.

    From the released code: channels are ranked over all layers by batch norm's |gamma|. To keep n
    channels, the n highest are kept except for the int(growth * n) lowest of them, and as many of
    the pruned channels are regrown, those of highest criticality in the dense network.

    Ours: n is the largest number for which the network, after regrowth, meets the target. A group
    that several norms write into has the mean of their |gamma|. A group without batch norm loses
    the same share as all others together, by the mean absolute weight of its neurons. Criticality
    is measured on search images (the code: on all training images).

    Args:
      key: of training.
      problem: the trained network and its budget.
      score: see `channel_criticality`.
      growth: share of the channels that is exchanged; 0.05 in the code.
      regenerate: if False, plain network slimming with the same target.
      slimming: share of the budget's epochs that train the dense network with an L1 penalty on
        gamma before pruning. In the code, half of all epochs, from scratch; here the network is
        already trained, and by default all epochs are fine-tuning.
      penalty: weight of the L1 penalty; 1e-4 in the code. Gamma is shrunk after every epoch, by
        the penalty times the sum of the epoch's learning rates (a proximal step).

    Raises:
      InputError: a setting is out of range, or the target cannot be met.

    References:
      Chen, Liu, Liu and You, Criticality-guided Efficient Pruning in Spiking Neural Networks,
      arXiv 2311.16141, with its released code. Liu et al., Network Slimming, ICCV 2017.
    """
    check_number("growth", growth, 0, 1)
    check_number("slimming", slimming, 0, 1)
    key_sparse, key_score, key_train = jax.random.split(key, 3)
    variables, masks, search = problem.variables, masking.ones(problem.architecture), Passes()
    problem.check_reachable(masks)
    epochs = round(slimming * problem.recipe.epochs)
    if epochs:
        shrink = partial(proximal_step, problem, epochs, penalty)
        variables, _ = finetune(key_sparse, problem, variables, masks, epochs=epochs, adapt=shrink)
    revival = {}
    if regenerate:
        scores, search = channel_criticality(key_score, problem, variables, masks, score)
        revival = {name: scores[name] for name in masks}
    masks, _ = prune_and_regrow(
        channel_scales(problem, variables),
        revival,
        problem.cost(),
        problem.limit(),
        lambda count: int(growth * count),
        np.random.default_rng(0),  # for ties, which do not occur among channels
    )
    remaining = problem.recipe.epochs - epochs
    variables, _ = finetune(key_train, problem, variables, masks, epochs=remaining)
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
    """Removes small weights during training, and regrows weights of critical channels.

    From the released code: the k-th of K events has sparsity s_k = s (1 - (1 - k/K)^3). Weights
    are ranked by magnitude over all layers, including the classifier, whose weights are never
    regrown. To keep n of the other weights, the n largest are kept except for the int(ratio * n)
    smallest of them, and as many pruned weights are regrown, from 0, by the criticality of their
    output channel. In the code, all weights of equal score are regrown: whole filters, and more
    than the ratio.

    Ours: among equal scores, larger weights are regrown first, then random ones, and every event
    meets its budget to within one weight. Training starts from the trained network; s_k is a share
    of what the target measures; criticality is measured on search images (the code: on one
    training batch).

    Args:
      key: of training and ties.
      problem: the trained network and its budget, in `problem.weight_measure`.
      ratio: share of the weights that is exchanged; 0.2 in the paper's run, 0.5 by default there.
      score: see `channel_criticality`; the code has `step` for this method.
      prune_share: share of the epochs, after which the last event takes place; 200 of 500 in the
        code.
      events: by default one after each of these epochs; in the code every 2000 steps, 39 in all.
      regenerate: if False, magnitude pruning with the same schedule and counts.

    Raises:
      InputError: the target cannot be met, the recipe has no epochs, or a setting is out of range.

    References:
      As for `criticality`.
    """
    check_number("ratio", ratio, 0, 1)
    check_score(score)
    when = event_epochs(problem.recipe.epochs, prune_share, events)
    shapes = kernel_shapes(problem.architecture)
    masks = kernel_masks(problem.architecture)
    problem.check_reachable(masks)
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
            scores, passes = channel_criticality(key_event, problem, variables, masks, score)
            search += passes
            for layer, shape in shapes.items():
                groups = [segment.group for segment in segments[layer]]
                if scores.keys() >= set(groups):
                    values = np.concatenate([scores[group] for group in groups])
                    revival[masking.kernel(layer)] = np.broadcast_to(values, shape)
        before, params = masks, masking.fold(state.variables, masks)["params"]
        sparsity = (1 - problem.target.fraction) * (1 - (1 - k / len(when)) ** 3)
        masks, remaining = prune_and_regrow(
            {masking.kernel(layer): np.abs(params[layer]["kernel"]) for layer in shapes},
            revival,
            cost,
            (1 - sparsity) * dense if k < len(when) else problem.limit(measure=measure),
            lambda count: int(ratio * count),
            np.random.default_rng(np.asarray(jax.random.key_data(key_event))),
        )
        # weights that were masked until now, or are regrown, start from 0
        kept = {name: mask * np.asarray(before[name]) for name, mask in remaining.items()}
        variables = masking.fold(state.variables, kept)
        ema = state.ema and masking.fold(state.ema, kept)
        masks = {name: jnp.asarray(mask) for name, mask in masks.items()}
        return state._replace(variables=variables, ema=ema), masks

    variables, masks = finetune(key_train, problem, problem.variables, masks, adapt=adapt)
    return Pruned(variables, masks, search)


def channel_scales(problem: Problem, variables: dict) -> Scores:
    """By group, |gamma| of channels; see `criticality` for groups with several norms or none."""
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
    """Criticality of channels: how close their neurons are to the threshold, on search images.

    The mean over images of the maximum over positions of the mean over time of f(v), where v is
    the potential before the reset. A group with several LIF layers has their mean (ours).

    Args:
      key: of a stochastic encoding.
      problem, variables, masks: the network.
      score: f. `derivative` is 1 / (1 + (pi (v - threshold))^2), a surrogate derivative with its
        maximum at the threshold, as in the paper and in the code for channels. `step` is
        (tanh(1.5 (v / threshold - 1)) + tanh(1.5)) / (2 tanh(1.5)), which increases beyond the
        threshold, as in the code for weights.

    Returns:
      By group, a score for every channel (also for groups that cannot be pruned); and passes.

    Raises:
      InputError: unknown score.
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
    """By group, the criticality summed over the images that are not padding."""
    network = SpikingNetwork(architecture)
    result: Any = network.apply(variables, images, masks, activity=True, key=key)
    _, active = result
    threshold, by_group = architecture.neuron.threshold, {}
    for layer, v in active.potentials.items():
        segments = channel_groups(architecture)[layer]
        flattened = v.ndim == 3 and len(set(segments)) < len(segments)
        if flattened or segments[0].group == IMAGE:  # features or pixels, not channels
            continue
        if score == "derivative":
            near = 1 / (1 + (jnp.pi * (v - threshold)) ** 2)
        else:
            end = jnp.tanh(STEEPNESS)
            near = (jnp.tanh(STEEPNESS * (v / threshold - 1)) + end) / (2 * end)
        near = near.mean(0)
        near = near.max(tuple(range(1, near.ndim - 1)))
        near = (jnp.arange(len(images)) < real) @ near
        for group, part in split_channels(architecture, layer, near):
            by_group.setdefault(group, []).append(part)
    return {name: sum(parts) / len(parts) for name, parts in by_group.items()}


def proximal_step(
    problem: Problem,
    epochs: int,
    penalty: float | int,
    done: int,
    state: TrainState,
    masks: MaskTree,
) -> tuple[TrainState, MaskTree]:
    """The proximal step of the L1 penalty, for the last epoch."""
    steps = steps_per_epoch(problem.recipe, len(problem.train.labels))
    progress = (np.arange((done - 1) * steps, done * steps) + 0.5) / (epochs * steps)
    amount = penalty * sum(learning_rate(problem.recipe, float(share)) for share in progress)

    def shrunk(variables: dict) -> dict:
        params = dict(variables["params"])
        for node in problem.architecture.nodes:
            if isinstance(node, Norm):
                scale = params[node.name]["scale"]
                scale = jnp.sign(scale) * jnp.maximum(jnp.abs(scale) - amount, 0)
                params[node.name] = {**params[node.name], "scale": scale}
        return {**variables, "params": params}

    return state._replace(
        variables=shrunk(state.variables), ema=state.ema and shrunk(state.ema)
    ), masks
