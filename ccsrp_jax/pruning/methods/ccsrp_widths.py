"""Widths by cooperative coevolution: how many filters each group keeps, tried by fine-tuning.

How a budget is dealt out over layers decides more than which filters of a layer stay, and the loss
right after pruning does not tell which division is good once weights have adapted: a group that is
cheap to lose then may be the one that fine-tuning cannot do without. So here what evolves first is
every group's share, and a candidate's fitness is the loss after fine-tuning. Several orders of
filters can be tried the same way: no criterion is best on every network.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.coevolution.search import search_round
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget, criteria
from ccsrp_jax.pruning.budget import Scores
from ccsrp_jax.pruning.criteria import Criterion
from ccsrp_jax.pruning.methods.ccsrp import passes_of
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, batches, finetune
from ccsrp_jax.robustness.suites import views
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.utils.errors import InputError

SEARCH = replace(PRESETS["snes"], multiple=1)


Way = Callable[[Array, Problem], Pruned]


STEPS, VIEW = 25, "atan:0.5"  # of the attack on auditioned networks: the quick suite's strongest


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

    All groups begin with the same share of their filters, in the best order. In a cycle, every
    group's sub-population tries other shares while those of all others are held (in proportion to
    each other, so that the target is met), then all groups' best are spliced at once. The step
    from the old shares to the best ones is taken again for as long as that is better. At the
    widths found, the other orders are tried again, and masks are evolved in the trained network as
    `search_round` does, from the best order, and taken if they are better than it.

    Candidates are *auditioned*: the dense network is masked and trained, and the loss on clean and
    on attacked search images is compared. Those weights are thrown away, and counted as search:
    with G groups and K orders, about 2 (G + K) + 2 trainings. (Ours, from what CCSRP shares with
    its ancestor: sub-populations, and a splice of their best.)

    Args:
      key: of search and training.
      problem: see `problem`.
      orders: criteria, one or more, by which filters of all groups go.
      search: of masks at the widths that were found, with the decoder `topk`; None leaves the
        best order's.
      factors: that a group's share is tried with, relative to the others.
      cycles: of coevolution; each has factors nearer to 1 than the one before.
      epochs: of an audition; by default as many as the problem's recipe has.

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
    heard: dict[bytes, float] = {}

    def fitness(masks: MaskTree) -> float:
        nonlocal passes
        name = b"".join(np.packbits(np.asarray(mask) > 0).tobytes() for mask in masks.values())
        if name not in heard:
            heard[name], spent = audition(
                key_try, problem, partial(at_once, masks=masks), epochs=epochs
            )
            passes += spent
        return heard[name]

    def divided(shares: Mapping[str, float], order: Scores) -> MaskTree:
        return budget.cut(budget.proportioned(order, shares), cost_of, limit)

    best = dict.fromkeys(scores[0], 1.0)
    order = min(scores, key=lambda order: fitness(divided(best, order)))

    def loss(shares: Mapping[str, float]) -> float:
        return fitness(divided(shares, order))

    for cycle in range(cycles):
        around = spliced = best
        for group, share in around.items():
            moved = [around | {group: share * factor ** (0.5**cycle)} for factor in factors]
            winner = min((around, *moved), key=loss)
            spliced = spliced | {group: winner[group]}
            best = min((best, winner), key=loss)
        best = min((best, spliced), key=loss)
        while best is not around:  # once more as far, while that is better still
            further = {group: best[group] ** 2 / around[group] for group in best}
            around = best
            best = min((best, further), key=loss)
    order = min((order, *scores), key=lambda order: fitness(divided(best, order)))
    masks = divided(best, order)
    if search:
        found = search_round(
            key_search,
            problem.classifier,
            problem.variables,
            dense,
            problem.search,
            problem.attack,
            search,
            batch_size=problem.batch_size,
            harm=order,
            kept={name: int(mask.sum()) for name, mask in masks.items()},
        )
        passes += passes_of(problem, found, search)
        masks = min((masks, found.masks), key=fitness)
    found = at_once(key_train, problem, masks=masks)
    return found._replace(search=passes)


def at_once(key: Array, problem: Problem, *, masks: MaskTree) -> Pruned:
    """One fine-tuning with these masks."""
    variables, _ = finetune(key, problem, problem.variables, masks)
    return Pruned(variables, masks)


def best_of(
    key: Array, problem: Problem, *, criterion: Criterion = criteria.at_random, candidates: int = 10
) -> Pruned:
    """Auditions without evolution: the best of masks that a criterion draws with several keys.

    A control for `ccsrp_widths`: what comes of comparing candidates after training, and not of the
    way in which they are made.

    Args:
      key: of masks and training.
      problem: see `problem`.
      criterion: of `criteria`; one that does not use its key gives the same masks every time.
      candidates: that are auditioned.
    """
    key_draw, key_try, key_train = jax.random.split(key, 3)
    dense, passes, heard = masking.ones(problem.architecture), Passes(), []
    for number in range(candidates):
        key_score = jax.random.fold_in(key_draw, number)
        scores, spent = criterion(key_score, problem, problem.variables, dense)
        masks = budget.cut(budget.spread(scores), problem.cost(), problem.limit())
        loss, more = audition(key_try, problem, partial(at_once, masks=masks))
        heard.append((loss, masks))
        passes += spent + more
    _, masks = min(heard, key=lambda entry: entry[0])
    return at_once(key_train, problem, masks=masks)._replace(search=passes)


def audition(
    key: Array, problem: Problem, way: Way, *, epochs: int | None = None
) -> tuple[float, Passes]:
    """What pruning comes to: the loss on clean plus that on attacked search images, after training.

    Args:
      key: of training and attack; the same for candidates that are to be compared.
      problem: whose network is trained, with its recipe.
      way: prunes and trains.
      epochs: of training; by default the recipe's.

    Returns:
      The loss, and the passes taken.
    """
    key_train, key_attack = jax.random.split(key)
    recipe, classifier = problem.recipe, problem.classifier
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    quiet = {"report": lambda epoch: None, "progress": lambda: None, "clock": nullcontext}
    variables, masks, scored = way(key_train, replace(problem, recipe=recipe, **quiet))
    view = views(classifier, (variables, masks))[VIEW]
    attack = APGD(problem.attack.eps, STEPS, loss="margin", norm=problem.attack.norm)
    total, count = 0.0, 0
    for number, (images, labels, real) in enumerate(batches(problem)):
        key_batch = jax.random.fold_in(key_attack, number)
        attacked = attack(*view, images, labels, key_batch)
        for version in (images, attacked):
            each = criteria.losses(classifier, variables, masks, version, labels, key_batch)
            total += float(each[:real].sum())
        count += real
    loss = total / count
    problem.tried(loss, masking.widths(problem.architecture, masks))
    steps = recipe.epochs * steps_per_epoch(recipe, len(problem.train.labels))
    trained = steps * min(recipe.batch_size, len(problem.train.labels))
    trained *= 1 + (recipe.adversarial.gradients if recipe.adversarial else 0)
    spent = Passes(trained + count * (2 + attack.gradients), trained + count * attack.gradients)
    return loss, spent + scored
