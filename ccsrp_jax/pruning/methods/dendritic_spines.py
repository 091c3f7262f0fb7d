"""SD-SNN's rules on arrays: ranges of weights, clipping, regeneration, importance and rates.

Every weight has a range, its dendritic spine, which grows or shrinks depending on how the weight
changes in training. `sdsnn` has the schedule of the rules.
"""

import math
from typing import NamedTuple

import numpy as np

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.masks import MaskTree

SHRINK = 0.75  # factor of a range after S decreases in a row


RATE_DECAY_EVENTS = 5  # events in which the increase of the paper's rates decays by exp(-1)


# The rates count a neuron with fewer weights as dead.
DEAD = {"conv": 20, "dense": 50}


Scores = dict[str, np.ndarray]  # by group


Neurons = dict[str, np.ndarray]  # by group, a boolean for each neuron


class Spines(NamedTuple):
    """The ranges of one layer's weights, and the counts that the rules need.

    `reach`, `beyond`, `runs` and `sums` are (2, *kernel), for the positive and the negative end.

    Attributes:
      reach: distance of the ends of a weight's range from 0.
      beyond: whether the weight was at or beyond the end after the last epoch.
      runs: number of epochs in a row, after the first, in which it was.
      sums: distance beyond the end, summed over these epochs.
      weights: at the start of the epoch, of the kernel's shape, as `falls` and `mask`.
      falls: number of epochs in a row in which the weight's magnitude decreased.
      mask: 0/1.
      candidates: masked kernels that were large after the last epoch, (in, out).
      waits: number of epochs in a row, after the first, in which they were, (in, out).
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


class SpineState(NamedTuple):
    """The state of SD-SNN between epochs.

    Attributes:
      layers: by name, the spines of each layer whose outputs are in a prunable group.
      pruned: by group, neurons that have ever been pruned.
      rates: by group, the share that the paper would have pruned so far, in percent.
    """

    layers: dict[str, Spines]
    pruned: dict[str, np.ndarray]
    rates: dict[str, float]


def initial_spines(kernel: np.ndarray) -> Spines:
    """A layer's spines before the first epoch: all ranges reach to the largest weight."""
    pair, shape, units = (2, *kernel.shape), kernel.shape, kernel.shape[-2:]
    reach, mask = np.full(pair, kernel.max(), np.float32), np.ones(shape, np.float32)
    none, counts = np.zeros(pair, bool), np.zeros(pair, int)
    sums, waits = np.zeros(pair, np.float32), np.zeros(units, int)
    candidates = np.zeros(units, bool)
    return Spines(reach, none, counts, sums, kernel, counts[0], mask, candidates, waits)


def update_ranges(layer: Spines, weights: np.ndarray, spines: int) -> Spines:
    """Ranges after an epoch of training.

    If a weight is at or beyond an end of its range in `spines` epochs in a row, not counting the
    first, the end moves outward by the mean distance beyond it. If its magnitude decreases in
    `spines` epochs in a row, both ends are multiplied by 0.75.
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


def constrain(layer: Spines, weights: np.ndarray) -> np.ndarray:
    """The weights, clipped to their ranges."""
    return np.clip(weights, -layer.reach[1], layer.reach[0]).astype(np.float32)


def regenerate(
    layer: Spines,
    weights: np.ndarray,
    percentile: float | int,
    spines: int,
    *,
    signed: bool = False,
) -> Spines:
    """Unmasks kernels (single weights in a dense layer) that trained to large values.

    Args:
      layer: the layer's spines.
      weights: after the epoch, including masked ones.
      percentile: of the sums of the layer's kernels; masked kernels above it are candidates.
      spines: a kernel is unmasked after more than this number of epochs in a row as a candidate,
        not counting the first.
      signed: compare sums instead of their magnitudes.
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
    """By neuron, the sum of its unmasked weights' ranges, scaled to [0, 1] within the layer."""
    width = layer.reach.sum(0)
    span = width.max() - width.min()
    scaled = (width - width.min()) / span if span > 0 else np.full(width.shape, 0.5)
    return (layer.mask * scaled).sum(tuple(range(width.ndim - 1)), dtype=np.float64)


def group_importance(spine_state: SpineState, layers: dict[str, list[str]]) -> Scores:
    """By group, the importance of each neuron, summed over the group's layers."""
    return {
        group: np.sum([importance(spine_state.layers[name]) for name in names], axis=0)
        for group, names in layers.items()
    }


def relative_rates(spine_state: SpineState, layers: dict[str, list[str]]) -> dict[str, float]:
    """Rates divided by their mean over groups of the same kind (convolutions or dense layers)."""
    kinds, rates = kinds_of(spine_state, layers), spine_state.rates
    mean = {
        kind: np.mean([rates[group] for group in layers if kinds[group] == kind])
        for kind in kinds.values()
    }
    return {group: float(rates[group] / mean[kinds[group]]) for group in layers}


def _incoming(spine_state: SpineState, layers: list[str]) -> np.ndarray:
    """Masks of all weights of a group's layers, (weights, neurons)."""
    masks = [spine_state.layers[name].mask for name in layers]
    return np.concatenate([mask.reshape(-1, mask.shape[-1]) for mask in masks])


def next_rates(
    spine_state: SpineState, layers: dict[str, list[str]], event: int
) -> dict[str, float]:
    """The paper's cumulative rates in percent, by group, for pruning event 0, 1, ...

    A convolution's rate depends on the ratio of its living neurons to those of the next layer (1
    if there is none). The paper's rate of dense layers is for 512 neurons, and is scaled to the
    share of neurons that are alive.
    """
    kinds, living = kinds_of(spine_state, layers), {}
    for group, names in layers.items():
        masks = _incoming(spine_state, names)
        enough = min(DEAD[kinds[group]], len(masks))
        living[group] = max(int((masks.sum(0) >= enough).sum()), 1)
    rates, next_layers = {}, [*list(living.values())[1:], None]
    for group, following in zip(layers, next_layers, strict=True):
        if kinds[group] == "conv":
            ratio = living[group] / (following or living[group])
            increase = math.exp(-event / RATE_DECAY_EVENTS) * ratio
        else:
            speed = 0.5 * math.exp(-event) if event <= 23 else 0.0005
            increase = speed * 512 / 10 * living[group] / len(spine_state.pruned[group])
        rates[group] = spine_state.rates[group] + increase
    return rates


def kinds_of(spine_state: SpineState, layers: dict[str, list[str]]) -> dict[str, str]:
    """By group, `conv` or `dense`."""
    return {group: spine_state.layers[names[0]].kind for group, names in layers.items()}


def present_neurons(spine_state: SpineState, layers: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """By group, neurons that were never pruned, or have a regenerated kernel."""
    return {
        group: ~spine_state.pruned[group] | _incoming(spine_state, names).any(0)
        for group, names in layers.items()
    }


def mask_tree(spine_state: SpineState, layers: dict[str, list[str]]) -> MaskTree:
    """Filter masks of all groups and weight masks of their layers."""
    weights = {masking.kernel(name): layer.mask for name, layer in spine_state.layers.items()}
    present = present_neurons(spine_state, layers)
    return {group: bits.astype(np.float32) for group, bits in present.items()} | weights


def select_by_rate(spine_state: SpineState, scores: Scores, present: Neurons) -> Neurons:
    """Neurons to prune by the paper's rates; never those that have been pruned before."""
    selected = {}
    for group, values in scores.items():
        order = np.argsort(values, kind="stable")
        lowest = order[: int(len(values) * spine_state.rates[group] / 100)]
        selected[group] = np.isin(np.arange(len(values)), lowest) & ~spine_state.pruned[group]
        if not (present[group] & ~selected[group]).any():
            selected[group][order[-1]] = False
    return selected


def prune_neurons(
    spine_state: SpineState, layers: dict[str, list[str]], selected: Neurons
) -> SpineState:
    """The state with all weights of the selected neurons masked."""
    spines = dict(spine_state.layers)
    for group, names in layers.items():
        for name in names:
            mask = np.where(selected[group], np.float32(0), spines[name].mask)
            spines[name] = spines[name]._replace(mask=mask)
    pruned = {group: bits | selected[group] for group, bits in spine_state.pruned.items()}
    return spine_state._replace(layers=spines, pruned=pruned)
