"""How much is to go: targets in MACs, parameters or SynOps, met to within one filter or weight.

Every allocation of a budget over layers is an order in which filters go: `prune_to_budget` removes as many
of the first as the target asks for. By plain scores that is a global ranking; by `uniform_ranking`, ranks
within layers, every layer loses its share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.networks import cost
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.utils.errors import InputError, check_number, unknown

MEASURES = ("macs", "params", "synops")


Scores = Mapping[str, np.ndarray | Array]  # higher is kept longer


@dataclass(frozen=True)
class Target:
    """What a pruned network may cost.

    Attributes:
      measure: `macs`, `params` or `synops`, as in `cost`.
      fraction: of the dense network's.
    """

    measure: str = "macs"
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise unknown("measure of a target", self.measure, MEASURES)
        check_number("target fraction", self.fraction, 0, 1, above=True)


Cost = Callable[[MaskTree], float]


def cost_of(
    architecture: Architecture,
    measure: str,
    variables: dict | None = None,
    images: Float[Array, "B H W C"] | None = None,
    key: Array | None = None,
) -> Cost:
    """What masks leave, in a measure; SynOps depend on the weights and on images."""
    match measure:
        case "macs":
            return lambda masks: sum(cost.macs(architecture, masks).values())
        case "params":
            return lambda masks: sum(cost.params(architecture, masks).values())
    return lambda masks: sum(cost.synops(architecture, variables, images, masks, key=key).values())


def prune_to_budget(
    scores: Scores,
    cost_of: Cost,
    limit: float | int,
    *,
    least: int = 1,
    before: MaskTree | None = None,
) -> MaskTree:
    """Removes filters (or weights) in the order of their scores, until the cost is in the limit.

    The highest of every group are kept, however low. Where a cost is not monotone (SynOps), the
    limit is met all the same, though perhaps not with the fewest removals.

    Args:
      scores: by group a vector, by `masks.kernel` an array of the kernel's shape.
      cost_of: of masks.
      limit: that the cost may reach.
      least: filters that every group keeps.
      before: masks so far; what they have removed stays so, whatever its score and the limit.

    Returns:
      0/1 masks of the same shapes.

    Raises:
      InputError: nothing that may go is enough.
    """
    names = list(scores)
    flat = {name: np.asarray(scores[name], np.float64).ravel() for name in names}
    for name, values in flat.items():
        if not np.isfinite(values).all():
            raise InputError(f"scores of {name!r} are not all finite: give finite scores.")
    if before is not None:
        lowest = min(values.min() for values in flat.values()) - 1
        past = {name: np.asarray(before[name]).ravel() for name in names}
        flat = {name: np.where(past[name] > 0, flat[name], lowest) for name in names}
    may_go = {name: np.ones(len(values), bool) for name, values in flat.items()}
    for name, values in flat.items():
        may_go[name][np.argsort(-values, kind="stable")[:least]] = False
    place = np.concatenate([np.full(len(flat[name]), i) for i, name in enumerate(names)])
    index = np.concatenate([np.arange(len(flat[name])) for name in names])
    order = np.argsort(np.concatenate([flat[name] for name in names]), kind="stable")
    order = order[np.concatenate([may_go[name] for name in names])[order]]

    def without(count: int) -> MaskTree:
        masks = {name: np.ones(len(flat[name]), np.float32) for name in names}
        gone = order[:count]
        for i, name in enumerate(names):
            masks[name][index[gone[place[gone] == i]]] = 0
            if before is not None:
                masks[name] *= past[name]
        return {name: mask.reshape(np.shape(scores[name])) for name, mask in masks.items()}

    low, high = 0, len(order)
    if cost_of(without(high)) > limit:
        raise InputError(
            f"a cost of {limit:g} cannot be reached: {cost_of(without(high)):g} are left where "
            f"every mask keeps no more than {least}; raise the target."
        )
    while low < high:
        middle = (low + high) // 2
        if cost_of(without(middle)) <= limit:
            high = middle
        else:
            low = middle + 1
    return without(high)


def uniform_ranking(scores: Scores, weight: Mapping[str, float] | None = None) -> Scores:
    """Scores that let every group lose the same share of its filters, its lowest first.

    Args:
      scores: by group.
      weight: by group, how fast it loses them; 1 where it is missing. A group of weight 2 has
        lost twice the share of one of weight 1.
    """
    weight, ranked = weight or {}, {}
    for name, values in scores.items():
        values = np.asarray(values)
        rank = np.argsort(np.argsort(values.ravel(), kind="stable"), kind="stable")
        share = (rank + 1) / values.size
        ranked[name] = (share / max(weight.get(name, 1.0), 1e-9)).reshape(values.shape)
    return ranked


def proportional_ranking(scores: Scores, shares: Mapping[str, float]) -> Scores:
    """Scores by which, however many filters go, groups keep in proportion to their shares, and of
    each group the highest."""
    placed = {}
    for name, values in scores.items():
        order = np.argsort(np.argsort(-np.asarray(values), kind="stable"), kind="stable")
        placed[name] = -(order + 1) / len(order) / shares[name]
    return placed
