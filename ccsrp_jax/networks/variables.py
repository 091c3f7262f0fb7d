"""Whether variables are those of an architecture: the check for functions that are given both."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.serialization import tensor_shapes
from ccsrp_jax.utils.errors import InputError, reason, shown


def check_variables_fit(architecture: Architecture, variables: Any) -> None:
    """Checks the structure of variables and the shapes of their arrays.

    Raises:
      InputError: they are those of another network.
    """
    import chex  # slow to import

    if not isinstance(variables, Mapping):
        raise InputError(f"the variables are {shown(variables)}: give those of `init` or `train`.")
    given: dict[str, Any] = traverse_util.flatten_dict(dict(variables), sep="/")
    expected = _expected(architecture)
    for said, names in (
        ("lack", expected.keys() - given.keys()),
        ("have, beside those of the architecture,", given.keys() - expected.keys()),
    ):
        if names:
            raise InputError(
                f"the variables {said} {shown(min(names))}: give those that `init` or `train` "
                "returned for this architecture."
            )
    try:
        chex.assert_trees_all_equal_shapes(expected, given)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        why = (
            reason(error).rpartition("failed: ")[2].strip().removeprefix("Trees 0 and 1 differ in ")
        )
        raise InputError(
            f"the variables are those of another network ({why}): give those that `init` or "
            "`train` returned for this architecture."
        ) from error


@cache
def _expected(architecture: Architecture) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = tensor_shapes(architecture).items()
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes}
