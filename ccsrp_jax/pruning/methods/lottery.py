"""Lottery tickets: train, prune by magnitude, rewind, again; and u-Tickets, whose work is even.

The trained network that all methods are given is the late point that weights are rewound to.
"""

import math
from collections.abc import Callable
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


EACH_ROUND = 0.25  # of what is left goes in each of the source's rounds


def lottery(
    key: Array,
    problem: Problem,
    *,
    rounds: int | None = None,
    last: float = 0.5,
    structured: bool = False,
) -> Pruned:
    """Iterative magnitude pruning with late rewinding.

    Each round trains the dense network's weights under the masks so far, removes what is then
    smallest in all layers but the classifier together, and forgets the training: weights go back
    to `problem.variables`. What is found is trained from there in the end.

    The source prunes single weights over 15 rounds of a full training each, and rewinds to epoch
    20 of 300. Here all rounds share one recipe's epochs, and steps in cost are equal factors
    down to the target.

    Args:
      key: of training.
      problem: see `problem`; its measure of weights, if they are what goes.
      rounds: by default as many as remove a quarter of the rest each (the source's share), no
        more than there are epochs for.
      last: share of the epochs for the last training.
      structured: filters go, by their mean absolute weight, in place of weights; not in the source.

    Raises:
      InputError: more rounds than epochs.

    References:
      Kim et al., Exploring Lottery Ticket Hypothesis in Spiking Neural Networks, ECCV 2022,
      arXiv 2207.01382.
    """
    whole = masking.ones(problem.architecture) if structured else weight_masks(problem)
    measure = problem.target.measure if structured else problem.weight_measure
    cost = problem.cost(measure)

    def prune(key: Array, scores: Scores, limit: float) -> MaskTree:
        return budget.prune_to_budget(scores, cost, limit)

    return _tickets(key, problem, whole, measure, prune, rounds, last)


def u_ticket(
    key: Array,
    problem: Problem,
    *,
    rounds: int | None = None,
    last: float = 0.5,
    grouping: Grouping = "sata",
    n_pe: int = 16,
) -> Pruned:
    """Lottery tickets that keep all processing elements of an accelerator equally busy.

    As `lottery`, but in every round each convolution that does not read the image is evened out
    by `balance`. That adds weights (averages are rounded up), so a round removes as many more by
    magnitude as bring the evened network to its target: the last masks miss it by no more than
    balancing one removal changes. The source rounds up and accepts what is added; its early
    reduction of the time steps is left out, as T belongs to the problem.

    Args:
      key: of training and of what `balance` draws.
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
    cost = problem.cost(problem.weight_measure)

    def prune(key: Array, scores: Scores, limit: float) -> MaskTree:
        names = map(masking.kernel, convs)
        noise = {
            name: np.asarray(jax.random.uniform(each, scores[name].shape))
            for name, each in zip(names, jax.random.split(key, len(convs)), strict=True)
        }

        def even(masks: MaskTree) -> MaskTree:
            balanced = {
                name: balance(masks[name], draws, grouping=grouping, n_pe=n_pe)
                for name, draws in noise.items()
            }
            return {**masks, **balanced}

        return even(budget.prune_to_budget(scores, lambda masks: cost(even(masks)), limit))

    return _tickets(
        key, problem, weight_masks(problem), problem.weight_measure, prune, rounds, last
    )


def _tickets(
    key: Array,
    problem: Problem,
    masks: MaskTree,
    measure: str,
    prune: Callable[[Array, Scores, float], MaskTree],
    rounds: int | None,
    last: float,
) -> Pruned:
    check_number("last", last, 0, 1)
    total = problem.recipe.epochs
    final = min(max(round(last * total), 1), total)
    if rounds is None:
        needed = math.log(problem.target.fraction) / math.log(1 - EACH_ROUND)
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
    """Absolute weights, or filters' mean of them, as the masks' names have it; what is gone is
    below all others."""
    filters, _ = l1(jax.random.key(0), problem, variables, masks)
    scores = {}
    for name, mask in masks.items():
        layer = name.removesuffix(masking.KERNEL)
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
    """A mask of weights that gives processing elements of a group equally many.

    Each gets the group's mean, rounded up: random zeros come back where it has fewer, random
    survivors go where it has more (the source's strong mode). Where an element's whole share of
    the kernel is smaller than the mean, it gets all of that.

    Args:
      mask: of a kernel, (k, k, in, out).
      noise: uniform in [0, 1), of the same shape; the highest come or stay.
      grouping: `sata`, consecutive filters form a group, each the work of one element;
        `systolic`, every filter is a group, each element has some consecutive inputs of it.
      n_pe: elements; a group has fewer where filters or inputs run out.

    Raises:
      InputError: unknown grouping, or no element.
    """
    cell, team = _elements(mask.shape, grouping, n_pe)
    bits = np.asarray(mask, np.float64).ravel()
    work, room = np.bincount(cell, bits), np.bincount(cell)
    mean = np.bincount(team, work) / np.bincount(team)
    share = np.minimum(np.ceil(mean)[team], room)
    order = np.argsort(2 * cell - bits - np.asarray(noise).ravel())  # survivors first, by element
    place = np.empty(len(cell), np.int64)
    place[order] = np.arange(len(cell)) - (np.cumsum(room) - room)[cell[order]]
    return (place < share[cell]).astype(np.float32).reshape(mask.shape)


def utilization(mask: np.ndarray | Array, *, grouping: Grouping = "sata", n_pe: int = 16) -> float:
    """How evenly the work of a layer is shared among elements: 1 if equally, 0 if one does it all.

    1 - (max - mean) / max * n / (n - 1) over the n elements of a group, from the released code;
    the mean over groups is our reading. Groups without work, or of one element, count as 1.

    Args:
      mask, grouping, n_pe: as in `balance`.
    """
    cell, team = _elements(mask.shape, grouping, n_pe)
    work, size = np.bincount(cell, np.asarray(mask, np.float64).ravel()), np.bincount(team)
    most = np.zeros(len(size))
    np.maximum.at(most, team, work)
    mean = np.bincount(team, work) / size
    lost = (most - mean) / np.maximum(most, 1) * size / np.maximum(size - 1, 1)
    return float(np.mean(1 - lost))


def _elements(shape, grouping, n_pe):
    """By weight, the number of its element; by element, that of its group."""
    check_number("n_pe", n_pe, 1)
    inputs, outputs = shape[-2:]
    if grouping == "sata":
        cell, team = np.arange(outputs), np.arange(outputs) // n_pe
    elif grouping == "systolic":
        chunks = min(n_pe, inputs)
        chunk = np.arange(inputs) * chunks // inputs
        cell = chunk[:, None] + chunks * np.arange(outputs)
        team = np.repeat(np.arange(outputs), chunks)
    else:
        raise unknown("grouping", grouping, ("sata", "systolic"))
    return np.broadcast_to(cell, shape).ravel(), team
