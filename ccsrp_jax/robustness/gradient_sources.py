"""Gradient sources: the classifiers that gradient attacks on a network may differentiate.

Besides the network itself these are copies of it with other surrogate gradients, copies with smooth
units in place of spikes, and other networks; the last two give transfer attacks.
"""

from typing import Any, NamedTuple

from ccsrp_jax.networks.classifier import ClassifierFn
from ccsrp_jax.networks.gradients import (
    AdaptiveSharpness,
    Backward,
    Hart,
    RandomWidth,
    RateGradient,
    Relu,
    SoftSpike,
    StraightThrough,
    Surrogate,
)


class GradientSource(NamedTuple):
    """A classifier that an attack differentiates, and its state."""

    classifier: ClassifierFn
    network_state: Any


OWN = "own"  # the network itself, with its own surrogate gradient
RELU, SOFT = "relu", "soft"
TWINS = (RELU, SOFT)  # networks of the same weights whose gradient needs no surrogate
RANDOM = "random"  # widths drawn anew in every iteration of an attack

BACKWARDS: dict[str, Backward] = {
    "assg": AdaptiveSharpness(),
    "bptr": RateGradient("bptr"),
    "rga": RateGradient("rga"),
    "hart": Hart(),
    "hart:0.5": Hart(Surrogate("triangle", 0.5)),
    "hart:2": Hart(Surrogate("triangle", 2.0)),
    "straight": StraightThrough(),
    RANDOM: RandomWidth(),
    RELU: Relu(),
    SOFT: SoftSpike(),
} | {
    f"{name}:{width:g}": Surrogate(name, width)
    for name in ("atan", "triangle", "rectangle", "sigmoid")
    for width in (0.25, 0.5, 1.0, 2.0, 4.0)
}


def gradient_sources(classifier: Any, network_state: Any) -> dict[str, GradientSource]:
    """The network itself, `own`, and its copies with other surrogate gradients, by name.

    The copies need a classifier with a method `with_backward`, as `networks.Classifier` has.
    """
    sources = {OWN: GradientSource(classifier, network_state)}
    if hasattr(classifier, "with_backward"):
        for name, backward in BACKWARDS.items():
            sources[name] = GradientSource(classifier.with_backward(backward), network_state)
    return sources


def is_transfer(source: str) -> bool:
    """Whether a source computes another function than the attacked network."""
    return source in TWINS or source not in (OWN, *BACKWARDS)
