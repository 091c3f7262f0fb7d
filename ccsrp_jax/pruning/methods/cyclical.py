"""Cyclical pruning: gradual pruning in cycles, between which removed weights are restored."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.problem import Problem, Pruned, epochs_per_round, finetune, weight_masks
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import check_number


def cyclical(
    key: Array, problem: Problem, *, cycles: int | None = None, frozen: float = 0.25
) -> Pruned:
    """Removes single weights by magnitude, ranked over all layers but the classifier, in cycles.

    Every cycle prunes from the dense network to the target by the cubic schedule of gradual
    pruning, and restarts the learning rate schedule. Both are the paper's, as far as we know it;
    we know of no released code. In the paper, removed weights still receive gradients. Here they
    do not change, and are restored at the start of the next cycle with the values that they had
    when they were removed.

    Args:
      key: of training.
      problem: the trained network and its budget.
      cycles: which share the recipe's epochs; by default 3, but at least 2 epochs per cycle.
      frozen: share of a cycle, at its end, that trains with fixed masks: at least one epoch if
        the cycle has two or more. A cycle of one epoch prunes only before training.

    Raises:
      InputError: the target cannot be met, or more cycles than epochs.

    References:
      Srinivas et al., Cyclical Pruning for Sparse Neural Networks, CVPR Workshops 2022,
      arXiv 2202.01290; Zhu and Gupta, To Prune, or Not to Prune, arXiv 1710.01878, for the
      schedule.
    """
    check_number("frozen", frozen, 0, 1)
    problem.check_reachable(weight_masks(problem))
    if cycles is None:
        cycles = min(3, max(problem.recipe.epochs // 2, 1))
    restored = problem.variables
    for number, epochs in enumerate(epochs_per_round(problem.recipe.epochs, cycles)):
        ramp = max(min(round((1 - frozen) * epochs), epochs - 1), 0)
        key_cycle = jax.random.fold_in(key, number)
        variables, masks, restored = _cycle(key_cycle, problem, restored, epochs, ramp)
    return Pruned(variables, masks)


def _cycle(key, problem, variables, epochs, ramp):
    """Weights and masks after a cycle, and the weights with the removed ones restored."""
    measure = problem.weight_measure
    cost, dense = problem.cost(measure), problem.limit(0.0, measure)
    whole = {name: np.ones(mask.shape, np.float32) for name, mask in weight_masks(problem).items()}
    saved = {}  # kernels in which masked weights have the values from before they were masked

    def prune(done: int, variables: dict, masks: MaskTree) -> MaskTree:
        scores = {}
        for name, mask in masks.items():
            kernel = np.asarray(masking.masked_kernel(variables, name))
            saved[name] = np.where(mask > 0, kernel, saved.get(name, kernel))
            scores[name] = np.where(mask > 0, np.abs(kernel), -1.0)
        return budget.prune_to_budget(
            scores, cost, dense * density(done, ramp, problem.target.fraction)
        )

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        if done <= ramp:
            masks = {name: np.asarray(mask) for name, mask in masks.items()}
            masks = prune(done, state.variables, masks)
        return state, masks

    masks = prune(0, variables, whole)
    trained, masks = finetune(key, problem, variables, masks, epochs=epochs, adapt=adapt)
    params = dict(trained["params"])
    for name, mask in masks.items():
        layer = masking.layer_of(name)
        kernel = jnp.where(jnp.asarray(mask) > 0, params[layer]["kernel"], saved[name])
        params[layer] = {**params[layer], "kernel": kernel}
    return trained, masks, {**trained, "params": params}


def density(done: int, ramp: int, target: float) -> float:
    """Share of the dense cost after `done` epochs of a cycle, by the cubic schedule.

    With the target f, f + (1 - f)(1 - done / ramp)^3, and f after `ramp` epochs.
    """
    remaining = 1 - min(done / ramp, 1.0) if ramp else 0.0
    return target + (1 - target) * remaining**3
