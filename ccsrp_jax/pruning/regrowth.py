"""Regeneration at a fixed cost: more is removed than the target asks for, and others come back."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.budget import Cost, Scores
from ccsrp_jax.pruning.problem import kept
from ccsrp_jax.utils.errors import InputError, check_number


class Regrown(NamedTuple):
    """What an exchange leaves.

    Attributes:
      masks: after regeneration.
      stayed: before it; what is in `masks` and not here came back.
    """

    masks: MaskTree
    stayed: MaskTree


def prune_and_regrow(
    scores: Scores,
    revival: Scores,
    cost_of: Cost,
    limit: float | int,
    swaps: Callable[[int], int],
    rng: np.random.Generator,
) -> Regrown:
    """Keeps the highest scores but for some, in whose place others come back.

    To keep n, the n highest stay, less the g lowest of these that may be exchanged; then, of all
    that is gone, the g of highest revival come back. n is the largest number whose network meets
    the limit. From one n to the next only one is added as long as `swaps` grows by at most 1, so
    that the limit is met to within one. The highest of every group stays, however low.

    Args:
      scores: by group or `masks.kernel`; the higher, the longer kept.
      revival: the same shapes; what is not named here is never exchanged. Equal values come back
        by higher score, and then at random.
      cost_of, limit: of masks.
      swaps: g, by the number kept of what may be exchanged.
      rng: for ties.

    Raises:
      InputError: the limit cannot be reached.
    """
    names = list(scores)
    sizes = [np.size(scores[name]) for name in names]
    score = np.concatenate([np.ravel(scores[name]) for name in names])
    named = np.repeat([name in revival for name in names], sizes)
    empty = {name: np.zeros(size) for name, size in zip(names, sizes, strict=True)}
    wish = np.concatenate([np.ravel((empty | dict(revival))[name]) for name in names])
    if not np.isfinite(wish).all():
        raise InputError("scores of what may come back are not all finite: give finite scores.")
    total, safe = len(score), np.zeros(len(score), bool)
    starts = np.cumsum([0, *sizes[:-1]])
    safe[[start + np.argmax(scores[name]) for start, name in zip(starts, names, strict=True)]] = 1
    rank, place = np.empty(total, int), np.empty(total, int)
    rank[np.lexsort((score, safe))] = np.arange(total)
    place[np.lexsort((rng.random(total), score, wish))] = np.arange(total)

    def tree(bits: np.ndarray) -> MaskTree:
        parts = np.split(bits.astype(np.float32), starts[1:])
        return {n: part.reshape(np.shape(scores[n])) for n, part in zip(names, parts, strict=True)}

    def keeping(count: int) -> Regrown:
        stays = rank >= total - count
        may = np.flatnonzero(stays & named & ~safe)
        some = min(swaps(int(np.sum(stays & named))), len(may))
        stays[may[np.argsort(rank[may])[:some]]] = False
        gone = np.flatnonzero(~stays & named)
        masks = stays.copy()
        masks[gone[np.argsort(-place[gone])[:some]]] = True
        return Regrown(tree(masks), tree(stays))

    def fits(count: int) -> bool:
        return bool(cost_of(keeping(count).masks) <= limit)

    # from the number that fits without exchange, in doubling steps to a bracket, and bisect
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
    """After how many epochs pruning takes place, where it does so during training.

    Args:
      epochs: of all training.
      share: of the epochs, after which the last event is; at least one epoch.
      events: how many, evenly; by default one after every epoch, which is also the most.

    Raises:
      InputError: there is no epoch, or a value is out of range.
    """
    check_number("epochs, of a method that prunes during training,", epochs, 1)
    check_number("share of the epochs", share, 0, 1)
    last = max(1, round(share * epochs))
    if events is not None:
        check_number("events", events, 1)
    count = last if events is None else min(events, last)
    return [-(-last * k // count) for k in range(1, count + 1)]
