"""Spiking channel activity: quiet channels go during training, and promising ones come back."""

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
    """Prunes the least active channels between epochs, and regrows those of steepest loss.

    From a re-implementation by the authors' group: a channel's activity is the mean of
    s + |v|, its spikes and absolute potential; one order for all layers; of the channels that are
    gone, int(regrow * all channels) come back by the gradient of the loss. A channel that is
    gone has activity 0, and comes back with the weights that it had.

    Ours: the harness's budget, of which the k-th of K events meets the share k/K, each as exactly
    as the target; so as many more go as come back. Activity and gradient are of search images
    and the weights at the event (there: running means over training batches); a group with
    several LIF layers has the mean of their activities. The gradient there is of batch norm's
    gamma. A gate lets none through to the gamma of a channel that is gone, and a dense layer has
    no gamma; so it is here the gradient of the loss for the gate itself, in the network as it is
    masked: to first order, what opening the gate alone changes. `regrow`, `events` and `share`
    have defaults of our own.

    Args:
      key: of training.
      problem: see `problem`.
      regrow: share of all channels that is exchanged at every event.
      events: how many, at most one an epoch; None is one after every epoch up to the last event.
      share: of the budget's epochs, after which the last event is.

    Raises:
      InputError: the recipe has no epoch, or a setting is out of range.

    References:
      Li et al., Towards efficient deep spiking neural networks construction with spiking activity
      based pruning, ICML 2024; Evci et al., Rigging the Lottery, ICML 2020, for regrowth.
    """
    check_number("regrow", regrow, 0, 1)
    when = event_epochs(problem.recipe.epochs, share, events)
    masks, cost, search = masking.ones(problem.architecture), problem.cost(), Passes()
    some = int(regrow * sum(mask.size for mask in masks.values()))
    key_train, key_events = jax.random.split(key)

    def adapt(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal search
        if done not in when:
            return state, masks
        key_event = jax.random.fold_in(key_events, done)
        activity, slopes, passes = activity_and_slopes(key_event, problem, state.variables, masks)
        search += passes
        masks, _ = prune_and_regrow(
            activity,
            {name: np.abs(slope) for name, slope in slopes.items()},
            cost,
            problem.limit((when.index(done) + 1) / len(when)),
            lambda count: some,
            np.random.default_rng(np.asarray(jax.random.key_data(key_event))),
        )
        return state, {name: jnp.asarray(mask) for name, mask in masks.items()}

    variables, masks = finetune(key_train, problem, problem.variables, masks, adapt=adapt)
    return Pruned(variables, masks, search)


def activity_and_slopes(
    key: Array, problem: Problem, variables: dict, masks: MaskTree
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Passes]:
    """Mean spikes and absolute potentials of channels, and the mean loss's gradient for gates.

    Args:
      key: of a stochastic encoding.
      problem, variables, masks: the network, with a mask of every group.

    Returns:
      Both by group, over the search images, activity 0 where a channel is gone; and passes.
    """
    total, count = None, 0
    for number, (images, labels, real) in enumerate(batches(problem)):
        key_batch = jax.random.fold_in(key, number)
        sums = _measure(problem.classifier, variables, masks, images, labels, real, key_batch)
        sums = jax.tree.map(partial(np.asarray, dtype=np.float64), sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        count += real
    activity, slopes = jax.tree.map(lambda value: value / count, total)
    return activity, slopes, Passes(count, count)


@partial(jax.jit, static_argnums=0)
def _measure(classifier: Classifier, variables, masks, images, labels, real, key):
    """Sums over the real images."""
    architecture, counts = classifier.architecture, jnp.arange(len(images)) < real
    network = SpikingNetwork(architecture)

    def loss(masks):
        logits, active = network.apply(
            variables, images, masks, surrogate=classifier.surrogate, activity=True, key=key
        )
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.vdot(each, counts), active

    slopes, active = jax.grad(loss, has_aux=True)(masks)
    found = {name: [] for name in masks}
    for layer, spikes in active.spikes.items():
        both = spikes + jnp.abs(active.potentials[layer])
        for group, each in split_channels(architecture, layer, both):
            if group in masks:
                each = jnp.moveaxis(each, 1, 0).reshape(len(images), -1, each.shape[-1]).mean(1)
                found[group].append(counts @ each)
    activity = {name: masks[name] * sum(parts) / len(parts) for name, parts in found.items()}
    return activity, slopes
