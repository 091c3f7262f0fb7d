"""One optimizer step: the loss and its terms, the gradient, the update, the moving average."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.training import losses
from ccsrp_jax.training.certified import certified_loss
from ccsrp_jax.training.frozen import frozen_leaves, with_leaves
from ccsrp_jax.training.parallel import ParallelClassifier
from ccsrp_jax.training.recipe import Recipe, optimizer
from ccsrp_jax.training.regularizers import membrane_penalty, orthogonalize, sparse_gradient_penalty

LOOKAHEAD_STEP = 0.5  # of the slow weights, as in the source


class TrainState(NamedTuple):
    """The state that training carries from step to step."""

    variables: dict  # {"params", "batch_stats"}
    moments: Any  # of the optimizer; with Lookahead, these and the slow weights
    ema: dict | None = None  # moving average of the variables, if the recipe has one


class StepInputs(NamedTuple):
    """What a step takes besides the state and the masks."""

    versions: list[Array]  # of the same B images: clean, adversarial, or both in this order
    labels: Int[Array, "B"]
    weights: Any  # (versions,): weight of an image's loss, by version
    learning_rate: float
    ema_decay: float
    key: Any  # for random draws; None if there are none
    clean: Array | None = None  # images of the certified loss, if the step has it
    certified_weight: float = 0.0  # of that loss
    certified_eps: float = 0.0  # its radius
    synchronizes: bool | int = False  # whether Lookahead's slow weights move in this step


def start_state(recipe: Recipe, variables: dict) -> TrainState:
    """The state before the first step; arrays are copied, as steps reuse their memory."""
    variables = jax.tree.map(jnp.array, variables)
    ema = jax.tree.map(jnp.array, variables) if recipe.ema else None
    moments: Any = optimizer(recipe).init(variables["params"])
    if recipe.lookahead:
        moments = moments, jax.tree.map(jnp.array, variables["params"])
    return TrainState(variables, moments, ema)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    classifier: ParallelClassifier,
    recipe: Recipe,
    state: TrainState,
    masks: MaskTree,
    inputs: StepInputs,
) -> tuple[TrainState, Float[Array, ""], Float[Array, ""]]:
    """One step; masked filters stay removed, batch norm uses the batch's statistics.

    Args:
      classifier: the network.
      recipe: only what `recipe.compiled_part` leaves in it is read.
      state: its memory is reused for the new state.
      masks: filters to keep.
      inputs: images, labels, weights, rates and key.

    Returns:
      The new state, and the loss and accuracy before the step.
    """
    params = old = state.variables["params"]
    frozen = frozen_leaves(classifier.architecture, recipe)
    loss_and_gradient = jax.value_and_grad(_loss, has_aux=True)
    (loss, (updates, accuracy)), grads = loss_and_gradient(
        params, classifier, recipe, state.variables, masks, inputs
    )
    moments, slow = state.moments if recipe.lookahead else (state.moments, None)
    direction, moments = optimizer(recipe).update(grads, moments, params)
    own = not isinstance(recipe.optimizer, str)  # its updates are scaled, and added
    rate = -1.0 if own else inputs.learning_rate
    params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
    if recipe.orthogonal:
        params = orthogonalize(params, recipe.orthogonal, jax.random.fold_in(inputs.key, 1))
    params = with_leaves(params, frozen, old)
    if recipe.lookahead:
        params, slow = _looked_ahead(params, slow, inputs.synchronizes)
        moments = moments, slow
    variables, ema = {"params": params, **updates}, state.ema
    if recipe.ema:
        old = inputs.ema_decay
        ema = jax.tree.map(lambda a, w: old * a + (1 - old) * w, ema, variables)
    return TrainState(variables, moments, ema), loss, accuracy


def _looked_ahead(fast, slow, synchronizes):
    """Weights and slow weights after a step of Lookahead."""
    middle = optax.incremental_update(fast, slow, LOOKAHEAD_STEP)
    return tuple(
        jax.tree.map(lambda new, old: jnp.where(synchronizes, new, old), middle, kept)
        for kept in (fast, slow)
    )


def _loss(params, classifier, recipe, variables, masks, inputs):
    """The weighted loss and its regularizers; new batch statistics and accuracy beside it."""
    batch, versions = len(inputs.labels), len(inputs.versions)
    images, labels = jnp.concatenate(inputs.versions), jnp.tile(inputs.labels, versions)
    weights = jnp.repeat(inputs.weights, batch)
    threshold = classifier.architecture.neuron.threshold
    frozen = frozen_leaves(classifier.architecture, recipe)
    params = with_leaves(params, frozen, jax.lax.stop_gradient(params))
    variables = {**variables, "params": params}
    logits, potentials, updates = classifier.forward(
        variables, masks, images, inputs.key, train=True, activity=recipe.membrane > 0
    )
    if recipe.loss == "tet":
        each = losses.tet(logits, labels, threshold, recipe.tet_weight, recipe.label_smoothing)
    else:
        each = losses.cross_entropy(logits, labels, recipe.label_smoothing)
    loss = jnp.vdot(each, weights)
    if recipe.trades and versions == 2:
        clean, attacked = jnp.split(logits, 2, axis=1)
        divergence = losses.divergence(clean, attacked, recipe.trades_temperature)
        loss += recipe.trades * divergence.mean()
    if recipe.certified:
        worst = certified_loss(
            classifier, variables, masks, inputs.clean, inputs.labels, inputs.certified_eps
        )
        loss = (1 - inputs.certified_weight) * loss + inputs.certified_weight * worst.mean()
    if recipe.sparse_gradient:
        penalty = sparse_gradient_penalty(
            classifier, variables, masks, images, labels, key=inputs.key
        )
        loss += recipe.sparse_gradient * penalty
    if recipe.membrane:
        width = classifier.surrogate.width
        loss += recipe.membrane * membrane_penalty(potentials, threshold, width)
    hits = (logits.mean(0).argmax(-1) == labels).astype(jnp.float32)
    return loss, (updates, jnp.vdot(hits, weights))
