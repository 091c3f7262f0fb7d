"""Cooperative coevolution as a method among others: rounds of search, splicing, fine-tuning."""

import dataclasses
import math

import jax
from jaxtyping import Array

from ccsrp_jax.coevolution.search import Round, search_round
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.pruning.criteria import Criterion
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, finetune, shares
from ccsrp_jax.pruning.splicing import priced, settled
from ccsrp_jax.training.recipe import Recipe


def ccsrp(
    key: Array,
    problem: Problem,
    *,
    search: Search = PRESETS["faithful"],
    rounds: int | None = None,
    early: int | None = None,
    criterion: Criterion | None = None,
    clean_training: bool = False,
) -> Pruned:
    """Prunes by searching every group's mask on clean and adversarial search images.

    Each round begins with the network that the one before has fine-tuned. With `splice = "price"`
    every round meets its part of the target; otherwise rounds go at the search's own pace, and
    filters come back (at random) in the round that would pass the target, or go where the last
    round has not met it.

    Args:
      key: of search and training.
      problem: see `problem`.
      search: settings of the search. With `robust_weight` 0, clean accuracy alone counts (CCEP).
      rounds: by default as many as the search's keep floor asks for, if all layers lose as much.
      early: epochs of fine-tuning after every round but the last; by default equal shares.
      criterion: of `criteria`, whose order of filters the search starts from in every round.
      clean_training: fine-tune on clean images, as an ablation.
    """
    variables, masks = problem.variables, masking.ones(problem.architecture)
    if rounds is None:
        pace = math.log(min(search.keep_floor, 0.99)) * (1 + (problem.target.measure != "synops"))
        rounds = max(1, math.ceil(math.log(problem.target.fraction) / pace - 1e-9))
        rounds = min(rounds, problem.recipe.epochs)
    tuned = problem
    if clean_training:
        tuned = dataclasses.replace(problem, recipe=_clean(problem.recipe))
    passes, left = Passes(), shares(problem.recipe.epochs, rounds, early)
    for number in range(rounds):
        key_search, key_splice, key_train = jax.random.split(jax.random.fold_in(key, number), 3)
        harm = None
        if criterion:
            key_score = jax.random.fold_in(key_search, 10**6)
            harm, spent = criterion(key_score, problem, variables, masks)
            passes += spent
        found = search_round(
            key_search,
            problem.classifier,
            variables,
            masks,
            problem.search,
            problem.attack,
            search,
            batch_size=problem.batch_size,
            harm=harm,
        )
        passes += passes_of(problem, found, search)
        cost_of, target = problem.cost(variables=variables), problem.limit()
        arrives = number == rounds - 1
        if search.splice == "price":
            limit = problem.limit((number + 1) / rounds)
            masks = priced(key_splice, found.found, masks, search, cost_of, limit)
        elif arrives or cost_of(found.masks) <= target:
            harm = {name: each.harm for name, each in found.found.items()}
            masks = settled(key_splice, masks, found.masks, harm, cost_of, target)
            arrives = True
        else:
            masks = found.masks
        epochs = sum(left[number:]) if arrives else left[number]
        variables, _ = finetune(key_train, tuned, variables, masks, epochs=epochs)
        if arrives:
            break
    return Pruned(variables, masks, passes)


def passes_of(problem: Problem, found: Round, search: Search) -> Passes:
    """Every candidate's pass over clean and adversarial images, and what made the latter."""
    images = len(problem.search.labels)
    scored = 2 * sum(found.images.values())
    if search.white_box_steps:
        attack = dataclasses.replace(problem.attack, steps=search.white_box_steps)
        attacks = attack.gradients * sum(found.images.values())
    else:
        attacks = problem.attack.gradients * images * len(found.distinct_sets())
    return Passes(scored + attacks, attacks)


def _clean(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, adversarial=None, trades=0.0, clean_weight=0.0)
