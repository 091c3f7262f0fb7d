"""Cyclical pruning: gradual pruning several times over, so that weights gone wrongly come back."""

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
    """Removes single weights by magnitude, all layers but the classifier together, in cycles.

    Every cycle goes from the whole network to the target on the cubic schedule of gradual
    pruning, with a learning rate that starts over. Both are the paper's, as far as we know it; we
    have seen no released code. There, removed weights go on to receive gradients; here they rest,
    and come back at the next cycle's start with the values that they went with.

    Args:
      key: of training.
      problem: see `problem`.
      cycles: which share the recipe's epochs; by default 3, or as many as have 2 epochs each.
      frozen: share of a cycle after its schedule, with masks as they are: at least one epoch of
        a cycle of two or more. A cycle of one prunes before it.

    Raises:
      InputError: more cycles than epochs.

    References:
      Srinivas et al., Cyclical Pruning for Sparse Neural Networks, CVPR Workshops 2022,
      arXiv 2202.01290; Zhu and Gupta, To Prune, or Not to Prune, arXiv 1710.01878, for the
      schedule.
    """
    check_number("frozen", frozen, 0, 1)
    if cycles is None:
        cycles = min(3, max(problem.recipe.epochs // 2, 1))
    values = problem.variables
    for number, epochs in enumerate(epochs_per_round(problem.recipe.epochs, cycles)):
        ramp = max(min(round((1 - frozen) * epochs), epochs - 1), 0)
        key_cycle = jax.random.fold_in(key, number)
        variables, masks, values = _cycle(key_cycle, problem, values, epochs, ramp)
    return Pruned(variables, masks)


def _cycle(key, problem, variables, epochs, ramp):
    """Weights and masks after a cycle, and these weights with the removed ones back."""
    measure = problem.weight_measure
    cost, dense = problem.cost(measure), problem.limit(0.0, measure)
    whole = {name: np.ones(mask.shape, np.float32) for name, mask in weight_masks(problem).items()}
    gone = {}  # kernels, where they are masked with the values that they were masked at

    def prune(done: int, variables: dict, masks: MaskTree) -> MaskTree:
        scores = {}
        for name, mask in masks.items():
            kernel = np.asarray(variables["params"][name.removesuffix(masking.KERNEL)]["kernel"])
            gone[name] = np.where(mask > 0, kernel, gone.get(name, kernel))
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
        layer = name.removesuffix(masking.KERNEL)
        kernel = jnp.where(jnp.asarray(mask) > 0, params[layer]["kernel"], gone[name])
        params[layer] = {**params[layer], "kernel": kernel}
    return trained, masks, {**trained, "params": params}


def density(done: int, ramp: int, target: float) -> float:
    """Share of the cost that is left after some epochs of a cycle: 1 at first, the target f after
    `ramp` epochs, and f + (1 - f)(1 - done / ramp)^3 between."""
    ahead = 1 - min(done / ramp, 1.0) if ramp else 0.0
    return target + (1 - target) * ahead**3
