"""Phases of training in which the network runs otherwise: in fewer time steps, or with ReLU.

Weights depend neither on T nor on the neurons, so a phase is another classifier of the same
variables. The running statistics of batch norm follow the change within a few dozen steps.
"""

import dataclasses
from typing import TypeVar

from jaxtyping import Array

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import Relu
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.training import conversion
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.step import TrainState
from ccsrp_jax.utils.errors import InputError

C = TypeVar("C", bound=Classifier)


def check_phases(architecture: Architecture, recipe: Recipe) -> None:
    """Raises InputError for phases that the network cannot have."""
    if recipe.early_epochs and architecture.encoding == "frames":
        raise InputError(
            f"early_epochs {recipe.early_epochs} would leave out frames of a recording: give 0."
        )
    if recipe.early_epochs and recipe.early_time_steps > architecture.time_steps:
        raise InputError(
            f"early_time_steps {recipe.early_time_steps} is above the network's "
            f"{architecture.time_steps} time steps: give at most as many."
        )
    if recipe.relu_epochs:
        conversion.check_convertible(architecture)
        architecture.neuron.rate_gain(architecture.neuron.membrane_tau)  # refuses some neurons


def architecture_at(architecture: Architecture, recipe: Recipe, epoch: int) -> Architecture:
    """The architecture in the time steps of an epoch."""
    if epoch >= recipe.early_epochs:
        return architecture
    return dataclasses.replace(architecture, time_steps=recipe.early_time_steps)


def classifier_at(classifier: C, recipe: Recipe, epoch: int) -> C:
    """The classifier that an epoch trains and attacks."""
    architecture = architecture_at(classifier.architecture, recipe, epoch)
    classifier = dataclasses.replace(classifier, architecture=architecture)
    if epoch < recipe.relu_epochs:
        classifier = dataclasses.replace(classifier, surrogate=Relu())
    return classifier


def converted(
    architecture: Architecture,
    recipe: Recipe,
    state: TrainState,
    masks: MaskTree,
    images: Array,
    key: Array,
) -> TrainState:
    """The state of a spiking network, from that of the ReLU network; see `conversion`.

    Weights, their moving average and Lookahead's slow weights get the same thresholds. The
    optimizer's moments stay.

    Args:
      architecture, masks: the network.
      recipe: of its training.
      state: after the epochs with ReLU.
      images: training images in [0, 1].
      key: for a stochastic network.
    """
    scale = recipe.relu_threshold
    by_layer = conversion.thresholds(architecture, state.variables, masks, images, scale, key=key)

    def folded(params):
        return conversion.with_thresholds(architecture, params, by_layer)

    def of_variables(variables):
        return {**variables, "params": folded(variables["params"])}

    moments = state.moments
    if recipe.lookahead:
        moments = moments[0], folded(moments[1])
    ema = None if state.ema is None else of_variables(state.ema)
    return TrainState(of_variables(state.variables), moments, ema)
