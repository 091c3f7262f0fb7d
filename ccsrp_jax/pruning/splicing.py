"""Masks of all groups, chosen or mended together so that they meet a budget."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array

from ccsrp_jax.coevolution.search import Found
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget


def priced(
    key: Array,
    found: dict[str, Found],
    masks: MaskTree,
    search: Search,
    cost_of: budget.Cost,
    limit: float,
) -> MaskTree:
    """Splices masks that every group has scored, chosen together to meet a budget.

    A price of MACs, the same for all groups, decides how much each of them loses: a group offers
    the mask of least loss plus price times MACs, and the price is the lowest at which all offers
    together are within the limit. So filters go where they cost much and matter little. As
    groups were searched apart, their losses are taken to add up. (Ours; three objectives in one
    choice, as the ancestors have not.)

    What offers leave below the limit is given back, and what is above it is taken, by harm.

    Args:
      key: for the order of filters whose harm was not measured.
      found: what the groups' searches found in the current network.
      masks: of that network.
      search: settings.
      cost_of: of masks, what is limited.
      limit: that the spliced masks may cost.
    """
    values = {name: search.weigh(each.scored[1]) for name, each in found.items()}

    def offers(price: float) -> MaskTree:
        chosen = {}
        for name, each in found.items():
            bid = values[name] + price * each.scored[1][:, 2]
            chosen[name] = each.scored[0][int(np.argmin(np.where(np.isfinite(bid), bid, np.inf)))]
        return masks | chosen

    low, high = 1e-6, 1e6
    for _ in range(60):
        price = math.sqrt(low * high)
        low, high = (low, price) if cost_of(offers(price)) <= limit else (price, high)
    harm = {name: each.harm for name, each in found.items()}
    return settled(key, masks, offers(high), harm, cost_of, limit)


def settled(
    key: Array,
    before: MaskTree,
    after: MaskTree,
    harm: Mapping[str, np.ndarray | None],
    cost_of: budget.Cost,
    limit: float,
) -> MaskTree:
    """Masks moved to a limit: filters that just went come back, or more go, by their harm.

    Args:
      key: for the order where harm is not known or equal.
      before, after: masks, before and after the last removals.
      harm: by group, of removing each filter.
      cost_of, limit: as in `budget.cut`.

    Returns:
      Masks of least removals within the limit, if it can be met.
    """
    widths = [len(before[name]) for name in harm]
    draws = np.asarray(jax.random.uniform(key, (sum(widths),)))
    known = [np.zeros(n) if h is None else h for n, h in zip(widths, harm.values(), strict=True)]
    order = np.lexsort((draws, np.concatenate(known)))
    place = np.empty(len(order))
    place[order] = np.arange(len(order)) / len(order)
    places = dict(zip(harm, np.split(place, np.cumsum(widths)[:-1]), strict=True))
    scores = {
        name: np.asarray(after[name]) + places[name]
        for name in harm  # below 1: just removed
    }
    rest = {name: mask for name, mask in after.items() if name not in scores}
    masks = rest | budget.cut(scores, lambda cut: cost_of(rest | cut), limit, before=before)
    back = [
        (place, name, i)
        for name, values in places.items()
        for i, place in enumerate(values)
        if before[name][i] and not masks[name][i]
    ]
    for _, name, i in sorted(back, reverse=True):  # what is left of the limit may hold one more
        more = masks | {name: masks[name] + (np.arange(len(masks[name])) == i)}
        if cost_of(more) <= limit:
            masks = more
    return masks
