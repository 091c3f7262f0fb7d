"""Parameters that training leaves as they are."""

from collections.abc import Collection, Mapping
from typing import Any

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.whitening import first_layer

Leaf = tuple[str, str]  # names of a node and of its parameter


def frozen_leaves(architecture: Architecture, recipe: Recipe) -> list[Leaf]:
    """The parameters that a recipe fixes.

    Raises:
      InputError: it fixes the first convolution of a network that begins with something else.
    """
    leaves = []
    if recipe.first_layer != "learned":
        leaves.append((first_layer(architecture).name, "kernel"))
    if recipe.norm_scale == "frozen":
        leaves += [(node.name, "scale") for node in architecture.nodes if isinstance(node, Norm)]
    return leaves


def with_leaves(params: Mapping[str, Any], leaves: Collection[Leaf], source: Mapping) -> dict:
    """Parameters with some leaves taken from other ones."""
    params = dict(params)
    for name, leaf in leaves:
        params[name] = {**params[name], leaf: source[name][leaf]}
    return params
