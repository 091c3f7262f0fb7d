"""Regrowth at a fixed cost: prune more than the target requires, and regrow others."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.budget import Cost, Scores
from ccsrp_jax.pruning.problem import kept
from ccsrp_jax.utils.errors import InputError, check_number


class Regrown(NamedTuple):
    """The result of `prune_and_regrow`.

    Attributes:
      masks: after regrowth.
      remaining: after pruning, before regrowth.
    """

    masks: MaskTree
    remaining: MaskTree


def prune_and_regrow(
    scores: Scores,
    revival: Scores,
    cost_of: Cost,
    limit: float | int,
    swaps: Callable[[int], int],
    rng: np.random.Generator,
) -> Regrown:
    """Keeps the filters (or weights) of highest score, and exchanges the lowest of them for others.

    To keep n, the n highest are kept except for the g lowest of these that may be exchanged; then,
    of all that are pruned, the g of highest revival score are regrown. n is the largest number for
    which the masks are within the limit. As long as `swaps` grows by at most 1 from n to n + 1, the
    limit is met to within one filter (or weight). The highest of every group is always kept.

    Args:
      scores: by group or `masks.kernel`; the lowest are pruned.
      revival: scores for regrowth, of the same shapes. Names that are missing are never exchanged.
        Ties are resolved by score, then at random.
      cost_of: the cost of masks.
      limit: highest cost allowed.
      swaps: from the number kept, among those that may be exchanged, to g.
      rng: for ties.

    Raises:
      InputError: the limit cannot be reached, or revival scores are not finite.
    """
    names = list(scores)
    sizes = [np.size(scores[name]) for name in names]
    score = np.concatenate([np.ravel(scores[name]) for name in names])
    named = np.repeat([name in revival for name in names], sizes)
    empty = {name: np.zeros(size) for name, size in zip(names, sizes, strict=True)}
    regrowth = np.concatenate([np.ravel((empty | dict(revival))[name]) for name in names])
    if not np.isfinite(regrowth).all():
        raise InputError("scores for regrowth are not all finite: give finite scores.")
    total, always = len(score), np.zeros(len(score), bool)
    starts = np.cumsum([0, *sizes[:-1]])
    always[[start + np.argmax(scores[name]) for start, name in zip(starts, names, strict=True)]] = 1
    rank, regrowth_rank = np.empty(total, int), np.empty(total, int)
    rank[np.lexsort((score, always))] = np.arange(total)
    regrowth_rank[np.lexsort((rng.random(total), score, regrowth))] = np.arange(total)

    def mask_tree(bits: np.ndarray) -> MaskTree:
        parts = np.split(bits.astype(np.float32), starts[1:])
        return {n: part.reshape(np.shape(scores[n])) for n, part in zip(names, parts, strict=True)}

    def keeping(count: int) -> Regrown:
        remaining = rank >= total - count
        exchangeable = np.flatnonzero(remaining & named & ~always)
        exchanged = min(swaps(int(np.sum(remaining & named))), len(exchangeable))
        remaining[exchangeable[np.argsort(rank[exchangeable])[:exchanged]]] = False
        pruned = np.flatnonzero(~remaining & named)
        masks = remaining.copy()
        masks[pruned[np.argsort(-regrowth_rank[pruned])[:exchanged]]] = True
        return Regrown(mask_tree(masks), mask_tree(remaining))

    def fits(count: int) -> bool:
        return bool(cost_of(keeping(count).masks) <= limit)

    # bracket n from the number that fits without regrowth, in doubling steps, then bisect
    low = kept(budget.prune_to_budget(scores, cost_of, limit))
    high, step = low + 1, 1
    while not fits(low):
        low, high, step = max(low - step, len(names)), low, 2 * step
    while high <= total and fits(high):
        low, high, step = high, min(high + step, total + 1), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return keeping(low)


def event_epochs(epochs: int, share: float | int, events: int | None = None) -> list[int]:
    """Numbers of epochs after which a method prunes during training.

    Args:
      epochs: of the training.
      share: of the epochs, after which the last event takes place; at least one epoch.
      events: number of events, evenly spaced; by default, and at most, one after every epoch.

    Raises:
      InputError: there are no epochs, or a value is out of range.
    """
    check_number("epochs, of a method that prunes during training,", epochs, 1)
    check_number("share of the epochs", share, 0, 1)
    last = max(1, round(share * epochs))
    if events is not None:
        check_number("events", events, 1)
    count = last if events is None else min(events, last)
    return [-(-last * k // count) for k in range(1, count + 1)]
