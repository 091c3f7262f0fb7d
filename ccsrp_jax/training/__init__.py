"""Surrogate-gradient training, clean or adversarial."""

from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.step import TrainState
from ccsrp_jax.training.trainer import Epoch, train

__all__ = ["Epoch", "Recipe", "TrainState", "train"]
