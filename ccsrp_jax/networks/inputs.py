"""What a classifier is called with: the check for public functions that take one."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ccsrp_jax.data.checks import checked_images, checked_labels, checked_split
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier, key_kwargs
from ccsrp_jax.networks.masks import check_fit
from ccsrp_jax.utils.errors import InputError


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


def _declared(classifier: Any, network_state: Any) -> Interface:
    """What the classifier's architecture says, after a check of its type and its state's."""
    if isinstance(classifier, Architecture):
        raise InputError("an Architecture is no classifier: give Classifier(architecture).")
    if not callable(classifier):
        raise InputError(
            f"the classifier is a {type(classifier).__name__}: give a Classifier, or a function "
            "of a state and images that returns logits."
        )
    if not isinstance(classifier, Hashable):
        raise InputError(
            f"the classifier {type(classifier).__name__} is not hashable: make it a function or "
            "a frozen dataclass."
        )
    if not isinstance(classifier, Classifier):
        return Interface(None, None)
    architecture = classifier.architecture
    paired = isinstance(network_state, tuple | list) and len(network_state) == 2
    if not (paired and isinstance(network_state[0], Mapping) and "params" in network_state[0]):
        raise InputError(
            f"the state of the network is a {type(network_state).__name__}: give the pair "
            "(variables, masks), with None for masks if no filter is removed."
        )
    masks = network_state[1]
    if not (masks is None or isinstance(masks, Mapping)):
        raise InputError(
            f"masks are a {type(masks).__name__}: give a dictionary from group to 0/1 array."
        )
    check_fit(architecture, masks or {})
    return Interface(tuple(architecture.input_shape), architecture.classes)


def _traced_classes(classifier: Any, network_state: Any, images: Any) -> int:
    """Number of classes of any function, which is traced for it."""
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    key_argument = key_kwargs(classifier, jax.random.key(0))
    logits = jax.eval_shape(
        lambda state, images: classifier(state, images, **key_argument), network_state, one
    )
    if getattr(logits, "ndim", None) != 2:
        raise InputError(
            f"the classifier returns {getattr(logits, 'shape', type(logits).__name__)} for one "
            "image: return logits of shape (images, classes)."
        )
    return logits.shape[-1]
