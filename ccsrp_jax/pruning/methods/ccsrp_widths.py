"""Widths by cooperative coevolution: how many filters each group keeps, scored by fine-tuning.

The allocation of a budget over layers matters more than which filters of a layer are kept, and
the loss right after pruning does not show which allocation is good after fine-tuning. So the share
of filters that each group keeps evolves first, and a candidate's fitness is its loss after
fine-tuning. Orders of filters by several criteria are compared in the same way, as no criterion is
best on every network.
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

    At first all groups keep the same share of their filters, in the best order. In a cycle, the
    sub-population of each group varies its share while the shares of the others are fixed relative
    to each other, so that the target is met; then the best shares of all groups are spliced. The
    step from the old shares to the best ones is repeated as long as it improves the loss. At the
    resulting widths, all orders are compared again. Finally masks are evolved in the trained
    network by `search_round`, starting from the best order, and replace that order's masks if
    their loss is lower.

    With G groups and K orders, about 2 (G + K) + 2 candidates are fine-tuned, see
    `score_after_finetuning`. (Ours; sub-populations and the splice of their best are CCSRP's and
    CCEP's.)

    Args:
      key: of search and training.
      problem: the trained network and its budget.
      orders: one or more criteria, by whose scores filters are ordered for removal.
      search: settings of the search for masks at the resulting widths, with the decoder `topk`;
        None: the masks of the best order are used.
      factors: by which a group's share is multiplied, relative to the others.
      cycles: of coevolution; factors are closer to 1 in every further cycle.
      epochs: of a candidate's fine-tuning; by default all of the problem's recipe.

    Raises:
      InputError: `orders` is empty, or the target cannot be met.
    """
    if not orders:
        raise InputError("ccsrp_widths has no orders: give one criterion or more.")
    key_score, key_candidates, key_search, key_train = jax.random.split(key, 4)
    dense = masking.ones(problem.architecture)
    problem.check_reachable(dense)
    scores, passes = [], Passes()
    for number, criterion in enumerate(orders):
        key_order = jax.random.fold_in(key_score, number)
        values, spent = criterion(key_order, problem, problem.variables, dense)
        scores.append(values)
        passes += spent
    cost_of, limit = problem.cost(), problem.limit()
    loss_of = MaskScores(key_candidates, problem, epochs=epochs)

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
        keep_counts = {name: int(mask.sum()) for name, mask in masks.items()}
        found, spent = search_masks(
            key_search, problem, problem.variables, dense, search, order, keep_counts
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
    """The shares of lowest loss after cycles of coevolution, by group; see `ccsrp_widths`.

    Args:
      start: initial shares, by group.
      loss: of shares; it is called repeatedly with the same shares, and should cache its results.
      factors: by which a group's share is multiplied in the first cycle.
      cycles: number of cycles; in each the factors are the square roots of those before.
    """
    best = start
    for cycle in range(cycles):
        current = spliced = best
        for group, share in current.items():
            variants = [{**current, group: share * factor ** (0.5**cycle)} for factor in factors]
            winner = min((current, *variants), key=loss)
            spliced = {**spliced, group: winner[group]}
            best = min((best, winner), key=loss)
        best = min((best, spliced), key=loss)
        while best is not current:  # repeat the step while it improves the loss
            further = {group: best[group] ** 2 / current[group] for group in best}
            current = best
            best = min((best, further), key=loss)
    return best
