"""Cooperative coevolution as a method among others: rounds of search, splicing, fine-tuning."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ccsrp_jax import budget
from ccsrp_jax import masks as masking
from ccsrp_jax.coevolution import PRESETS, Found, Search, priced, search_round, settled
from ccsrp_jax.masks import MaskTree
from ccsrp_jax.methods.problem import Passes, Problem, Pruned, batches, finetune, shares
from ccsrp_jax.recipe import Recipe
from ccsrp_jax.training import steps_an_epoch


def ccsrp(
    key: Array,
    problem: Problem,
    *,
    search: Search = PRESETS["faithful"],
    rounds: int | None = None,
    early: int | None = None,
    auditions: int = 0,
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
      auditions: with `splice = "price"`, epochs that each of three divisions of a round's budget
        over groups trains, to see which is best (see `divisions`); 0 takes the priced one.
        These epochs are search, and their weights are thrown away.
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
        found = search_round(
            key_search,
            problem.classifier,
            variables,
            masks,
            problem.search,
            problem.attack,
            search,
            batch_size=problem.batch_size,
        )
        passes += _passes(problem, found, search)
        cost_of, target = problem.cost(variables=variables), problem.limit()
        arrives = number == rounds - 1
        if search.splice == "price":
            limit = problem.limit((number + 1) / rounds)
            offer = priced(key_splice, found.found, masks, search, cost_of, limit)
            if auditions:
                candidates = divisions(masks, offer, found.found, cost_of, limit)
                offer, cost = _auditioned(
                    key_splice, tuned, variables, candidates, search, auditions
                )
                passes += cost
            masks = offer
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


def divisions(
    before: MaskTree,
    offer: MaskTree,
    found: Mapping[str, Found],
    cost_of: budget.Cost,
    limit: float,
) -> list[MaskTree]:
    """Masks within the limit: the priced ones, and two that remove filters by harm alone, from
    every group the same share, and a share half way between that and the priced one."""
    after, alive = {}, {}
    for name in found:
        alive[name] = np.asarray(before[name], np.float64)
        after[name] = np.asarray(offer[name], np.float64)
    lost = {g: 1 - (after[g].sum() + 0.5) / (alive[g].sum() + 1) for g in found}
    mean = np.mean(list(lost.values()))
    harm = {g: np.where(alive[g] > 0, each.harm, -np.inf) for g, each in found.items()}
    ranked = {g: np.argsort(np.argsort(h, kind="stable"), kind="stable") for g, h in harm.items()}
    candidates = [offer]
    for power in (0.0, 0.5):
        weight = {g: (lost[g] / mean) ** power for g in found}
        scores = {
            g: np.where(
                alive[g] > 0,
                (ranked[g] - ranked[g].max() + alive[g].sum()) / alive[g].sum() / weight[g],
                -1.0,
            )
            for g in found
        }
        rest = {name: mask for name, mask in offer.items() if name not in scores}

        def cost(masks: MaskTree, rest: MaskTree = rest) -> float | int:
            return cost_of(rest | masks)

        candidates.append(rest | budget.cut(scores, cost, limit))
    return candidates


def _auditioned(
    key: Array,
    problem: Problem,
    variables: dict,
    candidates: list[MaskTree],
    search: Search,
    epochs: int,
) -> tuple[MaskTree, Passes]:
    """The candidate of least loss on clean and attacked search images after so many epochs."""
    quiet = dataclasses.replace(
        problem, report=lambda epoch: None, progress=lambda: None, clock=nullcontext
    )
    key_train, key_attack = jax.random.split(key)
    recipe, losses, passes = problem.recipe, [], Passes()
    each = 1 + (recipe.adversarial.gradients if recipe.adversarial else 0)
    steps = steps_an_epoch(recipe, len(problem.train.labels))
    images = epochs * steps * min(recipe.batch_size, len(problem.train.labels))
    for masks in candidates:
        trained, _ = finetune(key_train, quiet, variables, masks, epochs=epochs)
        loss = 0.0
        for number, (x, labels, real) in enumerate(batches(problem)):
            key_batch = jax.random.fold_in(key_attack, number)
            params = trained, masks
            attacked = problem.attack(problem.classifier, params, x, labels, key_batch)
            for version, weight in ((x, 1.0), (attacked, search.robust_weight)):
                loss += weight * float(_loss(problem.classifier, params, version, labels, real))
        losses.append(loss)
        seen = len(problem.search.labels) * problem.attack.gradients
        passes += Passes(
            images * each + seen + 2 * len(problem.search.labels), images * each + seen
        )
    return candidates[int(np.argmin(losses))], passes


@partial(jax.jit, static_argnums=0)
def _loss(classifier, params, images, labels, real):
    logits = classifier(params, images)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.vdot(each, jnp.arange(len(labels)) < real)


def _passes(problem: Problem, found, search: Search) -> Passes:
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
