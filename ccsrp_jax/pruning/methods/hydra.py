"""HYDRA: what to prune is learned, by gradient descent of the robust loss on importance scores.

Every filter (or weight) has a score. The weights are frozen, the k highest |score| of a layer are
kept, and the gradient for the mask goes straight through to the scores.
"""

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ccsrp_jax.data.augmentation import augment
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import kernel_shapes
from ccsrp_jax.networks.classifier import key_kwargs
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.criteria import l1
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, finetune, weight_masks
from ccsrp_jax.training.batches import full_batch, shuffled_batches, steps_per_epoch
from ccsrp_jax.utils.errors import check_number


def hydra(
    key: Array,
    problem: Problem,
    *,
    epochs: int | None = None,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    robust: bool = True,
) -> Pruned:
    """Removes filters, the same share of every group; see `hydra_weights`.

    The released code and the paper score single weights. One score a filter is our reading of it:
    its mask gates the filter's spikes, and it starts from the mean absolute weight.

    Args:
      key: of the search and of training.
      problem: see `problem`.
      epochs: of the search for scores, by default a fifth of the recipe's, as the source's 20 to
        100; the recipe's are all for fine-tuning.
      learning_rate, momentum: of SGD on the scores; a cosine takes the first to 0.
      robust: on attacked training images (by the recipe's attack, or by the problem's where the
        recipe trains on clean ones), else on clean ones.

    References:
      Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, NeurIPS 2020,
      arXiv 2002.10509.
    """
    whole, measure = masking.ones(problem.architecture), problem.target.measure
    return _hydra(key, problem, whole, measure, epochs, learning_rate, momentum, robust)


def hydra_weights(
    key: Array,
    problem: Problem,
    *,
    epochs: int | None = None,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    robust: bool = True,
) -> Pruned:
    """Removes single weights, the same share of every layer but the classifier.

    From the paper and the released code: frozen weights, one score a weight, top k of |score| in
    every layer with a straight-through gradient, the scaled start (`start_scores`), SGD with a
    cosine, the same k in every layer, then fine-tuning with frozen masks. Otherwise than there:
    the classifier stays whole, batch norm is in inference mode in the search, so that it leaves
    all variables as they are, scores have no weight decay, and the robust loss is always the
    cross-entropy of attacked images, under a recipe of TRADES too.

    Args:
      key, problem, epochs, learning_rate, momentum, robust: as in `hydra`.
    """
    whole, measure = weight_masks(problem), problem.weight_measure
    return _hydra(key, problem, whole, measure, epochs, learning_rate, momentum, robust)


def _hydra(key, problem, whole, measure, epochs, learning_rate, momentum, robust):
    key_search, key_train = jax.random.split(key)
    cost, limit = problem.cost(measure), problem.limit(measure=measure)

    def chosen(scores: Mapping[str, Array]) -> MaskTree:
        sizes = {name: np.abs(s) for name, s in scores.items()}
        return budget.prune_to_budget(budget.uniform_ranking(sizes), cost, limit)

    scores = start_scores(problem, whole)
    counts = {name: int(mask.sum()) for name, mask in chosen(scores).items()}
    scores, passes = search_scores(
        key_search,
        problem,
        scores,
        counts,
        epochs=max(problem.recipe.epochs // 5, 1) if epochs is None else epochs,
        learning_rate=learning_rate,
        momentum=momentum,
        robust=robust,
    )
    masks = chosen(scores)
    variables, _ = finetune(key_train, problem, problem.variables, masks)
    return Pruned(variables, masks, passes)


def start_scores(problem: Problem, masks: MaskTree) -> dict[str, Array]:
    """sqrt(6 / fan-in) theta / max |theta| in every layer, theta the weights or, for the mask of
    a group, the mean absolute weight of its filters."""
    filters, _ = l1(jax.random.key(0), problem, problem.variables, {})
    shapes, scores = kernel_shapes(problem.architecture), {}
    for name in masks:
        layer = name.removesuffix(masking.KERNEL)
        theta = filters[name] if layer == name else problem.variables["params"][layer]["kernel"]
        scale = math.sqrt(6 / math.prod(shapes[layer][:-1]))
        scores[name] = scale * jnp.asarray(theta) / jnp.maximum(jnp.abs(theta).max(), 1e-12)
    return scores


def search_scores(
    key: Array,
    problem: Problem,
    scores: Mapping[str, Array],
    counts: Mapping[str, int],
    *,
    epochs: int,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    robust: bool = True,
) -> tuple[dict[str, Array], Passes]:
    """Scores after gradient descent on training images, and the passes that it took.

    Args:
      key: for shuffling, augmentation and the attack.
      problem: its weights stay as they are.
      scores: to start from, named and shaped as masks.
      counts: by name, how many of the highest absolute scores are kept.
      epochs, learning_rate, momentum, robust: as in `hydra`.
    """
    check_number("epochs of the search", epochs, 0)
    check_number("learning_rate of the search", learning_rate, 0, above=True)
    check_number("momentum of the search", momentum, 0, 1)
    recipe, train, classifier = problem.recipe, problem.train, problem.classifier
    attack = (recipe.adversarial or problem.attack) if robust else None
    count = len(train.labels)
    steps, batch = steps_per_epoch(recipe, count), full_batch(recipe, count)
    images, labels = (jnp.asarray(part) for part in train)
    scores = dict(scores)
    velocity = jax.tree.map(jnp.zeros_like, scores)
    for epoch in range(epochs):
        for step, key_step, indices in shuffled_batches(key, recipe, count, epoch):
            key_augment, key_attack, key_pass = jax.random.split(key_step, 3)
            x = augment(key_augment, to_unit_range(images[indices]), kind=problem.augmentation)
            y = labels[indices]
            if attack:
                masks = straight_through(scores, counts)
                x = attack(classifier, (problem.variables, masks), x, y, key_attack)
            progress = step / (epochs * steps)
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            scores, velocity = _step(
                classifier,
                problem.variables,
                scores,
                velocity,
                counts,
                x,
                y,
                rate,
                momentum,
                key_pass,
            )
    each = epochs * steps * batch * (1 + (attack.gradients if attack else 0))
    return scores, Passes(each, each)


@jax.jit
def straight_through(
    scores: Mapping[str, Array], counts: Mapping[str, int | Array]
) -> dict[str, Array]:
    """Masks of the highest |score|; their gradient is passed on to |score| unchanged."""
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

    slopes = jax.grad(loss)(scores)
    velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, slopes)
    return jax.tree.map(lambda s, v: s - rate * v, scores, velocity), velocity
