"""SD-SNN: neurons whose dendritic spines shrink are pruned, and connections that want back grow.

Every weight has a range, its spine's, that follows what training does to it; a neuron's importance
is the sum of its ranges. All steps are functions of what is kept between epochs.
"""

import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax import masks as masking
from ccsrp_jax.architecture import Architecture, Conv, Dense, group_of, groups
from ccsrp_jax.budget import Cost, cut, spread
from ccsrp_jax.errors import check_number, unknown
from ccsrp_jax.masks import MaskTree
from ccsrp_jax.methods.problem import Problem, Pruned, finetune
from ccsrp_jax.training import TrainState

SHRINK = 0.75  # of a range, after as many falls as there are spines
SPINES, SOURCE_EPOCHS = 18, 600
FADE = 5  # events in which the paper's pruning slows down by e
# What is written for convolutions, and for dense layers:
DEAD = {"conv": 20, "dense": 50}  # a neuron with fewer weights counts as dead in the rates
START_RATE = {"conv": 0.5, "dense": 2.0}  # percent
START_PERCENTILE = {"conv": 65, "dense": 60}
RATES, MEASURES = ("target", "paper"), ("target", "connections")

Scores = dict[str, np.ndarray]  # by group
Chosen = dict[str, np.ndarray]  # by group, neurons as booleans


class Spines(NamedTuple):
    """One layer's; the first axis of `reach`, `beyond`, `runs` and `sums` is the sign, + and -.

    Attributes:
      reach: how far a weight's range goes on either side of 0, (2, *kernel).
      beyond: whether training took the weight there or further, in the last epoch.
      runs: epochs in a row, after the first, in which it did.
      sums: by how much, in all of these.
      weights: that the epoch started from, of the kernel's shape, as are `falls` and `mask`.
      falls: epochs in a row in which the weight's magnitude fell.
      mask: 0/1.
      candidates: masked kernels that were large in the last epoch, (in, out).
      waits: epochs in a row, after the first, in which they were, (in, out).
    """

    reach: np.ndarray
    beyond: np.ndarray
    runs: np.ndarray
    sums: np.ndarray
    weights: np.ndarray
    falls: np.ndarray
    mask: np.ndarray
    candidates: np.ndarray
    waits: np.ndarray

    @property
    def kind(self) -> str:
        return "conv" if self.mask.ndim == 4 else "dense"


class Growth(NamedTuple):
    """What SD-SNN keeps between epochs.

    Attributes:
      layers: by the name of each layer that writes into a prunable group.
      pruned: by group, neurons that have been pruned, be they revived or not.
      rates: by group, the share that the paper would have pruned by now, in percent.
    """

    layers: dict[str, Spines]
    pruned: dict[str, np.ndarray]
    rates: dict[str, float]


def writers(architecture: Architecture) -> dict[str, list[str]]:
    """By prunable group, the layers whose outputs it holds."""
    member = group_of(architecture)
    layers = [node.name for node in architecture.nodes if isinstance(node, Conv | Dense)]
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


def sprout(kernel: np.ndarray) -> Spines:
    """A layer's spines before the first epoch: all reach as far as its largest weight."""
    pair, shape, units = (2, *kernel.shape), kernel.shape, kernel.shape[-2:]
    reach, mask = np.full(pair, kernel.max(), np.float32), np.ones(shape, np.float32)
    none, counts = np.zeros(pair, bool), np.zeros(pair, int)
    sums, waits = np.zeros(pair, np.float32), np.zeros(units, int)
    candidates = np.zeros(units, bool)
    return Spines(reach, none, counts, sums, kernel, counts[0], mask, candidates, waits)


def update_ranges(layer: Spines, weights: np.ndarray, spines: int) -> Spines:
    """Ranges after an epoch of training.

    A weight at or beyond an end of its range in this epoch and the one before counts, with how
    far beyond; after `spines` in a row the end moves out by the mean. After `spines` falls of its
    magnitude in a row both ends come in, to 0.75 of what they are.
    """
    outward = np.stack([weights, -weights])
    beyond = outward >= layer.reach
    stays = beyond & layer.beyond
    runs = np.where(stays, layer.runs + 1, 0)
    sums = np.where(stays, layer.sums + outward - layer.reach, 0)
    grown = runs >= spines
    falls = np.where(np.abs(weights) < np.abs(layer.weights), layer.falls + 1, 0)
    shrunk = falls >= spines
    reach = np.where(grown, layer.reach + sums / spines, layer.reach)
    return layer._replace(
        reach=np.where(shrunk, SHRINK * reach, reach),
        beyond=beyond,
        runs=np.where(grown, 0, runs),
        sums=np.where(grown, 0, sums),
        falls=np.where(shrunk, 0, falls),
    )


def regenerate(
    layer: Spines,
    weights: np.ndarray,
    percentile: float | int,
    spines: int,
    *,
    signed: bool = False,
) -> Spines:
    """Unmasks kernels (of one weight in a dense layer) that trained to large values again.

    Args:
      layer: the layer's spines.
      weights: after the epoch, masked ones included.
      percentile: of the sums of all the layer's kernels; a masked one above it is a candidate.
      spines: a kernel returns once it has been one in more epochs in a row than these, after
        the first.
      signed: compare sums, not their magnitudes.
    """
    window = tuple(range(weights.ndim - 2))
    values = weights.sum(window) if signed else np.abs(weights.sum(window))
    candidates = ~layer.mask.any(window) & (values > np.percentile(values, percentile))
    waits = np.where(candidates & layer.candidates, layer.waits + 1, 0)
    back = waits > spines
    return layer._replace(
        mask=np.maximum(layer.mask, back.astype(np.float32)),
        candidates=candidates & ~back,
        waits=np.where(back, 0, waits),
    )


def importance(layer: Spines) -> np.ndarray:
    """By output unit, the sum of its unmasked weights' ranges, scaled to [0, 1] in the layer."""
    width = layer.reach.sum(0)
    span = width.max() - width.min()
    scaled = (width - width.min()) / span if span > 0 else np.full(width.shape, 0.5)
    return (layer.mask * scaled).sum(tuple(range(width.ndim - 1)), dtype=np.float64)


def _incoming(growth: Growth, layers: list[str]) -> np.ndarray:
    """Masks of all weights into a group, (weights, neurons)."""
    masks = [growth.layers[name].mask for name in layers]
    return np.concatenate([mask.reshape(-1, mask.shape[-1]) for mask in masks])


def next_rates(growth: Growth, found: dict[str, list[str]], event: int) -> dict[str, float]:
    """The paper's cumulative rates in percent, by group, for pruning event 0, 1, ...

    A last convolution without a layer behind it goes by a ratio of 1; the dense layers' rate is
    written for 512 neurons, and goes by the share of them.
    """
    kinds, alive = kinds_of(growth, found), {}
    for group, layers in found.items():
        masks = _incoming(growth, layers)
        enough = min(DEAD[kinds[group]], len(masks))
        alive[group] = max(int((masks.sum(0) >= enough).sum()), 1)
    rates, behind = {}, [*list(alive.values())[1:], None]
    for group, following in zip(found, behind, strict=True):
        if kinds[group] == "conv":
            grows = math.exp(-event / FADE) * alive[group] / (following or alive[group])
        else:
            speed = 0.5 * math.exp(-event) if event <= 23 else 0.0005
            grows = speed * 512 / 10 * alive[group] / len(growth.pruned[group])
        rates[group] = growth.rates[group] + grows
    return rates


def kinds_of(growth: Growth, found: dict[str, list[str]]) -> dict[str, str]:
    """By group, `conv` or `dense`."""
    return {group: growth.layers[layers[0]].kind for group, layers in found.items()}


def standing(growth: Growth, found: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """By group, which neurons are there: never pruned, or revived by a kernel that grew back."""
    return {
        group: ~growth.pruned[group] | _incoming(growth, layers).any(0)
        for group, layers in found.items()
    }


def tree(growth: Growth, found: dict[str, list[str]]) -> MaskTree:
    """Filter masks of the groups, weight masks of their layers."""
    weights = {masking.kernel(name): layer.mask for name, layer in growth.layers.items()}
    alive = standing(growth, found)
    return {group: bits.astype(np.float32) for group, bits in alive.items()} | weights


def by_rate(growth: Growth, scores: Scores, alive: Chosen) -> Chosen:
    """The paper's choice: so many percent of a layer's neurons, less those once pruned."""
    gone = {}
    for group, values in scores.items():
        order = np.argsort(values, kind="stable")
        lowest = order[: int(len(values) * growth.rates[group] / 100)]
        gone[group] = np.isin(np.arange(len(values)), lowest) & ~growth.pruned[group]
        if not (alive[group] & ~gone[group]).any():
            gone[group][order[-1]] = False
    return gone


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
        for group, values in spread(ranked, speeds).items()
    }
    kept = cut(order, cost_of, limit)
    return {group: bits & (kept[group] == 0) for group, bits in alive.items()}


def prune(growth: Growth, found: dict[str, list[str]], gone: Chosen) -> Growth:
    """Masks all weights of neurons."""
    layers = dict(growth.layers)
    for group, names in found.items():
        for name in names:
            mask = np.where(gone[group], np.float32(0), layers[name].mask)
            layers[name] = layers[name]._replace(mask=mask)
    pruned = {group: bits | gone[group] for group, bits in growth.pruned.items()}
    return growth._replace(layers=layers, pruned=pruned)


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
    progress = np.cumsum(np.exp(-np.arange(last - first + 1) / FADE))
    progress = (progress / progress[-1]).tolist()
    found, cost_of = writers(problem.architecture), problem.cost()
    if measure == "connections":
        cost_of = lambda masks: 1 - connections(problem, masks)  # noqa: E731
    whole_cost = cost_of(masking.ones(problem.architecture))
    growth = start(problem, found)
    whole = tree(growth, found)

    def choose(growth: Growth, event: int) -> Chosen:
        alive = standing(growth, found)
        scores = {
            group: sum(importance(growth.layers[name]) for name in layers)
            for group, layers in found.items()
        }
        if rates == "paper":
            return by_rate(growth, scores, alive)
        kinds, speeds = kinds_of(growth, found), growth.rates
        if measure == "target":
            mean = {
                kind: np.mean([speeds[group] for group in found if kinds[group] == kind])
                for kind in kinds.values()
            }
            speeds = {group: float(speeds[group] / mean[kinds[group]]) for group in found}
        masks, limit = tree(growth, found), problem.target.fraction ** progress[event] * whole_cost
        return by_budget(growth, scores, alive, speeds, lambda cut: cost_of(masks | cut), limit)

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal growth
        if done > last:
            return state, masks
        params, layers, weights = state.variables["params"], {}, {}
        for name, layer in growth.layers.items():
            value = np.array(params[name]["kernel"])  # a copy, as the state's memory is reused
            if not (release and layer.kind == "conv"):
                layer = update_ranges(layer, value, spines)
            if done > spines:
                value = np.clip(value, -layer.reach[1], layer.reach[0]).astype(np.float32)
            if done >= first:
                percentile = min(99.0, START_PERCENTILE[layer.kind] + 1.1 ** (done - first))
                layer = regenerate(layer, value, percentile, spines, signed=release)
            layers[name], weights[name] = layer, value
        growth = growth._replace(layers=layers)
        if done >= first:
            growth = growth._replace(rates=next_rates(growth, found, done - first))
            growth = prune(growth, found, choose(growth, done - first))
        layers = {
            name: layer._replace(weights=weights[name] * layer.mask)
            for name, layer in growth.layers.items()
        }
        growth = growth._replace(layers=layers)
        changed = {
            name: params[name] | {"kernel": jnp.asarray(layer.weights)}
            for name, layer in layers.items()
        }
        state = state._replace(variables=state.variables | {"params": params | changed})
        return state, tree(growth, found) if done == last else whole

    variables, masks = finetune(key, problem, problem.variables, whole, adapt=adapt)
    return Pruned(variables, masks)


def start(problem: Problem, found: dict[str, list[str]]) -> Growth:
    """What is known before the first epoch, from the network's weights."""
    params = problem.variables["params"]
    layers = {
        name: sprout(np.array(params[name]["kernel"])) for names in found.values() for name in names
    }
    pruned = {group: np.zeros(n, bool) for group, n in groups(problem.architecture).items()}
    rates = {group: START_RATE[layers[names[0]].kind] for group, names in found.items()}
    return Growth(layers, pruned, rates)
