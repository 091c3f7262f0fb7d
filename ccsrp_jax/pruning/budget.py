"""Budgets: targets in MACs, parameters or SynOps, met to within one filter or weight.

An allocation of a budget over layers is an order in which filters are removed: `prune_to_budget`
removes filters in this order until the cost is within the limit. Plain scores give a global
ranking; with `uniform_ranking` every layer loses the same share, with `proportional_ranking` a
given one.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.networks import cost
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.masks import KERNEL, MaskTree
from ccsrp_jax.utils.errors import InputError, unknown
from ccsrp_jax.utils.fields import Limits, check_fields

MEASURES = ("macs", "params", "synops")
UNITS = {"macs": "MACs", "params": "parameters", "synops": "SynOps"}

Scores = Mapping[str, np.ndarray | Array]  # filters or weights of low scores are removed first
Cost = Callable[[MaskTree], float]


@dataclass(frozen=True)
class Target:
    """The highest cost that a pruned network may have.

    Attributes:
      measure: `macs`, `params` or `synops`, as in `networks.cost`.
      fraction: of the dense network's cost, above 0 and at most 1.

    Raises:
      InputError: unknown measure, or a fraction out of range.
    """

    measure: str = "macs"
    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, "target", {"fraction": Limits(0, 1, above=True)})
        if self.measure not in MEASURES:
            raise unknown("measure of a target", self.measure, MEASURES)


def cost_of(
    architecture: Architecture,
    measure: str,
    variables: dict | None = None,
    images: Float[Array, "B H W C"] | None = None,
    key: Array | None = None,
) -> Cost:
    """The cost of a masked network as a function of its masks.

    Args:
      architecture: of the network.
      measure: one of `MEASURES`.
      variables, images, key: only for SynOps, which depend on weights and images.

    Raises:
      InputError: SynOps without variables or images.
    """
    match measure:
        case "macs":
            return lambda masks: sum(cost.macs(architecture, masks).values())
        case "params":
            return lambda masks: sum(cost.params(architecture, masks).values())
    if variables is None or images is None:
        raise InputError("SynOps depend on weights and images: give variables and images.")
    return lambda masks: sum(cost.synops(architecture, variables, images, masks, key=key).values())


def check_reachable(
    dense: MaskTree,
    cost_of: Cost | None,
    fraction: float,
    *,
    unit: str,
    fixed: Collection[str] = (),
) -> None:
    """Checks that a target can be met, before anything is computed.

    Args:
      dense: masks of ones: of all filters that can be pruned, by group, or of weights.
      cost_of: the cost of masks; None if it depends on which filters or weights are kept, as SynOps
        do. Then only whether there is anything to remove is checked.
      fraction: the target, as a share of the dense cost.
      unit: of the cost, for the message.
      fixed: names of masks from which nothing is removed.

    Raises:
      InputError: there is nothing to remove, or one filter (or weight) in every mask costs more
        than the target.
    """
    single = all(name.endswith(KERNEL) for name in dense)
    if not dense:
        raise InputError(
            "this method has nothing to prune in this network, which lacks groups of filters that "
            "layers read behind spiking neurons, or layers of weights before the classifier: give "
            "another network or another method."
        )
    fewest, removable = {}, 0
    for name, mask in dense.items():
        fewest[name] = np.ones(np.shape(mask), np.float32)
        if name not in fixed:
            fewest[name].flat[1:] = 0
            removable += np.size(mask) - 1
    whole = cost_of(dense) if cost_of else 1.0
    least = cost_of(fewest) if cost_of else float(not removable)
    if least <= fraction * whole:
        return
    unreached = f"a target of {fraction:g} of the {unit} cannot be reached: "
    part, parts = ("weight", "layer") if single else ("filter", "group")
    share = math.ceil(1000 * least / whole) / 1000
    if not removable:
        raise InputError(
            f"{unreached}there is nothing to remove, as no {parts} can lose a {part}; give a wider "
            "network."
        )
    raise InputError(
        f"{unreached}{share:g} of them are left where every {parts} that can be pruned keeps one "
        f"{part}; give a target of at least {share:g}, or a wider network."
    )


class _Removal:
    """Filters (or weights) of all groups in the order in which they are removed."""

    def __init__(self, scores: Scores, least: int, before: MaskTree | None):
        self._shapes = {name: np.shape(values) for name, values in scores.items()}
        flat = {name: np.asarray(scores[name], np.float64).ravel() for name in scores}
        for name, values in flat.items():
            if not np.isfinite(values).all():
                raise InputError(f"scores of {name!r} are not all finite: give finite scores.")
        self._before = None
        if before is not None:
            lowest = min(values.min() for values in flat.values()) - 1
            self._before = {name: np.asarray(before[name]).ravel() for name in flat}
            flat = {n: np.where(self._before[n] > 0, flat[n], lowest) for n in flat}
        removable = {name: np.ones(len(values), bool) for name, values in flat.items()}
        for name, values in flat.items():
            removable[name][np.argsort(-values, kind="stable")[:least]] = False
        self._sizes = {name: len(values) for name, values in flat.items()}
        group = np.repeat(np.arange(len(flat)), list(self._sizes.values()))
        index = np.concatenate([np.arange(size) for size in self._sizes.values()])
        order = np.argsort(np.concatenate(list(flat.values())), kind="stable")
        order = order[np.concatenate(list(removable.values()))[order]]
        self._group, self._index = group[order], index[order]

    def __len__(self) -> int:
        """The number of filters (or weights) that may be removed."""
        return len(self._index)

    def masks(self, count: int) -> MaskTree:
        """Masks with the first `count` removed, and all that were removed before."""
        masks = {}
        for i, (name, size) in enumerate(self._sizes.items()):
            mask = np.ones(size, np.float32)
            mask[self._index[:count][self._group[:count] == i]] = 0
            if self._before is not None:
                mask *= self._before[name]
            masks[name] = mask.reshape(self._shapes[name])
        return masks


def prune_to_budget(
    scores: Scores,
    cost_of: Cost,
    limit: float | int,
    *,
    least: int = 1,
    before: MaskTree | None = None,
) -> MaskTree:
    """Removes filters (or weights) in the order of their scores until the cost is within a limit.

    The filters of highest score in every group are always kept. If a cost is not monotone
    (SynOps), the limit is still met, but possibly not with the fewest removals.

    Args:
      scores: by group a vector, by `masks.kernel` an array of the kernel's shape.
      cost_of: the cost of masks.
      limit: highest cost allowed.
      least: number of filters that every group keeps.
      before: current masks; what they remove is never restored, whatever its score.

    Returns:
      0/1 masks of the same shapes.

    Raises:
      InputError: removing all that may be removed is not enough, or a score is not finite.
    """
    if not scores and cost_of({}) > limit:
        raise InputError(
            f"a cost of {limit:g} cannot be reached: {cost_of({}):g} are left and nothing can be "
            "removed; raise the target."
        )
    if not scores:
        return {}
    removal = _Removal(scores, least, before)
    low, high = 0, len(removal)
    fewest = cost_of(removal.masks(high))
    if fewest > limit:
        raise InputError(
            f"a cost of {limit:g} cannot be reached: {fewest:g} are left where "
            f"every mask keeps no more than {least}; raise the target."
        )
    while low < high:
        middle = (low + high) // 2
        if cost_of(removal.masks(middle)) <= limit:
            high = middle
        else:
            low = middle + 1
    return removal.masks(high)


def uniform_ranking(scores: Scores, weight: Mapping[str, float] | None = None) -> Scores:
    """Scores by which all groups lose the same share of their filters, the lowest first.

    Args:
      scores: by group.
      weight: by group, its share relative to the others, 1 if missing: a group of weight 2 loses
        twice the share of one of weight 1.
    """
    weight, ranked = weight or {}, {}
    for name, values in scores.items():
        values = np.asarray(values)
        rank = np.argsort(np.argsort(values.ravel(), kind="stable"), kind="stable")
        share = (rank + 1) / values.size
        ranked[name] = (share / max(weight.get(name, 1.0), 1e-9)).reshape(values.shape)
    return ranked


def proportional_ranking(scores: Scores, shares: Mapping[str, float]) -> Scores:
    """Scores by which groups keep shares of their filters in proportion to `shares`, the highest
    first, for any number of removals."""
    ranked = {}
    for name, values in scores.items():
        rank = np.argsort(np.argsort(-np.asarray(values), kind="stable"), kind="stable")
        ranked[name] = -(rank + 1) / len(rank) / shares[name]
    return ranked
