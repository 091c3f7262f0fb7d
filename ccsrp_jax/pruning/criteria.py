"""Baselines: a score for every filter or weight, an allocation over layers, and fine-tuning.

A criterion ranks the filters of a layer; an allocation divides the budget among layers. Recent
work finds that the allocation and fine-tuning matter more than the criterion (Beyond Pruning
Criteria, arXiv 2410.15176). So each criterion can be combined with each allocation, in one shot
or in rounds.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ccsrp_jax.attacks.base import unchecked
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import channel_groups, groups, split_channels
from ccsrp_jax.networks.classifier import key_kwargs
from ccsrp_jax.networks.interval_bounds import ball, propagate
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.budget import Scores
from ccsrp_jax.pruning.problem import (
    Passes,
    Problem,
    Pruned,
    batches,
    epochs_per_round,
    finetune,
    weight_masks,
)
from ccsrp_jax.utils.errors import InputError, unknown

Criterion = Callable[[Array, Problem, dict, MaskTree], tuple[Scores, Passes]]


Allocation = Literal["uniform", "global", "sensitivity"]


PERTURBATION = 0.05  # norm of the change of weights in `sensitivity`, relative to their norm


def by_score(
    key: Array,
    problem: Problem,
    *,
    criterion: Criterion,
    allocation: Allocation | Mapping[str, float] = "uniform",
    rounds: int = 1,
    early: int | None = None,
) -> Pruned:
    """Removes filters by a score.

    Args:
      key: of the criterion and of training.
      problem: the trained network and its budget.
      criterion: returns scores of filters by group; the lowest are removed.
      allocation: `uniform`, all groups lose the same share of their filters; `global`, one ranking
        for all groups; `sensitivity`, a group loses a share in inverse proportion to its
        `sensitivity`; or a mapping from group to the share that it keeps, relative to the others.
      rounds: of pruning and fine-tuning; scores are computed again in each round.
      early: epochs after every round but the last; by default all rounds have equal shares.

    Raises:
      InputError: the target cannot be met, unknown allocation, or fewer epochs than rounds.
    """
    given = isinstance(allocation, Mapping)
    if not given and allocation not in ("uniform", "global", "sensitivity"):
        raise unknown("allocation", allocation, ("uniform", "global", "sensitivity"))
    variables, masks, search = problem.variables, masking.ones(problem.architecture), Passes()
    problem.check_reachable(masks)
    for number, epochs in enumerate(epochs_per_round(problem.recipe.epochs, rounds, early)):
        key_score, key_layers, key_train = jax.random.split(jax.random.fold_in(key, number), 3)
        scores, passes = criterion(key_score, problem, variables, masks)
        search += passes
        if given:
            scores = budget.proportional_ranking(_pruned_first(scores, masks), allocation)
        elif allocation == "sensitivity":
            measured, passes = sensitivity(key_layers, problem, variables, masks)
            search += passes
            mean = np.mean(list(measured.values()))
            speeds = {g: mean / max(s, 1e-9) for g, s in measured.items()}
            scores = budget.uniform_ranking(_pruned_first(scores, masks), speeds)
        elif allocation == "uniform":
            scores = budget.uniform_ranking(_pruned_first(scores, masks))
        cost = problem.cost(variables=variables)
        limit = problem.limit((number + 1) / rounds)
        masks = budget.prune_to_budget(scores, cost, limit, before=masks)
        variables, _ = finetune(key_train, problem, variables, masks, epochs=epochs)
    return Pruned(variables, masks, search)


def _pruned_first(scores: Scores, masks: MaskTree) -> Scores:
    """The scores, with those of filters that are already pruned set below all others."""
    least = min(float(np.min(values)) for values in scores.values()) - 1
    return {name: np.where(np.asarray(masks[name]) > 0, s, least) for name, s in scores.items()}


def magnitude(key: Array, problem: Problem, *, rounds: int = 1, early: int | None = None) -> Pruned:
    """Removes the weights of smallest magnitude, ranked over all layers but the classifier.

    Dense hardware saves no MACs by single weights, so the target's fraction refers to parameters
    (or to SynOps).
    """
    variables, masks = problem.variables, weight_masks(problem)
    problem.check_reachable(masks)
    measure = problem.weight_measure
    for number, epochs in enumerate(epochs_per_round(problem.recipe.epochs, rounds, early)):
        scores = {name: np.abs(masking.masked_kernel(variables, name)) for name in masks}
        limit = problem.limit((number + 1) / rounds, measure)
        masks = budget.prune_to_budget(
            scores, problem.cost(measure, variables), limit, before=masks
        )
        key_train = jax.random.fold_in(key, number)
        variables, _ = finetune(key_train, problem, variables, masks, epochs=epochs)
    return Pruned(variables, masks)


def at_random(key: Array, problem: Problem, variables: dict, masks: MaskTree):
    """A uniform random score for every filter."""
    scores = {}
    for number, (name, width) in enumerate(groups(problem.architecture).items()):
        scores[name] = np.asarray(jax.random.uniform(jax.random.fold_in(key, number), (width,)))
    return scores, Passes()


def l1(key: Array, problem: Problem, variables: dict, masks: MaskTree):
    """Mean absolute weight of a filter, over all layers whose outputs are in its group.

    Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, take the sum; the mean makes
    layers comparable.
    """
    layers = [node.name for node in problem.architecture.nodes if node.opens_group]
    return _mean_by_group(problem, variables, layers, "kernel"), Passes()


def gamma(key: Array, problem: Problem, variables: dict, masks: MaskTree):
    """Absolute scale of batch norm (Liu et al., Network Slimming, ICCV 2017).

    Unlike there, the network is trained without an L1 penalty on the scale. Filters of a group
    without batch norm have scale 1.
    """
    norms = [node.name for node in problem.architecture.nodes if isinstance(node, Norm)]
    scores = _mean_by_group(problem, variables, norms, "scale")
    widths = groups(problem.architecture)
    return {name: scores.get(name, np.ones(n)) for name, n in widths.items()}, Passes()


def _mean_by_group(problem, variables, layers, parameter):
    """By group, for each filter, the mean absolute value of a parameter over these layers."""
    architecture, by_group = problem.architecture, {}
    for layer in layers:
        values = np.abs(np.asarray(variables["params"][layer][parameter]))
        values = values.reshape(-1, values.shape[-1]).mean(0)
        for group, part in split_channels(architecture, layer, values):
            if group in groups(architecture):
                by_group.setdefault(group, []).append(part)
    return {name: np.mean(parts, axis=0) for name, parts in by_group.items()}


def spike_rate(key: Array, problem: Problem, variables: dict, masks: MaskTree):
    """Firing rate of a filter: spikes, averaged over search images, positions and time steps."""
    total, count = {}, 0
    for images, _, real in batches(problem):
        rates = _rates(problem.architecture, variables, masks, images[:real], key)
        count += real
        for name, rate in rates.items():
            total[name] = total.get(name, 0) + real * np.asarray(rate)
    return {name: rate / count for name, rate in total.items()}, Passes(forward=count)


@partial(jax.jit, static_argnums=0)
def _rates(architecture, variables, masks, images, key):
    network = SpikingNetwork(architecture)
    result: Any = network.apply(variables, images, masks, activity=True, key=key)
    _, active = result
    return _mean_by_filter(architecture, active.spikes)


def _mean_by_filter(architecture, values):
    """By group, for each filter, the mean of values of `Spike` nodes, all nodes weighted alike."""
    means = {}
    for layer, value in values.items():
        for group, part in split_channels(architecture, layer, value):
            if group in groups(architecture):
                means.setdefault(group, []).append(part.reshape(-1, part.shape[-1]).mean(0))
    return {name: sum(parts) / len(parts) for name, parts in means.items()}


def stability(key: Array, problem: Problem, variables: dict, masks: MaskTree):
    """Minus the share of a filter's neurons whose spike is undecided in the ball of the attack.

    A neuron is unstable at a step if the interval bounds of its spike are 0 and 1; the share is
    over search images, positions and time steps. Li et al., Can Pruning Improve Certified
    Robustness of Neural Networks?, TMLR 2023, find that pruning helps certificates by removing
    unstable ReLUs; the criterion is ours. The bounds count as two forward passes.

    Raises:
      InputError: the network has no interval bounds, or the attack is not in L-infinity.
    """
    attack = problem.attack
    if attack.norm != "linf":
        raise InputError(
            f"the attack's norm is {attack.norm}, and stability is measured in an L-infinity ball: "
            "give an attack of norm linf."
        )
    total, count = {}, 0
    for images, _, real in batches(problem):
        shares = _unstable(problem.architecture, variables, masks, images[:real], attack.eps)
        count += real
        for name, share in shares.items():
            total[name] = total.get(name, 0) + real * np.asarray(share)
    return {name: -share / count for name, share in total.items()}, Passes(forward=2 * count)


@partial(jax.jit, static_argnums=0)
def _unstable(architecture, variables, masks, images, eps):
    bounds = propagate(architecture, variables, ball(images, eps), masks)
    spikes = {name: bounds.values[name] for name in bounds.potentials}
    undecided = {name: (each.lower != each.upper) * 1.0 for name, each in spikes.items()}
    return _mean_by_filter(architecture, undecided)


def taylor(key: Array, problem: Problem, variables: dict, masks: MaskTree):
    """Sum over images of the squared gradient of the loss with respect to a filter's gate.

    To first order, the squared change of the loss when the filter is removed (Molchanov et al.,
    CVPR 2019), here on clean and on attacked search images.
    """
    total, passes = {}, Passes()
    network = problem.classifier, variables
    for number, (images, labels, real) in enumerate(batches(problem)):
        images, labels = images[:real], labels[:real]
        key_attack = jax.random.fold_in(key, number)
        attacked = unchecked(problem.attack)(
            problem.classifier, (variables, masks), images, labels, key_attack
        )
        for version in (images, attacked):
            sums = _squared_gradients(*network, masks, version, labels, key_attack)
            for name, value in sums.items():
                total[name] = total.get(name, 0) + np.asarray(value)
        both = real * (2 + problem.attack.gradients)
        passes += Passes(both, both)
    return total, passes


@partial(jax.jit, static_argnums=0)
def _squared_gradients(classifier, variables, masks, images, labels, key):
    """By group, squared gradients of each image's loss with respect to the gates, summed."""

    def loss(masks, image, label):
        logits = classifier((variables, masks), image[None], **key_kwargs(classifier, key))
        return optax.softmax_cross_entropy_with_integer_labels(logits[0], label)

    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(masks, images, labels)
    return {name: (gradient**2).sum(0) for name, gradient in gradients.items()}


def sensitivity(key: Array, problem: Problem, variables: dict, masks: MaskTree):
    """By group, the increase of the attacked loss under an adversarial perturbation of its weights.

    A layer's weights are moved along the gradient of the loss on attacked search images, by
    `PERTURBATION` times their norm. Sensitive layers lose fewer filters. This is our reading of
    the abstract of Module Robust Sensitivity (arXiv 2410.15176), whose formula we do not know.

    Returns:
      Sensitivities relative to their mean, clipped to [1/4, 4], and the passes taken.

    Raises:
      InputError: the loss is not finite.
    """
    architecture, segments = problem.architecture, channel_groups(problem.architecture)
    [(images, labels, real), *_] = batches(problem)
    network = problem.classifier, (variables, masks)
    attacked = unchecked(problem.attack)(*network, images, labels, key)
    base, gradients = _loss_and_gradients(
        problem.classifier, variables, masks, attacked, labels, key
    )
    rises = {}
    for group in groups(architecture):
        layers = [
            node.name
            for node in architecture.nodes
            if node.opens_group and segments[node.name][0].group == group
        ]
        params = dict(variables["params"])
        for layer in layers:
            weights, gradient = params[layer]["kernel"], gradients[layer]["kernel"]
            step = PERTURBATION * jnp.linalg.norm(weights) / (jnp.linalg.norm(gradient) + 1e-12)
            params[layer] = {**params[layer], "kernel": weights + step * gradient}
        moved = {**variables, "params": params}
        loss = _loss(problem.classifier, moved, masks, attacked, labels, key)
        rises[group] = float(loss - base)
    values = np.array(list(rises.values()))
    if not np.isfinite(values).all():
        raise InputError("the attacked loss is not finite: train with a lower learning rate.")
    relative = np.clip(values / max(values.clip(0).mean(), 1e-12), 0.25, 4)
    each = problem.attack.gradients + 1
    count = real * (each + len(rises))
    return dict(zip(rises, relative, strict=True)), Passes(count, real * each)


@partial(jax.jit, static_argnums=0)
def losses(classifier, variables, masks, images, labels, key):
    """Cross-entropy of a masked network for each image, (B,)."""
    logits = classifier((variables, masks), images, **key_kwargs(classifier, key))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@partial(jax.jit, static_argnums=0)
def _loss(classifier, variables, masks, images, labels, key):
    return losses(classifier, variables, masks, images, labels, key).mean()


@partial(jax.jit, static_argnums=0)
def _loss_and_gradients(classifier, variables, masks, images, labels, key):
    def loss(params):
        return _loss(classifier, {**variables, "params": params}, masks, images, labels, key)

    return jax.value_and_grad(loss)(variables["params"])
