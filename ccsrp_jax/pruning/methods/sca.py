"""Spiking channel activity: inactive channels are pruned in training, others are regrown."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import split_channels
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, batches, finetune
from ccsrp_jax.pruning.regrowth import event_epochs, prune_and_regrow
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import check_number


def sca(
    key: Array,
    problem: Problem,
    *,
    regrow: float | int = 0.1,
    events: int | None = 5,
    share: float | int = 0.6,
) -> Pruned:
    """Prunes the least active channels between epochs, and regrows those of largest gradient.

    From a re-implementation by the authors' group: a channel's activity is the mean of s + |v|,
    its spikes and absolute potential; one ranking for all layers; of the pruned channels,
    int(regrow * all channels) are regrown, by the magnitude of the loss gradient. A pruned channel
    has activity 0, and is regrown with the weights that it had.

    Ours: the budget. The k-th of K events meets the share k/K of it, as exactly as the target, so
    it prunes as many additional channels as it regrows. Activity and gradient are measured on
    search images, with the weights at the event (there: running means over training batches); a
    group with several LIF layers has the mean of their activities. The source uses the gradient
    with respect to batch norm's gamma. With gated spikes, that gradient is 0 for a pruned channel,
    and dense layers have no gamma, so we use the gradient with respect to the gate in the masked
    network: to first order, the change of the loss from opening this gate alone. The defaults of
    `regrow`, `events` and `share` are ours.

    Args:
      key: of training.
      problem: the trained network and its budget.
      regrow: share of all channels that is exchanged at every event.
      events: number of events, at most one per epoch; None: one after every epoch up to the last.
      share: of the budget's epochs, after which the last event takes place.

    Raises:
      InputError: the target cannot be met, the recipe has no epochs, or a setting is out of range.

    References:
      Li et al., Towards efficient deep spiking neural networks construction with spiking activity
      based pruning, ICML 2024; Evci et al., Rigging the Lottery, ICML 2020, for regrowth.
    """
    check_number("regrow", regrow, 0, 1)
    when = event_epochs(problem.recipe.epochs, share, events)
    masks, cost, search = masking.ones(problem.architecture), problem.cost(), Passes()
    problem.check_reachable(masks)
    exchanged = int(regrow * sum(mask.size for mask in masks.values()))
    key_train, key_events = jax.random.split(key)

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal search
        if done not in when:
            return state, masks
        key_event = jax.random.fold_in(key_events, done)
        activity, gradients, passes = activity_and_gradients(
            key_event, problem, state.variables, masks
        )
        search += passes
        masks, _ = prune_and_regrow(
            activity,
            {name: np.abs(gradient) for name, gradient in gradients.items()},
            cost,
            problem.limit((when.index(done) + 1) / len(when)),
            lambda count: exchanged,
            np.random.default_rng(np.asarray(jax.random.key_data(key_event))),
        )
        return state, {name: jnp.asarray(mask) for name, mask in masks.items()}

    variables, masks = finetune(key_train, problem, problem.variables, masks, adapt=adapt)
    return Pruned(variables, masks, search)


def activity_and_gradients(
    key: Array, problem: Problem, variables: dict, masks: MaskTree
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Passes]:
    """Activity of channels, mean s + |v|, and the mean loss's gradient with respect to gates.

    Args:
      key: of a stochastic encoding.
      problem, variables, masks: the network, with a mask of every group.

    Returns:
      Both by group, over the search images, with activity 0 for pruned channels; and passes.
    """
    total, count = None, 0
    for number, (images, labels, real) in enumerate(batches(problem)):
        key_batch = jax.random.fold_in(key, number)
        sums = _measure(problem.classifier, variables, masks, images, labels, real, key_batch)
        sums = jax.tree.map(partial(np.asarray, dtype=np.float64), sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        count += real
    activity, gradients = jax.tree.map(lambda value: value / count, total)
    return activity, gradients, Passes(count, count)


@partial(jax.jit, static_argnums=0)
def _measure(classifier: Classifier, variables, masks, images, labels, real, key):
    """Activity and gradients, summed over the images that are not padding."""
    architecture, valid = classifier.architecture, jnp.arange(len(images)) < real
    network = SpikingNetwork(architecture)

    def loss(masks):
        logits, active = network.apply(
            variables, images, masks, surrogate=classifier.surrogate, activity=True, key=key
        )
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.vdot(each, valid), active

    gradients, active = jax.grad(loss, has_aux=True)(masks)
    sums = {name: [] for name in masks}
    for layer, spikes in active.spikes.items():
        values = spikes + jnp.abs(active.potentials[layer])
        for group, each in split_channels(architecture, layer, values):
            if group in masks:
                each = jnp.moveaxis(each, 1, 0).reshape(len(images), -1, each.shape[-1]).mean(1)
                sums[group].append(valid @ each)
    activity = {name: masks[name] * sum(parts) / len(parts) for name, parts in sums.items()}
    return activity, gradients
