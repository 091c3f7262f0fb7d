"""Functions known by what they compute, so that no figure of one is given to another.

`jit` takes functions that are equal for the same one, and a record those of the same name. But a
wrapper that leaves its weights out of the comparison, a module that was trained further in place
and two closures of the same code are equal, and compute other answers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import Classifier, ClassifierFn, key_kwargs
from ccsrp_jax.utils.digests import sha256, sha256_arrays
from ccsrp_jax.utils.keys import raw

PROBES = 8  # images whose logits stand for a function in a record


@dataclass(frozen=True)
class Identified:
    """A classifier that equals another only if both compute the same.

    Attributes:
      function: the classifier; its optional attributes are this one's too.
      program: digest of its operations and of the arrays that it captured, see `program`.
    """

    function: ClassifierFn
    program: str

    def __call__(
        self, network_state: Any, images: Float[Array, "B H W C"], **keywords: Any
    ) -> Float[Array, "B K"]:
        """Logits of the function."""
        return self.function(network_state, images, **keywords)

    def __getattr__(self, name: str) -> Any:
        """What else the function has, see `networks.classifier`."""
        if name.startswith("__") or name in ("function", "program"):  # while it is copied
            raise AttributeError(name)
        value = getattr(self.function, name)
        if name == "with_backward":
            return lambda backward: replace(self, function=value(backward))
        return value


def identified(
    classifier: ClassifierFn, network_state: Any, images: Shaped[Array | np.ndarray, "N H W C"]
) -> ClassifierFn:
    """The classifier with the digest of its program; a `Classifier` equals no other as it is."""
    if isinstance(classifier, Classifier | Identified):
        return classifier
    return Identified(classifier, program(classifier, network_state, images))


def program(
    classifier: ClassifierFn, network_state: Any, images: Shaped[Array | np.ndarray, "N H W C"]
) -> str:
    """Digest of a fresh trace: its operations and captured arrays, but not the state's values."""
    two = jax.ShapeDtypeStruct((2, *images.shape[1:]), jnp.float32)

    def fresh(network_state, images, key):
        return classifier(network_state, images, **key_kwargs(classifier, key))

    trace = jax.make_jaxpr(fresh)(network_state, two, jax.random.key(0))
    text = re.sub(r" at 0x[0-9a-f]+", "", str(trace))
    return sha256((text + sha256_arrays(map(raw, _captured(trace)))).encode())


def answers(
    classifier: ClassifierFn, network_state: Any, images: Shaped[Array | np.ndarray, "N H W C"]
) -> str | None:
    """Digest of the logits of the first few images; None for a `Classifier`, which its settings
    and its state determine."""
    if isinstance(classifier, Classifier):
        return None
    classifier = identified(classifier, network_state, images)
    probes = to_unit_range(jnp.asarray(images[:PROBES]))
    return sha256_arrays([logits(classifier, network_state, probes, jax.random.key(0))])


@partial(jax.jit, static_argnums=0)
def logits(
    classifier: ClassifierFn, network_state: Any, images: Float[Array, "B H W C"], key: Array
) -> Float[Array, "B K"]:
    """Logits of one pass; the key is for a stochastic classifier."""
    return classifier(network_state, images, **key_kwargs(classifier, key))


def _captured(trace: Any) -> Iterator[Any]:
    """Arrays that a jaxpr has captured, and the jaxprs in it."""
    yield from getattr(trace, "consts", ())
    for equation in getattr(trace, "jaxpr", trace).eqns:
        yield from (each.val for each in equation.invars if hasattr(each, "val"))
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part, "eqns"):
                yield from _captured(part)
