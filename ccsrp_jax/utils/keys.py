"""Random keys: the check at public functions, and their data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.utils.errors import InputError


def checked_key(key: Any) -> Array:
    """One random key; one in the older form, raw uint32 data, is converted.

    Raises:
      InputError: it is no key, or more than one.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape:
            raise InputError(f"keys of shape {key.shape} were given for one: give one of them.")
        return key
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32:
        try:
            wrapped = jax.random.wrap_key_data(jnp.asarray(key))
        except (TypeError, ValueError):
            wrapped = None
        if wrapped is not None and not wrapped.shape:
            return wrapped
    raise InputError(
        f"the key is a {type(key).__name__}: give a random key, such as jax.random.key(0)."
    )


def raw(value: Any) -> Any:
    """A value that NumPy takes: the data of random keys, which a state may hold."""
    is_key = jnp.issubdtype(getattr(value, "dtype", jnp.float32), jax.dtypes.prng_key)
    return jax.random.key_data(value) if is_key else value
