"""Lottery tickets by iterative magnitude pruning with rewinding; u-Tickets with balanced workload.

Weights are rewound to the trained network that all methods are given (late rewinding).
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import kernel_shapes
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.nodes import IMAGE
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.budget import Scores
from ccsrp_jax.pruning.criteria import l1
from ccsrp_jax.pruning.problem import Problem, Pruned, epochs_per_round, finetune, weight_masks
from ccsrp_jax.utils.errors import check_number, unknown

Grouping = Literal["sata", "systolic"]


SHARE_PER_ROUND = 0.25  # of the remaining weights, removed in each of the source's rounds


def lottery(
    key: Array,
    problem: Problem,
    *,
    rounds: int | None = None,
    last: float = 0.5,
    structured: bool = False,
) -> Pruned:
    """Iterative magnitude pruning with late rewinding.

    Each round trains the masked network from `problem.variables`, removes the weights that are
    then smallest, ranked over all layers but the classifier, and rewinds all weights to
    `problem.variables`. The last training starts there too, with the final masks.

    The source prunes single weights over 15 rounds of full training, and rewinds to epoch 20 of
    300. Here all rounds share the recipe's epochs, and each round reduces the cost by the same
    factor.

    Args:
      key: of training.
      problem: the trained network and its budget, for weights in `problem.weight_measure`.
      rounds: by default such that each removes a quarter of the remaining weights (the source's
        share), but no more than there are epochs for.
      last: share of the epochs for the last training.
      structured: remove filters, by their mean absolute weight, instead of weights (ours).

    Raises:
      InputError: the target cannot be met, or more rounds than epochs.

    References:
      Kim et al., Exploring Lottery Ticket Hypothesis in Spiking Neural Networks, ECCV 2022,
      arXiv 2207.01382.
    """
    whole = masking.ones(problem.architecture) if structured else weight_masks(problem)
    measure = problem.target.measure if structured else problem.weight_measure
    cost = problem.cost(measure)

    def prune(key: Array, scores: Scores, limit: float) -> MaskTree:
        return budget.prune_to_budget(scores, cost, limit)

    return _prune_and_rewind(key, problem, whole, measure, prune, rounds, last)


def u_ticket(
    key: Array,
    problem: Problem,
    *,
    rounds: int | None = None,
    last: float = 0.5,
    grouping: Grouping = "sata",
    n_pe: int = 16,
) -> Pruned:
    """Lottery tickets with equal workload for all processing elements of an accelerator.

    As `lottery`, but in every round `balance` equalizes the workload of each convolution that
    does not read the image. This adds weights, as means are rounded up, so a round removes more
    weights by magnitude, until the balanced network meets the round's budget, to within the
    effect of one removal after balancing. The source accepts the added weights. Its early
    reduction of time steps is omitted, as T is part of the problem.

    Args:
      key: of training, and of the random choices of `balance`.
      problem, rounds, last: as in `lottery`.
      grouping, n_pe: as in `balance`.

    References:
      Yin et al., Workload-Balanced Pruning for Sparse Spiking Neural Networks, IEEE TETCI 2024,
      arXiv 2302.06746.
    """
    nodes, shapes = problem.architecture.nodes, kernel_shapes(problem.architecture)
    convs = [
        node.name
        for node in nodes
        if node.opens_group and len(shapes[node.name]) == 4 and node.input != IMAGE
    ]
    cost, whole = problem.cost(problem.weight_measure), weight_masks(problem)
    names = [masking.kernel(layer) for layer in convs]

    def balanced(masks: MaskTree, noise: Mapping[str, np.ndarray]) -> MaskTree:
        changed = {
            name: balance(masks[name], draws, grouping=grouping, n_pe=n_pe)
            for name, draws in noise.items()
        }
        return {**masks, **changed}

    def prune(key: Array, scores: Scores, limit: float) -> MaskTree:
        noise = {
            name: np.asarray(jax.random.uniform(each, scores[name].shape))
            for name, each in zip(names, jax.random.split(key, len(names)), strict=True)
        }
        cost_with = lambda masks: cost(balanced(masks, noise))  # noqa: E731
        return balanced(budget.prune_to_budget(scores, cost_with, limit), noise)

    same = {name: np.zeros(np.shape(whole[name])) for name in names}  # draws do not change counts
    problem.check_reachable(whole, cost_of=lambda masks: cost(balanced(masks, same)))
    return _prune_and_rewind(key, problem, whole, problem.weight_measure, prune, rounds, last)


def _prune_and_rewind(
    key: Array,
    problem: Problem,
    masks: MaskTree,
    measure: str,
    prune: Callable[[Array, Scores, float], MaskTree],
    rounds: int | None,
    last: float,
) -> Pruned:
    check_number("last", last, 0, 1)
    problem.check_reachable(masks)
    total = problem.recipe.epochs
    final = min(max(round(last * total), 1), total)
    if rounds is None:
        needed = math.log(problem.target.fraction) / math.log(1 - SHARE_PER_ROUND)
        rounds = max(min(math.ceil(needed), total - final), 1)
    for number, epochs in enumerate(epochs_per_round(total - final, rounds)):
        key_train, key_prune = jax.random.split(jax.random.fold_in(key, number))
        trained, _ = finetune(key_train, problem, problem.variables, masks, epochs=epochs)
        limit = problem.limit((number + 1) / rounds, measure)
        masks = prune(key_prune, magnitudes(problem, trained, masks), limit)
    key_last = jax.random.fold_in(key, rounds)
    variables, _ = finetune(key_last, problem, problem.variables, masks, epochs=final)
    return Pruned(variables, masks)


def magnitudes(problem: Problem, variables: dict, masks: MaskTree) -> Scores:
    """By mask, absolute weights or, for filters, their mean; -1 where the mask is 0."""
    filters, _ = l1(jax.random.key(0), problem, variables, masks)
    scores = {}
    for name, mask in masks.items():
        layer = masking.layer_of(name)
        size = filters[name] if layer == name else np.abs(variables["params"][layer]["kernel"])
        scores[name] = np.where(np.asarray(mask) > 0, size, -1.0)
    return scores


def balance(
    mask: np.ndarray | Array,
    noise: np.ndarray | Array,
    *,
    grouping: Grouping = "sata",
    n_pe: int = 16,
) -> Float[np.ndarray, "..."]:
    """A weight mask with equally many weights for all processing elements of a group.

    Each element gets the group's mean workload, rounded up: random masked weights are restored if
    it has fewer, random kept weights are removed if it has more (the source's strong mode). An
    element whose part of the kernel has fewer weights than the mean keeps all of them.

    Args:
      mask: of a kernel, (k, k, in, out).
      noise: uniform in [0, 1), of the same shape; weights of high noise are kept or restored.
      grouping: `sata`, n_pe consecutive filters form a group, one filter per element; `systolic`,
        every filter is a group, and its input channels are divided among the elements.
      n_pe: processing elements; a group has fewer if there are fewer filters or inputs.

    Raises:
      InputError: unknown grouping, or `n_pe` below 1.
    """
    element, group = _elements_and_groups(mask.shape, grouping, n_pe)
    bits = np.asarray(mask, np.float64).ravel()
    work, capacity = np.bincount(element, bits), np.bincount(element)
    mean = np.bincount(group, work) / np.bincount(group)
    share = np.minimum(np.ceil(mean)[group], capacity)
    # by element, kept weights first
    order = np.argsort(2 * element - bits - np.asarray(noise).ravel())
    rank = np.empty(len(element), np.int64)  # within the element
    rank[order] = np.arange(len(element)) - (np.cumsum(capacity) - capacity)[element[order]]
    return (rank < share[element]).astype(np.float32).reshape(mask.shape)


def utilization(mask: np.ndarray | Array, *, grouping: Grouping = "sata", n_pe: int = 16) -> float:
    """Utilization of the processing elements by a layer, from 0 (one has all work) to 1 (equal).

    1 - (max - mean) / max * n / (n - 1) over the n elements of a group, from the released code;
    the mean over groups is our reading. Groups without work or with one element count as 1.

    Args:
      mask, grouping, n_pe: as in `balance`.
    """
    element, group = _elements_and_groups(mask.shape, grouping, n_pe)
    work, size = np.bincount(element, np.asarray(mask, np.float64).ravel()), np.bincount(group)
    most = np.zeros(len(size))
    np.maximum.at(most, group, work)
    mean = np.bincount(group, work) / size
    idle = (most - mean) / np.maximum(most, 1) * size / np.maximum(size - 1, 1)
    return float(np.mean(1 - idle))


def _elements_and_groups(shape, grouping, n_pe):
    """The element of each weight of the kernel, and the group of each element, as indices."""
    check_number("n_pe", n_pe, 1)
    inputs, outputs = shape[-2:]
    if grouping == "sata":
        element, group = np.arange(outputs), np.arange(outputs) // n_pe
    elif grouping == "systolic":
        chunks = min(n_pe, inputs)
        chunk = np.arange(inputs) * chunks // inputs
        element = chunk[:, None] + chunks * np.arange(outputs)
        group = np.repeat(np.arange(outputs), chunks)
    else:
        raise unknown("grouping", grouping, ("sata", "systolic"))
    return np.broadcast_to(element, shape).ravel(), group
