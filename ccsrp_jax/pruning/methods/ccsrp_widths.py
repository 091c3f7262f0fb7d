"""Widths by cooperative coevolution: how many filters each group keeps, scored by fine-tuning.

How a budget is shared among layers decides more than which filters of a layer stay, and the loss
right after pruning does not tell which allocation is good once weights have adapted: fine-tuning
may miss most the group that seemed cheapest to prune. So what evolves first is every group's
share, and a candidate's fitness is its loss after fine-tuning. Several orders of filters can be
compared the same way, as no criterion is best on every network.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import jax
from jaxtyping import Array

from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget, criteria
from ccsrp_jax.pruning.budget import Scores
from ccsrp_jax.pruning.candidates import MaskScores, finetune_once
from ccsrp_jax.pruning.criteria import Criterion
from ccsrp_jax.pruning.methods.ccsrp import search_masks
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned
from ccsrp_jax.utils.errors import InputError

SEARCH = replace(PRESETS["snes"], multiple=1)


def ccsrp_widths(
    key: Array,
    problem: Problem,
    *,
    orders: Sequence[Criterion] = (criteria.taylor,),
    search: Search | None = SEARCH,
    factors: tuple[float, ...] = (0.5, 1.5),
    cycles: int = 1,
    epochs: int | None = None,
) -> Pruned:
    """Coevolves every group's width, then its mask at that width, and fine-tunes once.

    Unlike `ccsrp`, it compares candidates after fine-tuning, and prunes in one round.

    All groups begin with the same share of their filters, in the best order. In a cycle, every
    group's sub-population tries other shares while those of all others are held (in proportion to
    each other, so that the target is met), then all groups' best are spliced at once. The step
    from the old shares to the best ones is repeated for as long as that improves the loss. At the
    widths found, the other orders are tried again, and masks are evolved in the trained network as
    `search_round` does, from the best order, and taken if they are better than it.

    With G groups and K orders, about 2 (G + K) + 2 candidates are fine-tuned, see
    `score_after_finetuning`. (Ours, from what CCSRP shares with its ancestor: sub-populations, and
    a splice of their best.)

    Args:
      key: of search and training.
      problem: see `problem`.
      orders: criteria, one or more, by whose scores filters of all groups are removed.
      search: of masks at the widths that were found, with the decoder `topk`; None leaves the
        best order's.
      factors: that a group's share is tried with, relative to the others.
      cycles: of coevolution; each has factors nearer to 1 than the one before.
      epochs: of a candidate's fine-tuning; by default as many as the problem's recipe has.

    Raises:
      InputError: there is no order.
    """
    if not orders:
        raise InputError("ccsrp_widths has no orders: give one criterion or more.")
    key_score, key_try, key_search, key_train = jax.random.split(key, 4)
    dense = masking.ones(problem.architecture)
    scores, passes = [], Passes()
    for number, criterion in enumerate(orders):
        key_order = jax.random.fold_in(key_score, number)
        values, spent = criterion(key_order, problem, problem.variables, dense)
        scores.append(values)
        passes += spent
    cost_of, limit = problem.cost(), problem.limit()
    loss_of = MaskScores(key_try, problem, epochs=epochs)

    def masks_of(shares: Mapping[str, float], order: Scores) -> MaskTree:
        return budget.prune_to_budget(budget.proportional_ranking(order, shares), cost_of, limit)

    equal = dict.fromkeys(scores[0], 1.0)
    order = min(scores, key=lambda order: loss_of(masks_of(equal, order)))
    shares = coevolve_shares(
        equal, lambda shares: loss_of(masks_of(shares, order)), factors, cycles
    )
    order = min((order, *scores), key=lambda order: loss_of(masks_of(shares, order)))
    masks = masks_of(shares, order)
    if search:
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        found, spent = search_masks(
            key_search, problem, problem.variables, dense, search, order, kept
        )
        passes += spent
        masks = min((masks, found.masks), key=loss_of)
    pruned = finetune_once(key_train, problem, masks=masks)
    return pruned._replace(search=passes + loss_of.passes)


def coevolve_shares(
    start: Mapping[str, float],
    loss: Callable[[Mapping[str, float]], float],
    factors: Iterable[float],
    cycles: int,
) -> Mapping[str, float]:
    """Shares of lowest loss that cycles of coevolution find, by group; see `ccsrp_widths`.

    Args:
      start: shares by group.
      loss: of shares; called again with shares that it was called with before.
      factors: that a group's share is multiplied by in the first cycle.
      cycles: in each the factors are the square roots of those before.
    """
    best = start
    for cycle in range(cycles):
        current = spliced = best
        for group, share in current.items():
            tried = [{**current, group: share * factor ** (0.5**cycle)} for factor in factors]
            winner = min((current, *tried), key=loss)
            spliced = {**spliced, group: winner[group]}
            best = min((best, winner), key=loss)
        best = min((best, spliced), key=loss)
        while best is not current:  # the same step again, while that improves the loss
            further = {group: best[group] ** 2 / current[group] for group in best}
            current = best
            best = min((best, further), key=loss)
    return best
