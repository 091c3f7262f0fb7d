"""What a classifier is called with: the check for public functions that take one."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ccsrp_jax.data.checks import checked_images, checked_labels, checked_split
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier, key_kwargs
from ccsrp_jax.networks.masks import MaskTree, as_floats, check_fit
from ccsrp_jax.networks.variables import check_variables_fit
from ccsrp_jax.utils.errors import InputError, reason


class Interface(NamedTuple):
    """What a classifier takes and returns; None where it is not known."""

    shape: tuple[int, ...] | None  # (H, W, C) of its images
    classes: int | None


def checked_inputs(classifier: Any, network_state: Any, split: Any) -> Split:
    """A split that suits a classifier; see `data.checks.checked_split`.

    Raises:
      InputError: the classifier, its state, the images or the labels cannot be used.
    """
    shape, classes = _declared(classifier, network_state)
    split = checked_split(split, shape=shape, classes=classes)
    if classes is None:
        classes = _traced_classes(classifier, network_state, split.images)
        labels = checked_labels(split.labels, len(split.images), classes)
        split = Split(split.images, labels)
    return split


def checked_batch(classifier: Any, network_state: Any, images: Any) -> Any:
    """Images that suit a classifier; see `data.checks.checked_images`.

    Raises:
      InputError: the classifier, its state or the images cannot be used.
    """
    return checked_images(images, _declared(classifier, network_state).shape)


def number_of_classes(classifier: Any, network_state: Any, images: Any) -> int:
    """Number of logits that a classifier returns for each of these images."""
    classes = _declared(classifier, network_state).classes
    return classes or _traced_classes(classifier, network_state, images)


def checked_network(
    classifier: Any, variables: Any, masks: Any, split: Any
) -> tuple[MaskTree, Split]:
    """As `checked_inputs`, for masks that may be lists too; also returns them as float32 arrays."""
    if isinstance(classifier, Classifier) and (masks is None or isinstance(masks, Mapping)):
        masks = as_floats(classifier.architecture, masks or {})
    return masks, checked_inputs(classifier, (variables, masks), split)


def _declared(classifier: Any, network_state: Any) -> Interface:
    """What the classifier's architecture says, after a check of its type and its state's."""
    if isinstance(classifier, Architecture):
        raise InputError("an Architecture is no classifier: give Classifier(architecture).")
    _check_function(classifier)
    if not isinstance(classifier, Classifier):
        _check_state(network_state)
        return Interface(None, None)
    architecture = classifier.architecture
    paired = isinstance(network_state, tuple | list) and len(network_state) == 2
    if not (paired and isinstance(network_state[0], Mapping) and "params" in network_state[0]):
        raise InputError(
            f"the state of the network is a {type(network_state).__name__}: give the pair "
            "(variables, masks), with None for masks if no filter is removed."
        )
    check_variables_fit(architecture, network_state[0])
    masks = network_state[1]
    if not (masks is None or isinstance(masks, Mapping)):
        raise InputError(
            f"masks are a {type(masks).__name__}: give a dictionary from group to 0/1 array."
        )
    check_fit(architecture, masks or {})
    return Interface(tuple(architecture.input_shape), architecture.classes)


def _check_function(classifier: Any) -> None:
    """Raises InputError for what is no hashable function of a state and images."""
    name = type(classifier).__name__
    if _is_module(classifier, "flax.linen"):
        raise InputError(
            f"the flax module {name} is no classifier: give a function such as "
            "lambda variables, images: module.apply(variables, images), and variables as the state."
        )
    if _is_module(classifier, "flax.nnx"):
        raise InputError(
            f"the NNX module {name} is no classifier: split it (graph, state = nnx.split(module)) "
            "and give the function lambda state, images: nnx.merge(graph, state)(images)."
        )
    if not callable(classifier):
        raise InputError(
            f"the classifier is a {name}: give a Classifier, or a function of a state and images "
            "that returns logits."
        )
    try:
        hash(classifier)
    except TypeError as error:
        raise InputError(
            f"the classifier {name} is not hashable ({reason(error)}): make it a function or a "
            "frozen dataclass of hashable fields, and give arrays as the state."
        ) from error


def _is_module(value: Any, library: str) -> bool:
    """Whether it is a module of a library, which need not be imported for that."""
    bases = type(value).__mro__
    return any(base.__name__ == "Module" and base.__module__.startswith(library) for base in bases)


def _check_state(network_state: Any) -> None:
    """Raises InputError for a state with leaves that `jit` does not take, such as modules."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(network_state):
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        if not is_array and not isinstance(leaf, bool | int | float | complex):
            where = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise InputError(
                f"the state of the network holds a {type(leaf).__name__}{where}: give arrays only, "
                "such as the parameters of a module, and leave the rest to the classifier."
            )


def _traced_classes(classifier: Any, network_state: Any, images: Any) -> int:
    """Number of classes of any function, which is traced for it."""
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    key_argument = key_kwargs(classifier, jax.random.key(0))
    _check_signature(classifier, network_state, one, key_argument)
    logits = jax.eval_shape(
        lambda state, images: classifier(state, images, **key_argument), network_state, one
    )
    return checked_logits(logits, 1).shape[-1]


def _check_signature(classifier: Any, network_state: Any, images: Any, keywords: dict) -> None:
    """Raises InputError for a function that cannot be called as a classifier is."""
    try:
        signature = inspect.signature(classifier)
    except (TypeError, ValueError):  # of a built-in function, which has none
        return
    try:
        signature.bind(network_state, images, **keywords)
    except TypeError as error:
        call = ", ".join(["network_state", "images", *(f"{name}=..." for name in keywords)])
        raise InputError(
            f"the classifier cannot be called with ({call}): {reason(error)}; give a function of "
            "these arguments that returns logits."
        ) from error


def checked_logits(logits: Any, images: int) -> Any:
    """What a classifier returned for so many images: logits (images, classes) of a float type.

    Raises:
      InputError: it is something else.
    """
    what = "one image" if images == 1 else f"{images} images"
    if isinstance(logits, Mapping | tuple | list):
        raise InputError(
            f"the classifier returns a {type(logits).__name__} of {len(logits)} for {what}: return "
            "its logits of shape (images, classes) alone."
        )
    shape = getattr(logits, "shape", type(logits).__name__)
    if getattr(logits, "ndim", None) != 2 or shape[0] != images:
        raise InputError(
            f"the classifier returns {shape} for {what}: return logits of shape (images, classes)."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(
            f"the classifier returns logits of type {logits.dtype}: return floating-point numbers."
        )
    return logits
