"""SD-SNN's rules on arrays: spines' ranges, the constraint, regeneration, importance and rates.

Every weight has a range, its spine's, that follows what training does to it. `sdsnn` says when
each rule is applied.
"""

import math
from typing import NamedTuple

import numpy as np

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.masks import MaskTree

SHRINK = 0.75  # of a range, after as many falls as there are spines


FADE = 5  # events in which the paper's pruning slows down by e


# A neuron with fewer weights counts as dead in the rates.
DEAD = {"conv": 20, "dense": 50}


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


def initial_spines(kernel: np.ndarray) -> Spines:
    """A layer's spines before the first epoch: every range ends at the largest weight."""
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


def constrain(layer: Spines, weights: np.ndarray) -> np.ndarray:
    """Weights clipped to their ranges."""
    return np.clip(weights, -layer.reach[1], layer.reach[0]).astype(np.float32)


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


def group_importance(growth: Growth, layers: dict[str, list[str]]) -> Scores:
    """By group, the sum of its neurons' importance over its layers."""
    return {
        group: np.sum([importance(growth.layers[name]) for name in names], axis=0)
        for group, names in layers.items()
    }


def relative_rates(growth: Growth, layers: dict[str, list[str]]) -> dict[str, float]:
    """Rates relative to the mean of those of the same kind, convolutions or dense layers."""
    kinds, rates = kinds_of(growth, layers), growth.rates
    mean = {
        kind: np.mean([rates[group] for group in layers if kinds[group] == kind])
        for kind in kinds.values()
    }
    return {group: float(rates[group] / mean[kinds[group]]) for group in layers}


def _incoming(growth: Growth, layers: list[str]) -> np.ndarray:
    """Masks of all weights into a group, (weights, neurons)."""
    masks = [growth.layers[name].mask for name in layers]
    return np.concatenate([mask.reshape(-1, mask.shape[-1]) for mask in masks])


def next_rates(growth: Growth, layers: dict[str, list[str]], event: int) -> dict[str, float]:
    """The paper's cumulative rates in percent, by group, for pruning event 0, 1, ...

    A last convolution without a layer behind it goes by a ratio of 1; the dense layers' rate is
    written for 512 neurons, and goes by the share of them.
    """
    kinds, alive = kinds_of(growth, layers), {}
    for group, names in layers.items():
        masks = _incoming(growth, names)
        enough = min(DEAD[kinds[group]], len(masks))
        alive[group] = max(int((masks.sum(0) >= enough).sum()), 1)
    rates, behind = {}, [*list(alive.values())[1:], None]
    for group, following in zip(layers, behind, strict=True):
        if kinds[group] == "conv":
            grows = math.exp(-event / FADE) * alive[group] / (following or alive[group])
        else:
            speed = 0.5 * math.exp(-event) if event <= 23 else 0.0005
            grows = speed * 512 / 10 * alive[group] / len(growth.pruned[group])
        rates[group] = growth.rates[group] + grows
    return rates


def kinds_of(growth: Growth, layers: dict[str, list[str]]) -> dict[str, str]:
    """By group, `conv` or `dense`."""
    return {group: growth.layers[names[0]].kind for group, names in layers.items()}


def present_neurons(growth: Growth, layers: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """By group, which neurons are present: never pruned, or revived by a kernel that grew back."""
    return {
        group: ~growth.pruned[group] | _incoming(growth, names).any(0)
        for group, names in layers.items()
    }


def tree(growth: Growth, layers: dict[str, list[str]]) -> MaskTree:
    """Filter masks of the groups, weight masks of their layers."""
    weights = {masking.kernel(name): layer.mask for name, layer in growth.layers.items()}
    alive = present_neurons(growth, layers)
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


def prune(growth: Growth, layers: dict[str, list[str]], gone: Chosen) -> Growth:
    """Masks all weights of neurons."""
    spines = dict(growth.layers)
    for group, names in layers.items():
        for name in names:
            mask = np.where(gone[group], np.float32(0), spines[name].mask)
            spines[name] = spines[name]._replace(mask=mask)
    pruned = {group: bits | gone[group] for group, bits in growth.pruned.items()}
    return growth._replace(layers=spines, pruned=pruned)
