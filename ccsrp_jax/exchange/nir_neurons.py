"""Neurons of NIR, which are differential equations, as neurons in steps of `dt`.

Euler's method in steps of dt, with the spike and the reset after each, gives for `nir.LIF`

    v <- v + dt / tau (v_leak - v + r x),  z = [v >= v_threshold],  v <- v_reset where z

so that tau / dt is the time constant in steps, and the factor of the input is r dt / tau; for
`nir.IF` it is r dt. `nir.CubaLIF` first charges i <- i + dt / tau_syn (w_in x - i), in the same
step. `nir.Threshold` keeps nothing between steps, as a LIF neuron with a time constant of one step.
NIR's own threshold is strict, v > v_threshold; only a potential exactly at it tells them apart.

All neurons of a network are of one family with one reset here. Time constants may differ from
layer to layer (`learned`), thresholds and factors also from channel to channel: they go into the
weights before the neurons.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ccsrp_jax.exchange.nir_graph import FlatGraph
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.neurons import LIF, Neuron
from ccsrp_jax.utils.errors import InputError

KINDS = ("LIF", "IF", "CubaLIF", "Threshold")
CLOSE = 1e-5  # relative difference of parameters that are taken to be equal, as after float32
NO_LEAK, ALL_LEAK = -200.0, 200.0  # parameters whose sigmoid is 0 and 1 in float32


class Dynamics(NamedTuple):
    """A layer of neurons in steps.

    Attributes:
      tau: of the membrane, in steps; infinite without a leak.
      tau_syn: of the synaptic current, in steps; None without one.
      gain: v <- (1 - 1/tau) v + gain x, an array or a scalar.
      threshold: above the resting potential, an array or a scalar.
    """

    tau: float
    tau_syn: float | None
    gain: np.ndarray
    threshold: np.ndarray


class Neurons(NamedTuple):
    """The neurons of a network.

    Attributes:
      neuron: of all layers.
      leaks: by layer, its parameter `leak`; empty unless `neuron.learned`.
      factors: by layer, what its input is multiplied by, an array of its shape or a scalar.
    """

    neuron: Neuron
    leaks: dict[str, float]
    factors: dict[str, np.ndarray]


def discretized(graph: FlatGraph, dt: float, reset: str) -> Neurons:
    """The neurons of a graph in steps of dt.

    Raises:
      InputError: a layer cannot be represented, or the layers differ in what they must share.
    """
    layers = {
        name: _dynamics(graph, name, dt, reset)
        for name, node in graph.nodes.items()
        if type(node).__name__ in KINDS
    }
    if not layers:
        return Neurons(LIF(reset=reset), {}, {})  # type: ignore[arg-type]
    decayed, gains = _input_factors(layers)
    threshold, factors = _common_threshold(layers, gains)
    cuba = {name: layer for name, layer in layers.items() if layer.tau_syn is not None}
    if cuba and len(cuba) < len(layers):
        other = next(name for name in layers if name not in cuba)
        raise graph.refused(
            other,
            f"node {next(iter(cuba))!r} is a CubaLIF, and all neurons are of one family",
            "use one kind of neurons",
        )
    if cuba:
        return Neurons(_cuba(graph, cuba, threshold, reset, decayed), {}, factors)
    neuron, leaks = _lif(layers, threshold, reset, decayed)
    return Neurons(neuron, leaks, factors)


def _dynamics(graph: FlatGraph, name: str, dt: float, reset: str) -> Dynamics:
    kind = type(graph.nodes[name]).__name__
    if kind == "Threshold":
        _check_threshold(graph, name, threshold := graph.value(name, "threshold"))
        return Dynamics(1.0, None, np.ones(()), threshold)
    r = graph.value(name, "r")
    threshold, rest = graph.value(name, "v_threshold"), graph.value(name, "v_reset")
    if kind == "IF":
        leak_to = np.zeros(())
        tau, tau_syn, gain = math.inf, None, r * dt
    elif kind == "LIF":
        leak_to = graph.value(name, "v_leak")
        tau, tau_syn = _steps(graph, name, "tau", dt), None
        gain = r / tau
    else:
        leak_to = graph.value(name, "v_leak")
        tau, tau_syn = _steps(graph, name, "tau_mem", dt), _steps(graph, name, "tau_syn", dt)
        gain = r / tau * graph.value(name, "w_in") / tau_syn
    if reset == "hard" and not _all_close(rest, leak_to):
        raise graph.refused(
            name,
            "it resets to another potential than it "
            + ("starts from, 0" if kind == "IF" else "leaks to, v_leak"),
            "give both the same value",
        )
    _check_threshold(graph, name, threshold - leak_to)
    return Dynamics(tau, tau_syn, gain, threshold - leak_to)


def _steps(graph: FlatGraph, name: str, field: str, dt: float) -> float:
    """A time constant in steps, which is the same for all neurons of a layer."""
    value = graph.value(name, field)
    if value.size == 0 or not _all_close(value, value.flat[0]):
        raise graph.refused(name, f"{field} differs among its neurons", "give one to each layer")
    steps = float(f"{value.flat[0] / dt:.9g}")  # a product and quotient with dt round
    if not 1 <= steps <= 1e9:
        raise graph.refused(
            name,
            f"{field} is {value.flat[0]:.4g}, {steps:.4g} steps of dt {dt:.4g}, and needs to be at "
            "least one step",
            "give the dt with which it was exported",
        )
    return steps


def _check_threshold(graph: FlatGraph, name: str, threshold: np.ndarray) -> None:
    if not (threshold > 0).all():
        raise graph.refused(
            name, "a threshold is not above the resting potential", "give it a higher threshold"
        )


def _all_close(values: Any, others: Any) -> bool:
    return bool(np.allclose(values, others, rtol=CLOSE, atol=1e-9))


def _input_factors(layers: Mapping[str, Dynamics]) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether inputs are divided by tau, and by what factor each layer's are multiplied then."""
    one = np.ones(())
    if all(_all_close(layer.gain, 1) for layer in layers.values()):
        return False, dict.fromkeys(layers, one)
    # for `CubaLIF` the division by tau_syn is left to the factor
    decayed = {
        name: layer.gain * layer.tau for name, layer in layers.items() if layer.tau < math.inf
    }
    if len(decayed) == len(layers):
        return True, {
            name: one if _all_close(factor, 1) else factor for name, factor in decayed.items()
        }
    gains = {name: layer.gain for name, layer in layers.items()}
    return False, {name: one if _all_close(gain, 1) else gain for name, gain in gains.items()}


def _common_threshold(
    layers: Mapping[str, Dynamics], factors: Mapping[str, np.ndarray]
) -> tuple[float, dict[str, np.ndarray]]:
    """One threshold for all layers, and the factors with what is left of each layer's."""
    first = next(iter(layers.values())).threshold.flat[0]
    if all(_all_close(layer.threshold, first) for layer in layers.values()):
        return float(f"{first:.9g}"), dict(factors)
    return 1.0, {name: factors[name] / layers[name].threshold for name in layers}


def _cuba(
    graph: FlatGraph,
    layers: Mapping[str, Dynamics],
    threshold: float,
    reset: str,
    decayed: bool,
) -> Neuron:
    first, *others = layers
    for name in others:
        for what in ("tau", "tau_syn"):
            if not _all_close(getattr(layers[name], what), getattr(layers[first], what)):
                raise graph.refused(
                    name,
                    f"its time constants differ from those of {first!r}",
                    "use CubaLIF neurons with the same in all layers",
                )
    layer = layers[first]
    assert layer.tau_syn is not None
    return CubaLIF(layer.tau, layer.tau_syn, threshold, reset, decayed)  # type: ignore[arg-type]


def _lif(
    layers: Mapping[str, Dynamics], threshold: float, reset: str, decayed: bool
) -> tuple[Neuron, dict[str, float]]:
    taus = {name: layer.tau for name, layer in layers.items()}
    first = next(iter(taus.values()))
    same = all(tau == first or math.isclose(tau, first, rel_tol=CLOSE) for tau in taus.values())
    settings: dict[str, Any] = {
        "threshold": threshold,
        "reset": reset,
        "decay_input": decayed,
    }
    if same:
        return LIF(first, **settings), {}
    start = next((tau for tau in taus.values() if 1 < tau < math.inf), 2.0)
    leaks = {name: _leak_parameter(tau) for name, tau in taus.items()}
    return LIF(start, **settings, learned=True), leaks


def _leak_parameter(tau: float) -> float:
    """The parameter whose sigmoid is 1 / tau."""
    if tau == 1:
        return ALL_LEAK
    return NO_LEAK if tau == math.inf else max(NO_LEAK, -math.log(tau - 1))


def check_step(dt: Any, reset: Any) -> None:
    """Raises InputError for what is no time step or no reset."""
    resets = ("hard", "soft", "soft_delayed")
    if not (isinstance(dt, int | float) and not isinstance(dt, bool) and 0 < dt < math.inf):
        raise InputError(f"dt is {dt!r}: give the time step in seconds, such as 1e-4.")
    if reset not in resets:
        raise InputError(f"reset is {reset!r}: give one of {', '.join(resets)}.")
