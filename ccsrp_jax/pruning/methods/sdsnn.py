"""SD-SNN: pruning of neurons with small dendritic spines, and regeneration of connections.

The rules are in `dendritic_spines`; this module has their schedule and the budget. Every step is
a function of the state between epochs, `SpineState`.
"""

import math
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture, group_of, groups
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning.budget import Cost, check_reachable, prune_to_budget, uniform_ranking
from ccsrp_jax.pruning.methods.dendritic_spines import (
    RATE_DECAY_EVENTS,
    Neurons,
    Scores,
    SpineState,
    constrain,
    group_importance,
    initial_spines,
    mask_tree,
    next_rates,
    present_neurons,
    prune_neurons,
    regenerate,
    relative_rates,
    select_by_rate,
    update_ranges,
)
from ccsrp_jax.pruning.problem import Problem, Pruned, finetune
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import check_number, unknown

SPINES, SOURCE_EPOCHS = 18, 600


START_RATE = {"conv": 0.5, "dense": 2.0}  # percent of the neurons


START_PERCENTILE = {"conv": 65, "dense": 60}  # of the sums of kernels, for regeneration


RATES, MEASURES = ("target", "paper"), ("target", "connections")


def layers_by_group(architecture: Architecture) -> dict[str, list[str]]:
    """By prunable group, the layers whose outputs are in it."""
    member = group_of(architecture)
    layers = [node.name for node in architecture.nodes if node.opens_group]
    return {
        group: [name for name in layers if member[name] == group] for group in groups(architecture)
    }


def connections(problem: Problem, masks: MaskTree) -> float:
    """Share of the prunable connections that masks remove, as counted by SD-SNN and DPAP.

    Prunable connections are the weights of all layers whose outputs are in prunable groups. A
    connection is removed if its weight or its neuron is masked; weights of the next layer that
    read a pruned neuron are not counted as removed.
    """
    kept, total = 0.0, 0
    for group, layers in layers_by_group(problem.architecture).items():
        for layer in layers:
            shape = problem.variables["params"][layer]["kernel"].shape
            weights = np.asarray(masks.get(masking.kernel(layer), np.ones(shape)))
            kept += float((weights * np.asarray(masks.get(group, 1.0))).sum())
            total += math.prod(shape)
    return 1 - kept / total


def select_by_budget(
    spine_state: SpineState,
    scores: Scores,
    present: Neurons,
    speeds: dict[str, float],
    cost_of: Cost,
    limit: float | int,
) -> Neurons:
    """Neurons to prune so that the cost is within a limit (ours).

    Layers lose shares of their neurons in proportion to `speeds`; revived neurons are last.
    """
    ranked = {}
    for group, values in scores.items():
        revived = present[group] & spine_state.pruned[group]
        ranked[group] = np.where(present[group], values + revived * (1 + values.max()), -1)
    order = {
        group: np.where(present[group], values, -1)  # absent neurons come first
        for group, values in uniform_ranking(ranked, speeds).items()
    }
    kept = prune_to_budget(order, cost_of, limit)
    return {group: neurons & (kept[group] == 0) for group, neurons in present.items()}


def sdsnn(
    key: Array,
    problem: Problem,
    *,
    spines: int | None = None,
    rates: Literal["target", "paper"] = "target",
    measure: Literal["target", "connections"] = "target",
    rest: float | int = 0.25,
    release: bool = False,
) -> Pruned:
    """Developmental plasticity-inspired adaptive pruning of neurons, with regeneration.

    After every epoch, the ranges of weights are updated. From epoch S + 1 on, weights are clipped
    to their ranges. From epoch 2S + 1 on, masked kernels that trained to large values are
    regenerated, and all weights of the least important neurons are masked. As in the released
    code, masked weights are set to 0 at the end of an epoch, and trained in the next one; after
    the last pruning event, masks are fixed.

    From the paper and its released code: ranges, their updates and the clipping, importance,
    percentiles and counts for regeneration, the schedule, and rates. Our readings: a magnitude
    decreases if it is smaller than at the start of the epoch; a count of epochs in a row restarts
    at 0; importance in a residual group is the sum over its layers; the rates count a neuron as
    dead if it has fewer than 20 weights (dense layers: 50), or fewer than all if it has less than
    that.

    Ours: training starts from the problem's network. The paper's rates do not lead to a given
    target, so each event prunes as many neurons as a decreasing limit on the cost requires, and
    the last event meets the target to within one filter. The limit's steps decay as the paper's
    rates do, by exp(-1/5) per event. Layers lose shares in proportion to their rates, among
    convolutions and among dense layers separately: between these, the paper's rates (about 5 %
    and 50 %) would leave no dense neurons when MACs are halved. A pruned neuron is masked in its
    group's filter mask, which also removes the shift of its batch norm; it is unmasked when one of
    its kernels is regenerated, with that kernel only.

    Args:
      key: of training.
      problem: the trained network and its budget.
      spines: S, in epochs; by default in the source's proportion, 18 of 600, and at least 1. With
        very small S, ranges shrink after few decreases of a weight, and so quickly.
      rates: `paper` prunes by the source's rates, and ignores the target.
      measure: `connections` applies the target's fraction to the prunable connections (see
        `connections`) instead of the target's measure, and uses the paper's rates also between
        convolutions and dense layers.
      rest: share of the epochs, at the end, that train with fixed masks.
      release: as in the released code, ranges of convolutions are never updated, so that ties of
        importance are resolved by filter index, and regeneration compares signed values.

    Returns:
      Weights, filter masks and weight masks; no passes in addition to training.

    Raises:
      InputError: the target cannot be met, a setting is out of range, or the recipe has no epochs.

    References:
      Han et al., Information Sciences 689 (2025) 121481, arXiv 2211.12219.
    """
    epochs = problem.recipe.epochs
    spines = max(1, epochs * SPINES // SOURCE_EPOCHS) if spines is None else spines
    check_number("spines", spines, 1)
    check_number("rest", rest, 0, 1)
    check_number("epochs of sdsnn, which prunes while it trains,", epochs, 1)
    for name, given, known in (("rates", rates, RATES), ("measure of sdsnn", measure, MEASURES)):
        if given not in known:
            raise unknown(name, given, known)
    last = max(1, epochs - math.ceil(rest * epochs))
    first = min(2 * spines + 1, last)  # a short training has one pruning event
    events = Events(spines, first, last)
    progress = np.cumsum(np.exp(-np.arange(last - first + 1) / RATE_DECAY_EVENTS))
    progress = (progress / progress[-1]).tolist()
    layers, cost_of = layers_by_group(problem.architecture), problem.cost()
    if measure == "connections":
        cost_of = partial(_remaining_connections, problem)
    _check_reachable(problem, cost_of, rates, measure)
    dense_cost = cost_of(masking.ones(problem.architecture))
    spine_state = initial_state(problem, layers)
    dense = mask_tree(spine_state, layers)

    def choose(spine_state: SpineState, event: int) -> Neurons:
        present = present_neurons(spine_state, layers)
        scores = group_importance(spine_state, layers)
        if rates == "paper":
            return select_by_rate(spine_state, scores, present)
        speeds = (
            spine_state.rates if measure == "connections" else relative_rates(spine_state, layers)
        )
        limit = problem.target.fraction ** progress[event] * dense_cost
        others = dict(mask_tree(spine_state, layers))
        cost_with = lambda masks: cost_of({**others, **masks})  # noqa: E731
        return select_by_budget(spine_state, scores, present, speeds, cost_with, limit)

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal spine_state
        if done > last:
            return state, masks
        params = state.variables["params"]
        spine_state, weights = _updated(spine_state, params, done, events, release)
        if done >= first:
            spine_state = spine_state._replace(rates=next_rates(spine_state, layers, done - first))
            spine_state = prune_neurons(spine_state, layers, choose(spine_state, done - first))
        spine_state = _with_weights(spine_state, weights)
        changed = {
            name: params[name] | {"kernel": jnp.asarray(layer.weights)}
            for name, layer in spine_state.layers.items()
        }
        state = state._replace(variables=state.variables | {"params": params | changed})
        return state, mask_tree(spine_state, layers) if done == last else dense

    variables, masks = finetune(key, problem, problem.variables, dense, adapt=adapt)
    return Pruned(variables, masks)


class Events(NamedTuple):
    """Schedule in epochs: clipping after `spines`, pruning from `first` to `last`."""

    spines: int
    first: int
    last: int


def _updated(
    spine_state: SpineState, params: dict, done: int, events: Events, release: bool
) -> tuple[SpineState, dict[str, np.ndarray]]:
    """The state with updated ranges and regenerated kernels, and clipped weights, by layer."""
    layers, weights = {}, {}
    for name, layer in spine_state.layers.items():
        value = np.array(params[name]["kernel"])  # a copy, as the state's memory is reused
        if not (release and layer.kind == "conv"):
            layer = update_ranges(layer, value, events.spines)
        if done > events.spines:
            value = constrain(layer, value)
        if done >= events.first:
            percentile = min(99.0, START_PERCENTILE[layer.kind] + 1.1 ** (done - events.first))
            layer = regenerate(layer, value, percentile, events.spines, signed=release)
        layers[name], weights[name] = layer, value
    return spine_state._replace(layers=layers), weights


def _with_weights(spine_state: SpineState, weights: dict[str, np.ndarray]) -> SpineState:
    """The state with these weights, masked, from which the next epoch starts."""
    layers = {
        name: layer._replace(weights=weights[name] * layer.mask)
        for name, layer in spine_state.layers.items()
    }
    return spine_state._replace(layers=layers)


def _check_reachable(problem: Problem, cost_of: Cost, rates: str, measure: str) -> None:
    whole, fraction = masking.ones(problem.architecture), problem.target.fraction
    if rates == "paper":  # these ignore the target
        check_reachable(whole, None, 1.0, unit="connections")
    elif measure == "connections":
        check_reachable(whole, cost_of, fraction, unit="connections")
    else:
        problem.check_reachable(whole)


def _remaining_connections(problem: Problem, masks: MaskTree) -> float:
    return 1 - connections(problem, masks)


def initial_state(problem: Problem, layers: dict[str, list[str]]) -> SpineState:
    """The state before the first epoch."""
    params = problem.variables["params"]
    spines = {
        name: initial_spines(np.array(params[name]["kernel"]))
        for names in layers.values()
        for name in names
    }
    pruned = {group: np.zeros(n, bool) for group, n in groups(problem.architecture).items()}
    rates = {group: START_RATE[spines[names[0]].kind] for group, names in layers.items()}
    return SpineState(spines, pruned, rates)
