"""Intervals of membrane potentials and spikes of a layer of neurons over time.

After every step a neuron has fired, or it has not. If the interval of its potential v contains the
threshold, both are possible. It then goes on from two intervals, v >= threshold and reset, and
v < threshold and left alone; they are charged separately and joined after the next step's charge.
The spike's interval is [lower end fires, upper end fires].

References:
  Liang, Xu, Hu, Deng and Xie, Toward Robust Spiking Neural Network Against Adversarial
  Perturbation, NeurIPS 2022 (S-IBP). Ours: all resets and families by the same rule, the split at
  the threshold, and the slack for rounding.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ccsrp_jax.networks.intervals import Interval
from ccsrp_jax.networks.neurons import Neuron, State, Surrogate, spike
from ccsrp_jax.utils.errors import InputError

FALLING = "pending_reset"  # the field of a state that a charge subtracts
CHARGE = 16  # roundings of a charge, in units of all that is added up; a charge does fewer than 8


class Branch(NamedTuple):
    """Neurons that have, or that have not, fired in the last step."""

    possible: Bool[Array, "*N"]  # whether there may be any such
    lower: State
    upper: State


def check_monotone(neuron: Neuron) -> None:
    """Refuses families of neurons that do not say that they are `monotone`, or that are connected
    with themselves.

    A class that is derived from another one has to say so itself.

    Raises:
      InputError: naming the family.
    """
    declared = vars(type(neuron)).get("monotone", False)
    if not declared or neuron.stochastic or neuron.initial_self_weight is not None:
        raise InputError(
            f"{type(neuron).__name__} neurons cannot be bounded by intervals: set `monotone = "
            "True` in the class if its charge and resets are as `Neuron` says, and it neither "
            "draws at random nor has connections with itself."
        )


def neuron_bounds(
    current: Interval,
    neuron: Neuron,
    surrogate: Surrogate,
    time_steps: int,
    leak: Float[Array, ""] | None,
    unit: float,
) -> tuple[Interval, Interval]:
    """Runs a layer of neurons over time, from rest.

    Args:
      current: of S = T steps, or S = 1 for one that is constant in time.
      neuron: a family that is `monotone`.
      surrogate: replaces the derivatives of both ends of the spikes; no gradient flows through
        resets.
      time_steps: T.
      leak: replaces 1 / tau where it is learned.
      unit: roundoff, see `intervals`.

    Returns:
      Intervals of the spikes and of the potentials before the reset, each (T, B, *features).

    Raises:
      InputError: the family is not `monotone`.
    """
    check_monotone(neuron)
    current = current.map(lambda end: end.astype(jnp.float32))
    rest = neuron.initial_state(current.lower.shape[1:])
    branches = [Branch(jnp.ones(current.lower.shape[1:], bool), rest, rest)]
    spikes, potentials = [], []
    for t in range(time_steps):
        x = current.map(lambda end, t=t: end[t if len(end) > 1 else 0])
        lower, upper = _joined([_charged(each, neuron, x, leak, unit) for each in branches])
        v = Interval(lower.v, upper.v)
        potentials.append(v)
        spikes.append(v.map(lambda end: spike(end - neuron.threshold, surrogate)))
        branches = _split(neuron, lower, upper, 4 * unit * (neuron.threshold + v.magnitude))
    return _stacked(spikes), _stacked(potentials)


def _charged(branch: Branch, neuron: Neuron, x: Interval, leak, unit: float) -> Branch:
    """The branch after a step's input, with the slack of its rounding errors."""
    lower = neuron.charge(branch.lower, x.lower, leak)
    upper = neuron.charge(branch.upper, x.upper, leak)
    if not unit:
        return branch._replace(lower=lower, upper=upper)
    size = x.magnitude + sum(
        jnp.abs(field) for state in (branch.lower, branch.upper) for field in state
    )
    return branch._replace(
        lower=_moved(lower, -CHARGE * unit * size), upper=_moved(upper, CHARGE * unit * size)
    )


def _moved(state: State, by: Float[Array, "*N"]) -> State:
    """All fields of a state moved so that the next potential moves the same way."""
    moved = {name: getattr(state, name) + by for name in state._fields if name != FALLING}
    return state._replace(**moved)


def _joined(branches: list[Branch]) -> tuple[State, State]:
    """The ends of the smallest interval that contains all possible branches."""

    def end(states: list[State], sign: int) -> State:
        fields = {}
        for name in states[0]._fields:
            least = (sign > 0) != (name == FALLING)
            choose, none = (jnp.minimum, jnp.inf) if least else (jnp.maximum, -jnp.inf)
            values = [
                jnp.where(branch.possible, getattr(state, name), none)
                for branch, state in zip(branches, states, strict=True)
            ]
            fields[name] = values[0] if len(values) == 1 else choose(*values)
        return states[0]._replace(**fields)

    return end([each.lower for each in branches], 1), end([each.upper for each in branches], -1)


def _split(neuron: Neuron, lower: State, upper: State, slack: Array) -> list[Branch]:
    """The neurons that fire, reset, and those that do not."""
    threshold, ones = neuron.threshold, jnp.ones_like(lower.v)
    least = lower._replace(v=jnp.maximum(lower.v, threshold - slack))
    most = upper._replace(v=jnp.minimum(upper.v, threshold + slack))
    return [
        Branch(
            upper.v >= threshold,
            neuron.after_spikes(least, ones),
            neuron.after_spikes(upper, ones),
        ),
        Branch(
            ~(lower.v >= threshold),
            neuron.after_spikes(lower, 0 * ones),
            neuron.after_spikes(most, 0 * ones),
        ),
    ]


def _stacked(steps: list[Interval]) -> Interval:
    return Interval(*(jnp.stack(ends) for ends in zip(*steps, strict=True)))
