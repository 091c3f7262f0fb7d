"""Spiking neurons, their dynamics over time, and the surrogate gradients that train them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.utils.errors import InputError, shown, unknown
from ccsrp_jax.utils.fields import POSITIVE, Limits, check_fields

# Derivatives of unit area and unit peak: the surrogate of width w is g(v / w) / w.
SURROGATE_DERIVATIVES = {
    "atan": lambda z: 1 / (1 + (math.pi * z) ** 2),
    "triangle": lambda z: jnp.maximum(0.0, 1 - jnp.abs(z)),
    "rectangle": lambda z: (jnp.abs(z) < 0.5).astype(z.dtype),
    "sigmoid": lambda z: 4 * jax.nn.sigmoid(4 * z) * jax.nn.sigmoid(-4 * z),
}


@dataclass(frozen=True)
class Surrogate:
    """Surrogate gradient: it replaces the derivative of the spike in the backward pass.

    Every shape has area 1 and peak 1 / width, so that widths are comparable across names.
    In the usual parameters: ATan alpha = 2 / width, triangle gamma = width, rectangle
    a = width, sigmoid alpha = 4 / width.

    Attributes:
      name: `atan`, `triangle`, `rectangle` or `sigmoid`.
      width: in units of membrane potential; a wider surrogate passes gradients through
        neurons that are further from their threshold.
    """

    name: str = "atan"
    width: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in SURROGATE_DERIVATIVES:
            raise unknown("surrogate", shown(self.name).strip("'"), SURROGATE_DERIVATIVES)
        check_fields(self, "surrogate", {"width": POSITIVE})

    def derivative(self, v: Float[Array, "*N"]) -> Float[Array, "*N"]:
        """d(spike)/dv at the distance v from the threshold."""
        return SURROGATE_DERIVATIVES[self.name](v / self.width) / self.width


class MembraneState(NamedTuple):
    """State of `LIF` neurons between steps."""

    v: Float[Array, "*N"]  # membrane potential
    pending_reset: Float[Array, "*N"]  # subtracted in the next step, for `soft_delayed`


class Noise(NamedTuple):
    """Noise of a layer of neurons, in units of membrane potential; None where there is none."""

    membrane: Float[Array, "T *N"] | None = None  # added to the potential, which keeps it
    firing: Float[Array, "T *N"] | None = None  # added where it is compared with the threshold


State = Any  # a NamedTuple of arrays with the fields of `MembraneState`, or more


class Neuron:
    """Rules of a family of spiking neurons; subclasses are frozen dataclasses of constants.

    In every step `lif` charges the membrane with the input, compares its potential with the
    threshold, and resets it where it fired. A family says how it charges; the resets are common.

    Attributes:
      threshold: firing threshold of the membrane potential.
      reset: `hard`, `soft` or `soft_delayed`, see `LIF`.
      detach_reset: whether gradients stop at the reset.
      learned: whether every layer learns its own leak 1 / tau, the sigmoid of a parameter.

    Class attributes:
      limits: by name of a constant, which numbers it takes; see `utils.fields`.
      monotone: whether `interval_bounds` may bound it by the ends of intervals. `charge`, and
        `after_spikes` for given spikes, must then be non-decreasing in the input and in every
        field of the state, and non-increasing in `pending_reset`; and a charge must be a sum of
        these with weights of at most 1, of less than 8 roundings. Not inherited: a derived class
        says so itself.
    """

    limits: ClassVar[Mapping[str, Limits]] = {}
    monotone: ClassVar[bool] = False

    threshold: float
    reset: str
    detach_reset: bool
    learned: bool = False

    def __post_init__(self) -> None:
        check_fields(self, type(self).__name__, {"threshold": POSITIVE, **self.limits})

    @property
    def membrane_tau(self) -> float:
        """Membrane time constant in time steps; a learned leak starts there."""
        raise NotImplementedError(f"define membrane_tau of {type(self).__name__}.")

    @property
    def initial_self_weight(self) -> float | None:
        """Where the learned weight of a neuron's connection with itself starts, see
        `SelfConnectedLIF`; None for families without such connections."""
        return None

    @property
    def has_variables(self) -> bool:
        """Whether a layer has variables of its own, see `neuron_layer.NeuronLayer`."""
        return self.learned or self.stochastic or self.initial_self_weight is not None

    @property
    def stochastic(self) -> bool:
        """Whether it draws at random; a network of such neurons is called with a key."""
        return False

    def noise(self, key: Array, shape: tuple[int, ...]) -> Noise:
        """Noise of so many steps and neurons, (T, *N); for stochastic families only."""
        raise NotImplementedError(f"define noise of {type(self).__name__}.")

    def initial_state(self, shape: tuple[int, ...]) -> State:
        """The state at rest of a layer of neurons of this shape."""
        raise NotImplementedError(f"define initial_state of {type(self).__name__}.")

    def charge(self, state: State, x: Float[Array, "*N"], leak: Float[Array, ""] | None) -> State:
        """The state after one step's input, before the neurons fire.

        Args:
          state: of the step before.
          x: input of this step.
          leak: replaces 1 / tau where it is learned.
        """
        raise NotImplementedError(f"define charge of {type(self).__name__}.")

    def rate_gain(self, tau: float | Float[Array, ""]) -> float | Float[Array, ""]:
        """What a constant input of 1 charges the membrane with in one step, in thresholds, for
        this membrane time constant. `gradients.RateGradient`, `Hart` and `Relu` need it.

        Raises:
          InputError: the family has no such constant.
        """
        raise InputError(
            f"rate-based gradients are not defined for {type(self).__name__} neurons: use "
            "Surrogate, StraightThrough or AdaptiveSharpness."
        )

    def after_spikes(self, state: State, spikes: Float[Array, "*N"]) -> State:
        """The state with the membranes reset that fired."""
        if self.reset == "hard":
            return state._replace(v=state.v * (1 - spikes))
        if self.reset == "soft":
            return state._replace(v=state.v - self.threshold * spikes)
        return state._replace(pending_reset=self.threshold * spikes)


RESETS = ("hard", "soft", "soft_delayed")


def leaky(
    v: Float[Array, "*N"],
    x: Float[Array, "*N"],
    tau: float,
    decay_input: bool,
    leak: Float[Array, ""] | None = None,
) -> Float[Array, "*N"]:
    """The membrane potential of a LIF neuron after the input x of one step, see `LIF`."""
    if decay_input:
        return v + ((x - v) / tau if leak is None else (x - v) * leak)
    return v * (1 - (1 / tau if leak is None else leak)) + x


@dataclass(frozen=True)
class LeakyNeuron(Neuron):
    """What `LIF` neurons and those derived from them have in common; see `LIF`."""

    tau: float = 2.0
    threshold: float = 1.0
    reset: Literal["hard", "soft", "soft_delayed"] = "hard"
    decay_input: bool = True
    detach_reset: bool = False
    learned: bool = False

    limits: ClassVar[Mapping[str, Limits]] = {"tau": Limits(1, infinite=True)}

    def __post_init__(self) -> None:
        what = f"{type(self).__name__} tau {shown(self.tau)}"
        if isinstance(self.tau, Real) and not self.tau >= 1:
            raise InputError(f"{what} is below 1: give a time constant of at least 1.")
        super().__post_init__()
        if self.learned and not 1 < self.tau < math.inf:
            raise InputError(f"{what} is where a learned leak starts: give a finite value above 1.")

    @property
    def membrane_tau(self) -> float:
        return self.tau

    def initial_state(self, shape: tuple[int, ...]) -> MembraneState:
        return MembraneState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def charge(self, state, x, leak):
        v = leaky(state.v, x, self.tau, self.decay_input, leak)
        return state._replace(v=v - state.pending_reset)

    def rate_gain(self, tau):
        return 1 / (self.threshold * (tau if self.decay_input else 1))


@dataclass(frozen=True)
class LIF(LeakyNeuron):
    """Leaky integrate-and-fire neuron, resting at 0.

    It charges by v <- v + (x - v) / tau with `decay_input`, else by v <- (1 - 1/tau) v + x;
    it fires s = 1 where v >= threshold; then it resets: `hard` by v <- v (1 - s), `soft` by
    v <- v - threshold s, and `soft_delayed` (snnTorch's default) by subtracting threshold s
    in the next step, after the leak.

    With `decay_input` and `hard` this is SpikingJelly's LIFNode and Norse's LIFBoxCell;
    `tau=inf` without `decay_input` is the integrate-and-fire neuron.

    Attributes:
      tau: membrane time constant in time steps, at least 1.
      threshold: firing threshold, in the unit of the input current.
      reset: `hard`, `soft` or `soft_delayed`.
      decay_input: whether the input is divided by tau too.
      detach_reset: whether gradients stop at the reset.
      learned: whether every layer learns its own 1 / tau, the sigmoid of a parameter that starts
        at the given tau (PLIF, Fang et al., ICCV 2021, arXiv 2007.05785).
    """

    monotone: ClassVar[bool] = True


NEURON_KINDS: dict[str, type[Neuron]] = {}  # by name, as in saved networks


def register_neuron(kind: type[Neuron]) -> None:
    """Makes a family of neurons known, so that networks with it can be saved and loaded.

    Args:
      kind: a frozen dataclass derived from `Neuron`.

    Raises:
      InputError: the class is no frozen dataclass of that kind, or the name is taken.
    """
    name, params = kind.__name__, getattr(kind, "__dataclass_params__", None)
    if not issubclass(kind, Neuron) or params is None or not params.frozen:
        raise InputError(
            f"{name} cannot be a family of neurons: give a class derived from "
            "networks.neurons.Neuron and decorated with @dataclass(frozen=True)."
        )
    if name in NEURON_KINDS:
        raise InputError(
            f"a neuron {name!r} is registered already, by {NEURON_KINDS[name].__module__}: give "
            "the class another name."
        )
    NEURON_KINDS[name] = kind


def check_neuron_registered(neuron: Neuron) -> None:
    """Refuses neurons of a family that `register_neuron` has not been given.

    Raises:
      InputError: naming the class.
    """
    kind = type(neuron)
    if NEURON_KINDS.get(kind.__name__) is not kind:
        raise InputError(
            f"neuron {neuron!r} is of class {kind.__module__}.{kind.__qualname__}, which is not "
            "registered: call ccsrp_jax.networks.register_neuron(class) first."
        )


register_neuron(LIF)


def spike(v: Float[Array, "*N"], surrogate: Surrogate) -> Float[Array, "*N"]:
    """1 where v >= 0, else 0; differentiates through the surrogate."""
    return spike_of_width(v, surrogate.width, surrogate.name)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def spike_of_width(
    v: Float[Array, "*N"], width: float | int | Float[Array, "..."], name: str
) -> Float[Array, "*N"]:
    """`spike` with a separate width for every neuron; the width gets no gradient."""
    return (v >= 0).astype(v.dtype)


@spike_of_width.defjvp
def _spike_jvp(name, primals, tangents):
    (v, width), (dv, _) = primals, tangents
    return spike_of_width(v, width, name), SURROGATE_DERIVATIVES[name](v / width) / width * dv


# Spike function of one step: (distance from the threshold, index of the step) -> spikes
Fire = Callable[[Float[Array, "*N"], int], Float[Array, "*N"]]


def lif(
    current: Float[Array, "S *N"],
    neuron: Neuron,
    surrogate: Surrogate | Fire,
    time_steps: int,
    leak: Float[Array, ""] | None = None,
    *,
    self_weight: Float[Array, "C"] | None = None,
    noise: Noise | None = None,
) -> tuple[Float[Array, "T *N"], Float[Array, "T *N"]]:
    """Runs a layer of neurons over time, from rest.

    The loop is unrolled: it holds element-wise work only, and a `scan` around it would
    keep XLA from fusing it with the operations around it.

    Args:
      current: input current, S = T steps, or S = 1 for one that is constant in time.
      neuron: `LIF`, or another family of neurons.
      surrogate: replaces the derivative of the spike in the backward pass; or a spike function
        with a derivative of its own.
      time_steps: T.
      leak: replaces 1 / tau where it is learned.
      self_weight: by channel, the last axis: a neuron's spike adds it to its own potential in the
        next step, after the leak.
      noise: for stochastic neurons, `neuron.noise(key, (T, *N))`.

    Returns:
      Spikes in the dtype of `current`, and membrane potentials before the reset in
      float32 (the state is float32 whatever the compute type).

    Raises:
      InputError: a current of other steps, or stochastic neurons without noise.
    """
    if current.shape[0] not in (1, time_steps):
        raise InputError(
            f"the current has {current.shape[0]} steps for {time_steps} time steps: give as many, "
            "or one that holds for all."
        )
    if neuron.stochastic and noise is None:
        raise InputError(
            f"{type(neuron).__name__} neurons draw at random: give noise=neuron.noise(key, shape)."
        )
    noise = Noise() if noise is None else noise
    fire = surrogate if callable(surrogate) else lambda v, t: spike(v, surrogate)
    x_SxN = current.astype(jnp.float32)
    state = neuron.initial_state(x_SxN.shape[1:])
    spikes, potentials = [], []
    for t in range(time_steps):
        x = x_SxN[t if x_SxN.shape[0] > 1 else 0]
        state = neuron.charge(state, x, leak)
        if self_weight is not None and t > 0:
            state = state._replace(v=state.v + self_weight * spikes[-1])
        if noise.membrane is not None:
            state = state._replace(v=state.v + noise.membrane[t])
        distance = state.v - neuron.threshold
        s = fire(distance if noise.firing is None else distance + noise.firing[t], t)
        spikes.append(s)
        potentials.append(state.v)
        s_reset = jax.lax.stop_gradient(s) if neuron.detach_reset else s
        state = neuron.after_spikes(state, s_reset)
    return jnp.stack(spikes).astype(current.dtype), jnp.stack(potentials)
