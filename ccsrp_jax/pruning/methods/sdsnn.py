"""SD-SNN: neurons whose dendritic spines shrink are pruned, and connections that want back grow.

The rules are those of `spines`; here are the epochs that each starts in, and the budget. All steps
are functions of what is kept between epochs.
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
from ccsrp_jax.pruning.budget import Cost, prune_to_budget, uniform_ranking
from ccsrp_jax.pruning.methods.dendritic_spines import (
    FADE,
    Chosen,
    Growth,
    Scores,
    by_rate,
    constrain,
    group_importance,
    initial_spines,
    next_rates,
    present_neurons,
    prune,
    regenerate,
    relative_rates,
    tree,
    update_ranges,
)
from ccsrp_jax.pruning.problem import Problem, Pruned, finetune
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import check_number, unknown

SPINES, SOURCE_EPOCHS = 18, 600


# What is written for convolutions, and for dense layers:
START_RATE = {"conv": 0.5, "dense": 2.0}  # percent


START_PERCENTILE = {"conv": 65, "dense": 60}


RATES, MEASURES = ("target", "paper"), ("target", "connections")


def writers(architecture: Architecture) -> dict[str, list[str]]:
    """By prunable group, the layers whose outputs it holds."""
    member = group_of(architecture)
    layers = [node.name for node in architecture.nodes if node.opens_group]
    return {
        group: [name for name in layers if member[name] == group] for group in groups(architecture)
    }


def connections(problem: Problem, masks: MaskTree) -> float:
    """Share of the prunable connections that masks remove, as SD-SNN and DPAP count it.

    These are the weights of the layers that write into prunable groups; one is gone if it is
    masked or its neuron is. Those that read a pruned neuron in the next layer stay in the count.
    """
    kept, total = 0.0, 0
    for group, layers in writers(problem.architecture).items():
        for layer in layers:
            shape = problem.variables["params"][layer]["kernel"].shape
            weights = np.asarray(masks.get(masking.kernel(layer), np.ones(shape)))
            kept += float((weights * np.asarray(masks.get(group, 1.0))).sum())
            total += math.prod(shape)
    return 1 - kept / total


def by_budget(
    growth: Growth,
    scores: Scores,
    alive: Chosen,
    speeds: dict[str, float],
    cost_of: Cost,
    limit: float | int,
) -> Chosen:
    """The harness's choice: as many as a limit asks for, layers losing shares at their speeds.

    Neurons that were revived go last.
    """
    ranked = {}
    for group, values in scores.items():
        revived = alive[group] & growth.pruned[group]
        ranked[group] = np.where(alive[group], values + revived * (1 + values.max()), -1)
    order = {
        group: np.where(alive[group], values, -1)  # those that are gone are no choice
        for group, values in uniform_ranking(ranked, speeds).items()
    }
    kept = prune_to_budget(order, cost_of, limit)
    return {group: bits & (kept[group] == 0) for group, bits in alive.items()}


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

    After every epoch: ranges are updated; after S epochs weights are clipped to them; after 2S
    masked kernels that trained to large values return, and the neurons of least importance lose
    all weights. In between, masked weights train on from 0, as in the released code: masks hold
    at the end of an epoch alone, up to the last pruning event, from which on they are frozen.

    From the paper and its released code: ranges, their updates and the clipping, importance,
    percentiles and counts of regeneration, the epochs that each starts in, rates. Readings of
    ours: a magnitude falls from what the epoch started with; a count starts anew where its row
    breaks; importance in a residual group is the sum over its layers; a neuron counts as dead
    with fewer than 20 (dense: 50) weights, or fewer than it ever had.

    Where the harness differs: training starts from the problem's network. The paper's rates lead
    to no given target, so each event prunes as many neurons as a falling limit on the cost asks
    for, and the last meets the target, to within one filter. The limit's steps fade as the
    paper's rates do, by exp(-1/5) an event, and layers lose shares in proportion to their rates:
    among convolutions and among dense layers, as between them the paper's (some 5 % against
    50 %) would leave no dense neuron where MACs are to be halved. A pruned neuron is out of its
    group's filter mask, and with it the shift of its batch norm, and in it again once a kernel
    returns, with that kernel alone.

    Args:
      key: of training.
      problem: the network and its budget.
      spines: S, in epochs; by default in the source's proportion, 18 of 600, and at least 1. With
        very few, single falls already count, and ranges come in fast.
      rates: `paper` prunes by the source's rates, and ignores the target.
      measure: `connections` holds the method to the target's fraction of the prunable
        connections, see `connections`, in place of the target's measure, and leaves the paper's
        rates between convolutions and dense layers as they are.
      rest: share of the epochs, at the end, that train with frozen masks.
      release: as the released code does, ranges of convolutions stay as they are at the start,
        so that there the order of filters decides, and regeneration compares signed values.

    Returns:
      Weights, filter masks and masks of weights; no passes beside training.

    Raises:
      InputError: a setting is out of range, or there is no epoch to train.

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
    first = min(2 * spines + 1, last)  # a short training prunes at its last event at least
    events = Events(spines, first, last)
    progress = np.cumsum(np.exp(-np.arange(last - first + 1) / FADE))
    progress = (progress / progress[-1]).tolist()
    layers, cost_of = writers(problem.architecture), problem.cost()
    if measure == "connections":
        cost_of = partial(_connections_left, problem)
    dense_cost = cost_of(masking.ones(problem.architecture))
    growth = start(problem, layers)
    dense = tree(growth, layers)

    def choose(growth: Growth, event: int) -> Chosen:
        present = present_neurons(growth, layers)
        scores = group_importance(growth, layers)
        if rates == "paper":
            return by_rate(growth, scores, present)
        speeds = growth.rates if measure == "connections" else relative_rates(growth, layers)
        limit = problem.target.fraction ** progress[event] * dense_cost
        others = dict(tree(growth, layers))
        cost_with = lambda masks: cost_of({**others, **masks})  # noqa: E731
        return by_budget(growth, scores, present, speeds, cost_with, limit)

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal growth
        if done > last:
            return state, masks
        params = state.variables["params"]
        growth, weights = _grown(growth, params, done, events, release)
        if done >= first:
            growth = growth._replace(rates=next_rates(growth, layers, done - first))
            growth = prune(growth, layers, choose(growth, done - first))
        growth = _with_weights(growth, weights)
        changed = {
            name: params[name] | {"kernel": jnp.asarray(layer.weights)}
            for name, layer in growth.layers.items()
        }
        state = state._replace(variables=state.variables | {"params": params | changed})
        return state, tree(growth, layers) if done == last else dense

    variables, masks = finetune(key, problem, problem.variables, dense, adapt=adapt)
    return Pruned(variables, masks)


class Events(NamedTuple):
    """Epochs of SD-SNN's rules: clipping after `spines`, pruning from `first` to `last`."""

    spines: int
    first: int
    last: int


def _grown(
    growth: Growth, params: dict, done: int, events: Events, release: bool
) -> tuple[Growth, dict[str, np.ndarray]]:
    """Ranges, clipped weights and regenerated kernels after an epoch of training."""
    layers, weights = {}, {}
    for name, layer in growth.layers.items():
        value = np.array(params[name]["kernel"])  # a copy, as the state's memory is reused
        if not (release and layer.kind == "conv"):
            layer = update_ranges(layer, value, events.spines)
        if done > events.spines:
            value = constrain(layer, value)
        if done >= events.first:
            percentile = min(99.0, START_PERCENTILE[layer.kind] + 1.1 ** (done - events.first))
            layer = regenerate(layer, value, percentile, events.spines, signed=release)
        layers[name], weights[name] = layer, value
    return growth._replace(layers=layers), weights


def _with_weights(growth: Growth, weights: dict[str, np.ndarray]) -> Growth:
    """The weights, masked, from which the next epoch starts."""
    layers = {
        name: layer._replace(weights=weights[name] * layer.mask)
        for name, layer in growth.layers.items()
    }
    return growth._replace(layers=layers)


def _connections_left(problem: Problem, masks: MaskTree) -> float:
    return 1 - connections(problem, masks)


def start(problem: Problem, layers: dict[str, list[str]]) -> Growth:
    """The state before the first epoch, from the network's weights."""
    params = problem.variables["params"]
    spines = {
        name: initial_spines(np.array(params[name]["kernel"]))
        for names in layers.values()
        for name in names
    }
    pruned = {group: np.zeros(n, bool) for group, n in groups(problem.architecture).items()}
    rates = {group: START_RATE[spines[names[0]].kind] for group, names in layers.items()}
    return Growth(spines, pruned, rates)
