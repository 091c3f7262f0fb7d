"""Current-based leaky integrate-and-fire neurons, with a synaptic current as second state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.networks.neurons import Neuron, leaky, register_neuron
from ccsrp_jax.utils.fields import Limits


class CubaState(NamedTuple):
    """State of `CubaLIF` neurons between steps."""

    v: Float[Array, "*N"]  # membrane potential
    pending_reset: Float[Array, "*N"]
    current: Float[Array, "*N"]  # synaptic current


@dataclass(frozen=True)
class CubaLIF(Neuron):
    """Current-based leaky integrate-and-fire neuron (CUBA-LIF), resting at 0.

    The input charges a synaptic current, i <- (1 - 1/tau_syn) i + x, and that the membrane, in
    the same step: v <- v + (i - v) / tau_mem with `decay_input`, else v <- (1 - 1/tau_mem) v + i.
    It fires and resets as `LIF`; a reset leaves the current as it is.

    Without `decay_input` and with `soft_delayed` this is snnTorch's Synaptic with alpha =
    1 - 1/tau_syn and beta = 1 - 1/tau_mem. With `decay_input` and `hard` it is Norse's LIFCell
    one step earlier: there the membrane is charged with the current of the step before.
    `tau_syn=1` is `LIF`.

    Rate-based gradients take the synapse to be in its steady state, tau_syn x.

    Attributes:
      tau_mem: membrane time constant in time steps, at least 1.
      tau_syn: synaptic time constant in time steps, at least 1.
      threshold: firing threshold.
      reset: `hard`, `soft` or `soft_delayed`, see `LIF`.
      decay_input: whether the current is divided by tau_mem.
      detach_reset: whether gradients stop at the reset.
    """

    tau_mem: float = 2.0
    tau_syn: float = 2.0
    threshold: float = 1.0
    reset: Literal["hard", "soft", "soft_delayed"] = "hard"
    decay_input: bool = True
    detach_reset: bool = False

    limits: ClassVar[Mapping[str, Limits]] = {"tau_mem": Limits(1), "tau_syn": Limits(1)}
    monotone: ClassVar[bool] = True

    @property
    def membrane_tau(self) -> float:
        return self.tau_mem

    def initial_state(self, shape: tuple[int, ...]) -> CubaState:
        return CubaState(*(jnp.zeros(shape, jnp.float32) for _ in CubaState._fields))

    def charge(self, state, x, leak):
        current = state.current * (1 - 1 / self.tau_syn) + x
        v = leaky(state.v, current, self.tau_mem, self.decay_input)
        return state._replace(v=v - state.pending_reset, current=current)

    def rate_gain(self, tau):
        return self.tau_syn / (self.threshold * (tau if self.decay_input else 1))


register_neuron(CubaLIF)
