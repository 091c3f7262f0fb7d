"""Comparison of candidates by their loss after fine-tuning instead of right after pruning."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.base import unchecked
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.pruning import budget, criteria
from ccsrp_jax.pruning.criteria import Criterion
from ccsrp_jax.pruning.problem import Callbacks, Passes, Problem, Pruned, batches, finetune
from ccsrp_jax.training.batches import steps_per_epoch

PruneFunction = Callable[[Array, Problem], Pruned]

# The attack on fine-tuned candidates: the strongest of the quick suite.
ATTACK_STEPS = 25
ATTACK_SURROGATE = Surrogate("atan", 0.5)


def finetune_once(key: Array, problem: Problem, *, masks: MaskTree) -> Pruned:
    """The problem's network with these masks, fine-tuned with all of the recipe's epochs."""
    variables, _ = finetune(key, problem, problem.variables, masks)
    return Pruned(variables, masks)


def score_after_finetuning(
    key: Array, problem: Problem, prune: PruneFunction, *, epochs: int | None = None
) -> tuple[float, Passes]:
    """Mean loss on clean plus that on attacked search images, after pruning and fine-tuning.

    The fine-tuned weights are discarded, and their training is counted as search.

    Args:
      key: of training and attack; the same for all candidates that are to be compared.
      problem: its network is pruned and trained with its recipe.
      prune: prunes and trains, for instance `partial(finetune_once, masks=masks)`.
      epochs: of training; by default all of the recipe.

    Returns:
      The loss, and the passes taken by pruning, training and scoring.
    """
    key_train, key_attack = jax.random.split(key)
    recipe, classifier = problem.recipe, problem.classifier
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    callbacks = Callbacks(on_candidate=problem.callbacks.on_candidate)
    variables, masks, spent = prune(key_train, replace(problem, recipe=recipe, callbacks=callbacks))
    attacked = classifier.with_backward(ATTACK_SURROGATE)
    attack = APGD(problem.attack.eps, ATTACK_STEPS, loss="margin", norm=problem.attack.norm)
    total, count = 0.0, 0
    for number, (images, labels, real) in enumerate(batches(problem)):
        key_batch = jax.random.fold_in(key_attack, number)
        adversarial = unchecked(attack)(attacked, (variables, masks), images, labels, key_batch)
        for version in (images, adversarial):
            each = criteria.losses(classifier, variables, masks, version, labels, key_batch)
            total += float(each[:real].sum())
        count += real
    loss = total / count
    problem.callbacks.on_candidate(loss, masking.widths(problem.architecture, masks))
    trained = _training_passes(replace(problem, recipe=recipe))
    scored = Passes(count * (2 + attack.gradients), count * attack.gradients)
    return loss, trained + scored + spent


def _training_passes(problem: Problem) -> Passes:
    """Passes of training with all epochs of the recipe, including those of its attack."""
    recipe, images = problem.recipe, len(problem.train.labels)
    steps = recipe.epochs * steps_per_epoch(recipe, images)
    passes = steps * min(recipe.batch_size, images)
    passes *= 1 + (recipe.adversarial.gradients if recipe.adversarial else 0)
    return Passes(passes, passes)


class MaskScores:
    """`score_after_finetuning` of masks, cached, so that equal masks are trained only once.

    Attributes:
      passes: taken by all scores so far.
    """

    def __init__(self, key: Array, problem: Problem, *, epochs: int | None = None):
        self.passes = Passes()
        self._key, self._problem, self._epochs = key, problem, epochs
        self._losses: dict[bytes, float] = {}

    def __call__(self, masks: MaskTree) -> float:
        name = b"".join(np.packbits(np.asarray(mask) > 0).tobytes() for mask in masks.values())
        if name not in self._losses:
            prune = partial(finetune_once, masks=masks)
            self._losses[name], spent = score_after_finetuning(
                self._key, self._problem, prune, epochs=self._epochs
            )
            self.passes += spent
        return self._losses[name]


def best_of(
    key: Array, problem: Problem, *, criterion: Criterion = criteria.at_random, candidates: int = 10
) -> Pruned:
    """The best of several masks by a random criterion, compared after fine-tuning.

    A baseline for `ccsrp_widths`: comparing candidates after training, without evolution.

    Args:
      key: of masks and training.
      problem: the trained network and its budget.
      criterion: from `criteria`, called with a new key for each candidate; one that ignores its
        key gives the same masks every time.
      candidates: number of masks that are compared.
    """
    key_draw, key_candidates, key_train = jax.random.split(key, 3)
    dense, passes, scored = masking.ones(problem.architecture), Passes(), []
    problem.check_reachable(dense)
    for number in range(candidates):
        key_score = jax.random.fold_in(key_draw, number)
        scores, spent = criterion(key_score, problem, problem.variables, dense)
        ranking = budget.uniform_ranking(scores)
        masks = budget.prune_to_budget(ranking, problem.cost(), problem.limit())
        loss, more = score_after_finetuning(
            key_candidates, problem, partial(finetune_once, masks=masks)
        )
        scored.append((loss, masks))
        passes += spent + more
    _, masks = min(scored, key=lambda entry: entry[0])
    return finetune_once(key_train, problem, masks=masks)._replace(search=passes)
