"""CCSRP: rounds of coevolutionary search, splicing and fine-tuning.

One driver serves both the main job and the comparison of methods, with different settings.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jaxtyping import Array

from ccsrp_jax.coevolution.search import RoundResult, search_round
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning.budget import Cost, Scores
from ccsrp_jax.pruning.criteria import Criterion
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, epochs_per_round, finetune
from ccsrp_jax.pruning.splicing import fit_to_budget, splice_by_lagrangian
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils.errors import InputError


class RoundKeys(NamedTuple):
    """Keys of one round."""

    search: Array
    splice: Array
    train: Array


def round_keys(key: Array, number: int) -> RoundKeys:
    """The default keys of round `number`, counted from 1."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, number - 1), 3))


class RoundState(NamedTuple):
    """The network in or after a round.

    Attributes:
      number: of the round, from 1; 0 before the first.
      variables: weights.
      masks: by group.
    """

    number: int
    variables: dict
    masks: MaskTree


OnRound = Callable[[RoundState, RoundResult], None]  # RoundResult is that of the round's search


def ccsrp(
    key: Array,
    problem: Problem,
    *,
    search: Search = PRESETS["faithful"],
    rounds: int | None = None,
    exact: bool = True,
    epochs: int | None = None,
    early: int | None = None,
    criterion: Criterion | None = None,
    clean_training: bool = False,
    keys: Callable[[Array, int], RoundKeys] = round_keys,
    start: RoundState | None = None,
    on_splice: OnRound = lambda state, found: None,
    on_round: OnRound = lambda state, found: None,
) -> Pruned:
    """Prunes filters in rounds: searches every group's mask, splices all masks, and fine-tunes.

    The search compares masks on clean and adversarial search images, in the network after the
    previous round's fine-tuning. With `search.splice = "price"` the masks of every round are within
    that round's limit on the cost (see `splice_by_lagrangian`); with `"winners"` each group takes
    its best mask, and the search alone determines how many filters a round removes.

    Args:
      key: of all rounds.
      problem: the trained network and its budget.
      search: settings of the search. With `robust_weight` 0 only clean accuracy counts (CCEP).
      rounds: maximum number; by default as many as `search.keep_floor` allows to reach the target,
        if all layers lose the same share.
      exact: meet the target to within one filter: if a round of winners goes below it, filters are
        restored, and if the last round does not reach it, more are removed. Otherwise stop after
        the first round that is at or below the target, or when no group can lose a filter.
      epochs: of fine-tuning after every round; by default the rounds share the recipe's epochs
        (see `early`), and the last round has all that remain.
      early: epochs after every round but the last; by default all rounds have equal shares.
      criterion: from `criteria`; its order of filters initializes the search in every round.
      clean_training: fine-tune on clean images, as an ablation.
      keys: from a key and the number of a round (from 1) to the keys of its parts.
      start: state after the last completed round, to resume from.
      on_splice: called with every round's spliced network before its fine-tuning.
      on_round: called after every round's fine-tuning, for logs and checkpoints; its state can be
        passed as `start`.

    Returns:
      Weights and masks after the last round, and the passes of the rounds of this call.

    Raises:
      InputError: the target cannot be met, or there are fewer epochs than rounds.
    """
    if exact or search.splice == "price":  # otherwise it stops early
        whole = masking.ones(problem.architecture)
        problem.check_reachable(whole, fixed=fixed_groups(problem.architecture, search))
    if rounds is None:
        rounds = rounds_needed(problem, search)
    if epochs is None:
        schedule = epochs_per_round(problem.recipe.epochs, rounds, early)
    else:
        schedule = [epochs] * rounds
    if start is None:
        start = RoundState(0, problem.variables, masking.ones(problem.architecture))
    done, variables, masks = start
    tuned = problem
    if clean_training:
        tuned = dataclasses.replace(problem, recipe=_clean(problem.recipe))
    passes = Passes()
    for number in range(done + 1, rounds + 1):
        cost_of = problem.cost(variables=variables)
        if not exact and _is_done(problem, search, cost_of, masks):
            break
        stuck = not search.prunable(problem.architecture, masks)
        if stuck and cost_of(masks) > problem.limit():
            raise InputError(
                f"the target cannot be met: after {number - 1} rounds no group has more than the "
                f"{search.width_multiple} filters that the search leaves in each; give a smaller "
                "multiple, or a higher target."
            )
        key_search, key_splice, key_train = keys(key, number)
        importance = None
        if criterion:
            key_score = jax.random.fold_in(key_search, 10**6)
            importance, spent = criterion(key_score, problem, variables, masks)
            passes += spent
        found, spent = search_masks(key_search, problem, variables, masks, search, importance)
        passes += spent
        masks, reached = _spliced(
            key_splice, problem, search, found, masks, cost_of, number / rounds, exact
        )
        on_splice(RoundState(number, variables, masks), found)
        last = reached and epochs is None
        remaining = sum(schedule[number - 1 :]) if last else schedule[number - 1]
        variables, _ = finetune(key_train, tuned, variables, masks, epochs=remaining)
        on_round(RoundState(number, variables, masks), found)
        if reached:
            break
    return Pruned(variables, masks, passes)


def fixed_groups(architecture: Architecture, search: Search) -> frozenset[str]:
    """Groups from which a search removes nothing, even in the dense network."""
    whole = masking.ones(architecture)
    return frozenset(whole) - frozenset(search.prunable(architecture, whole))


def rounds_needed(problem: Problem, search: Search) -> int:
    """Number of rounds to the target if every group loses as much as the keep floor allows, at most
    the number of epochs. MACs and parameters shrink with input and output channels of a layer."""
    sides = 1 if problem.target.measure == "synops" else 2
    per_round = sides * math.log(min(search.keep_floor, 0.99))
    needed = math.ceil(math.log(problem.target.fraction) / per_round - 1e-9)
    return min(max(1, needed), problem.recipe.epochs)


def search_masks(
    key: Array,
    problem: Problem,
    variables: dict,
    masks: MaskTree,
    search: Search,
    importance: Scores | None = None,
    keep_counts: Mapping[str, int] | None = None,
) -> tuple[RoundResult, Passes]:
    """`coevolution.search_round` on a problem's search images, and the passes taken.

    Args:
      key: of the search.
      problem: its search images, attack and execution settings are used.
      variables, masks: the current network.
      search: settings.
      importance: by group, of each filter, to initialize the search.
      keep_counts: by group, the number of filters to keep; groups without one are not searched.
    """
    callbacks = problem.callbacks
    with callbacks.search_clock():
        found = search_round(
            key,
            problem.classifier,
            variables,
            masks,
            problem.search,
            problem.attack,
            search,
            batch_size=problem.batch_size,
            member_chunk=problem.member_chunk,
            mesh=problem.mesh,
            on_generation=callbacks.on_generation,
            importance=importance,
            keep_counts=keep_counts,
        )
    return found, _passes_of(problem, found, search)


def _is_done(problem: Problem, search: Search, cost_of: Cost, masks: MaskTree) -> bool:
    """Whether masks are within the target, or no group can lose another filter."""
    return cost_of(masks) <= problem.limit() or not search.prunable(problem.architecture, masks)


def _spliced(
    key: Array,
    problem: Problem,
    search: Search,
    found: RoundResult,
    before: MaskTree,
    cost_of: Cost,
    share: float | int,
    exact: bool,
) -> tuple[MaskTree, bool]:
    """Masks of all groups after a round, and whether it is the last.

    `share` is the number of this round relative to the number of all rounds.
    """
    last, target = share == 1, problem.limit()
    if search.splice == "price":
        limit = problem.limit(share)
        masks = splice_by_lagrangian(key, found.groups, before, search, cost_of, limit)
        return masks, last or (not exact and cost_of(masks) <= target)
    reached = last or cost_of(found.masks) <= target
    if not (exact and reached):
        return found.masks, reached
    importance = {name: each.importance for name, each in found.groups.items()}
    return fit_to_budget(key, before, found.masks, importance, cost_of, target), True


def _passes_of(problem: Problem, found: RoundResult, search: Search) -> Passes:
    """Passes of candidates on clean and adversarial images, and those of the attacks."""
    images = len(problem.search.labels)
    scored = (3 if search.refresh_statistics else 2) * sum(found.images.values())
    if search.certified:  # a candidate's bounds take two passes
        return Passes(3 * sum(found.images.values()))
    if search.white_box_steps:
        attack = dataclasses.replace(problem.attack, steps=search.white_box_steps)
        attacks = attack.gradients * sum(found.images.values())
    else:
        attacks = problem.attack.gradients * images * len(found.distinct_sets())
    return Passes(scored + attacks, attacks)


def _clean(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, adversarial=None, trades=0.0, clean_weight=0.0)
