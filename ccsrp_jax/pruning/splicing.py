"""Splicing: masks of all groups, chosen or adjusted together to meet a budget."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array

from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.coevolution.subpopulation import GroupResult
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning.budget import Cost, prune_to_budget

BISECTIONS = 60  # of the multiplier, between 1e-6 and 1e6


def splice_by_lagrangian(
    key: Array,
    found: dict[str, GroupResult],
    masks: MaskTree,
    search: Search,
    cost_of: Cost,
    limit: float,
) -> MaskTree:
    """Splices one scored mask for each group, chosen together to meet a budget.

    Minimizes the sum of the groups' losses subject to a limit on the cost, by Lagrangian
    relaxation: every group takes the mask that minimizes loss + multiplier * MACs, with one
    multiplier for all groups, the lowest (by bisection) for which the spliced masks are within the
    limit. So filters are removed where they are expensive and unimportant. As groups are searched
    separately, their losses are assumed to be additive. (Ours; CCSRP and CCEP take each group's
    best mask.)

    `fit_to_budget` then restores filters up to the limit, or removes what exceeds it, by
    importance.

    Args:
      key: for the order of filters without a known importance.
      found: results of the groups' searches in the current network.
      masks: of the current network.
      search: settings of the search.
      cost_of: the cost of masks.
      limit: highest cost of the spliced masks.

    Raises:
      InputError: the limit cannot be met.
    """
    losses = {name: search.scalarize(each.scored_objectives) for name, each in found.items()}

    def minimizers(multiplier: float) -> MaskTree:
        chosen = {}
        for name, each in found.items():
            lagrangian = losses[name] + multiplier * each.scored_objectives[:, 2]
            lagrangian = np.where(np.isfinite(lagrangian), lagrangian, np.inf)
            chosen[name] = each.scored_masks[int(np.argmin(lagrangian))]
        return {**masks, **chosen}

    low, high = 1e-6, 1e6
    for _ in range(BISECTIONS):
        multiplier = math.sqrt(low * high)
        if cost_of(minimizers(multiplier)) <= limit:
            high = multiplier
        else:
            low = multiplier
    importance = {name: each.importance for name, each in found.items()}
    return fit_to_budget(key, masks, minimizers(high), importance, cost_of, limit)


def fit_to_budget(
    key: Array,
    before: MaskTree,
    after: MaskTree,
    importance: Mapping[str, np.ndarray | None],
    cost_of: Cost,
    limit: float,
) -> MaskTree:
    """Adjusts masks to a limit on the cost, to within one filter.

    The most important of the filters that were just removed are restored, or the least important
    of the others are removed.

    Args:
      key: for the order of filters of equal or unknown importance.
      before, after: masks before and after the last removals.
      importance: by group, of each filter; None if unknown.
      cost_of, limit: as in `budget.prune_to_budget`.

    Returns:
      Masks within the limit, to which no removed filter could be restored.

    Raises:
      InputError: the limit cannot be met.
    """
    ranks = _ranked(key, before, importance) if importance else {}
    scores = {name: np.asarray(after[name]) + rank for name, rank in ranks.items()}
    others = {name: mask for name, mask in after.items() if name not in scores}

    def cost_with(masks: MaskTree) -> float | int:
        return cost_of({**others, **masks})

    masks = {**others, **prune_to_budget(scores, cost_with, limit, before=before)}
    removed = [
        (rank, name, i)
        for name, values in ranks.items()
        for i, rank in enumerate(values)
        if before[name][i] and not masks[name][i]
    ]
    for _, name, i in sorted(removed, reverse=True):  # a less costly filter may still fit
        more = {**masks, name: masks[name] + (np.arange(len(masks[name])) == i)}
        if cost_of(more) <= limit:
            masks = more
    return masks


def _ranked(
    key: Array, masks: MaskTree, importance: Mapping[str, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Ranks of filters by importance over all groups, in [0, 1); ties are random."""
    widths = [len(masks[name]) for name in importance]
    draws = np.asarray(jax.random.uniform(key, (sum(widths),)))
    known = [
        np.zeros(n) if values is None else values
        for n, values in zip(widths, importance.values(), strict=True)
    ]
    order = np.lexsort((draws, np.concatenate(known)))
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order)) / len(order)
    return dict(zip(importance, np.split(rank, np.cumsum(widths)[:-1]), strict=True))
