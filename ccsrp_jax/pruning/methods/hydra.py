"""HYDRA: importance scores learned by gradient descent on the robust loss.

Every filter (or weight) has a score. The weights are frozen, those of the k largest |score| in
a layer are kept, and a straight-through estimator passes the mask's gradient to the scores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ccsrp_jax.attacks.base import unchecked
from ccsrp_jax.data.augmentation import alternating_flips, augment
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import kernel_shapes
from ccsrp_jax.networks.classifier import key_kwargs
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.criteria import l1
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, finetune, weight_masks
from ccsrp_jax.training.batches import full_batch, shuffled_batches, steps_per_epoch
from ccsrp_jax.utils.fields import POSITIVE, Limits, check_fields


@dataclass(frozen=True)
class ScoreSearch:
    """Settings of the search for importance scores.

    Attributes:
      epochs: passes over the training images, in addition to the recipe's epochs of fine-tuning;
        by default a fifth of these, the source's ratio (20 to 100).
      learning_rate: initial rate of SGD on the scores, with cosine decay to 0.
      momentum: of SGD.
      robust: minimize the loss on attacked training images (by the recipe's attack, or by the
        problem's if the recipe trains on clean images) instead of that on clean ones.
    """

    epochs: int | None = None
    learning_rate: float = 0.1
    momentum: float = 0.9
    robust: bool = True

    def __post_init__(self) -> None:
        limits = {"epochs": Limits(0), "learning_rate": POSITIVE, "momentum": Limits(0, 1)}
        check_fields(self, "search for scores:", limits)


def hydra(key: Array, problem: Problem, *, search: ScoreSearch = ScoreSearch()) -> Pruned:
    """Removes filters, the same share of every group; see `hydra_weights`.

    The paper and its released code score single weights. One score for a filter is our extension:
    its mask gates the filter's spikes, and its initial value is the filter's mean absolute weight.

    Args:
      key: of the search and of training.
      problem: the trained network and its budget.
      search: settings of the search for scores.

    References:
      Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, NeurIPS 2020,
      arXiv 2002.10509.
    """
    dense, measure = masking.ones(problem.architecture), problem.target.measure
    return _hydra(key, problem, dense, measure, search)


def hydra_weights(key: Array, problem: Problem, *, search: ScoreSearch = ScoreSearch()) -> Pruned:
    """Removes single weights, the same share of every layer but the classifier.

    From the paper and the released code: frozen weights, one score per weight, the top k of
    |score| in every layer with a straight-through gradient, scaled initial scores
    (`initial_scores`), SGD with cosine decay, the same k in every layer, then fine-tuning with
    fixed masks. Unlike there, the classifier is not pruned, batch norm is in inference mode during
    the search, so that no variable changes, scores have no weight decay, and the robust loss is
    always the cross-entropy of attacked images, also if the recipe uses TRADES.

    Args:
      key, problem, search: as in `hydra`.
    """
    return _hydra(key, problem, weight_masks(problem), problem.weight_measure, search)


def _hydra(
    key: Array, problem: Problem, dense: MaskTree, measure: str, search: ScoreSearch
) -> Pruned:
    problem.check_reachable(dense)
    key_search, key_train = jax.random.split(key)
    cost, limit = problem.cost(measure), problem.limit(measure=measure)

    def masks_of(scores: Mapping[str, Array]) -> MaskTree:
        sizes = {name: np.abs(s) for name, s in scores.items()}
        return budget.prune_to_budget(budget.uniform_ranking(sizes), cost, limit)

    scores = initial_scores(problem, dense)
    counts = {name: int(mask.sum()) for name, mask in masks_of(scores).items()}
    scores, passes = search_scores(key_search, problem, scores, counts, search)
    masks = masks_of(scores)
    variables, _ = finetune(key_train, problem, problem.variables, masks)
    return Pruned(variables, masks, passes)


def initial_scores(problem: Problem, masks: MaskTree) -> dict[str, Array]:
    """sqrt(6 / fan-in) theta / max |theta| in every layer.

    theta are the weights or, for the mask of a group, the mean absolute weights of its filters.
    """
    filters, _ = l1(jax.random.key(0), problem, problem.variables, {})
    shapes, scores = kernel_shapes(problem.architecture), {}
    for name in masks:
        layer = masking.layer_of(name)
        theta = filters[name] if layer == name else problem.variables["params"][layer]["kernel"]
        scale = math.sqrt(6 / math.prod(shapes[layer][:-1]))
        scores[name] = scale * jnp.asarray(theta) / jnp.maximum(jnp.abs(theta).max(), 1e-12)
    return scores


def search_scores(
    key: Array,
    problem: Problem,
    scores: Mapping[str, Array],
    counts: Mapping[str, int],
    search: ScoreSearch,
) -> tuple[Mapping[str, Array], Passes]:
    """Scores after gradient descent on training images, and the passes taken.

    Args:
      key: for shuffling, augmentation and the attack.
      problem: its weights do not change.
      scores: initial scores, with the names and shapes of masks.
      counts: by name, how many of the largest absolute scores are kept.
      search: settings of the search.
    """
    recipe, train, classifier = problem.recipe, problem.train, problem.classifier
    epochs = max(recipe.epochs // 5, 1) if search.epochs is None else search.epochs
    attack = (recipe.adversarial or problem.attack) if search.robust else None
    count = len(train.labels)
    steps = epochs * steps_per_epoch(recipe, count)
    images, labels = (jnp.asarray(part) for part in train)
    velocity = jax.tree.map(jnp.zeros_like, dict(scores))
    scores = dict(scores)
    for epoch in range(epochs):
        for step, key_step, indices in shuffled_batches(key, recipe, count, epoch):
            key_augment, key_attack, key_pass = jax.random.split(key_step, 3)
            flips = alternating_flips(key, indices, epoch, count)
            kind = problem.augmentation
            x = augment(key_augment, to_unit_range(images[indices]), kind=kind, flips=flips)
            y = labels[indices]
            if attack:
                masks = straight_through(scores, counts)
                x = unchecked(attack)(classifier, (problem.variables, masks), x, y, key_attack)
            rate = search.learning_rate * 0.5 * (1 + math.cos(math.pi * (step / steps)))
            scores, velocity = _step(
                classifier,
                problem.variables,
                scores,
                velocity,
                counts,
                x,
                y,
                rate,
                search.momentum,
                key_pass,
            )
    passes = steps * full_batch(recipe, count) * (1 + (attack.gradients if attack else 0))
    return scores, Passes(passes, passes)


@jax.jit
def straight_through(
    scores: Mapping[str, Array], counts: Mapping[str, int | Array]
) -> dict[str, Array]:
    """Masks of the largest |score|, with a straight-through gradient for |score|."""
    masks = {}
    for name, values in scores.items():
        size = jnp.abs(values)
        least = jnp.sort(size.ravel())[size.size - counts[name]]
        hard = jax.lax.stop_gradient(size >= least).astype(size.dtype)
        masks[name] = hard + (size - jax.lax.stop_gradient(size))
    return masks


@partial(jax.jit, static_argnums=0)
def _step(classifier, variables, scores, velocity, counts, images, labels, rate, momentum, key):
    def loss(scores) -> Float[Array, ""]:
        masks = straight_through(scores, counts)
        logits = classifier((variables, masks), images, **key_kwargs(classifier, key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.grad(loss)(scores)
    velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
    return jax.tree.map(lambda s, v: s - rate * v, scores, velocity), velocity
