"""Search over one group's mask: the ancestor's bit-flip EA and any evosax strategy.

Both go through evosax's `init / ask / tell`. Genomes become masks by a decoder that never
revives a filter which earlier rounds removed, nor keeps fewer than the round's floor.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
from evosax import algorithms as evosax_algorithms
from evosax.algorithms.population_based import base
from flax import struct
from jaxtyping import Array, Float, ScalarLike

from ccsrp_jax.utils.errors import InputError, reason, unknown


def floor_count(alive: int, keep_floor: float, multiple: int = 1) -> int:
    """Fewest of `alive` filters that a round may keep, rounded down to a `multiple`.

    It always lets at least one filter go, and never the last `multiple`; where there are
    few filters, both take more than `keep_floor` says.
    """
    least = math.ceil(keep_floor * alive - 1e-9) // multiple * multiple
    return max(min(least, (alive - 1) // multiple * multiple), multiple)


@struct.dataclass
class BitFlipParams(base.Params):
    mutation_rate: ScalarLike
    least: ScalarLike  # a 1 becomes 0 only while at least this many are kept
    alive: Array  # (n,) filters that may be kept


class BitFlip(base.PopulationBasedAlgorithm):
    """CCEP's per-layer EA: bit-wise mutation of uniform parents, (mu + lambda) survival.

    Genomes are 0/1 vectors. A child scans its parent's bits in order; with the mutation
    rate a 0 becomes 1, and a 1 becomes 0 if the number kept so far is at the floor or
    above, so that a child may end one filter below it. An empty child is its parent.

    References:
      Shang et al., Neural Network Pruning by Cooperative Coevolution, IJCAI 2022
      (procedure and constants as in its released code).
    """

    @property
    def _default_params(self) -> BitFlipParams:
        return BitFlipParams(0.1, 1, jnp.ones(self.num_dims))

    def _init(self, key: Array, params: BitFlipParams) -> base.State:
        return base.State(
            population=jnp.ones((self.population_size, self.num_dims)),
            fitness=jnp.full((self.population_size,), jnp.inf),
            best_solution=jnp.ones(self.num_dims),
            best_fitness=jnp.inf,
            generation_counter=0,
        )

    def _ask(self, key: Array, state: base.State, params: BitFlipParams):
        key_parent, key_flip = jax.random.split(key)
        chosen = jax.random.randint(key_parent, (self.population_size,), 0, self.population_size)
        keys = jax.random.split(key_flip, self.population_size)
        mutate_all = jax.vmap(mutate, in_axes=(0, 0, None, None, None))
        children = mutate_all(
            keys, state.population[chosen], params.alive, params.mutation_rate, params.least
        )
        return children, state

    def _tell(self, key: Array, population, fitness, state: base.State, params):
        pool = jnp.concatenate([state.population, population])
        pool_fitness = jnp.concatenate([state.fitness, fitness])
        best = jnp.argsort(pool_fitness)[: self.population_size]  # stable: parents first
        return state.replace(population=pool[best], fitness=pool_fitness[best])


@jax.jit
def mutate(
    key: Array,
    parent: Float[Array, "n"],
    alive: Float[Array, "n"],
    rate: ScalarLike,
    least: ScalarLike,
) -> Float[Array, "n"]:
    """One bit-wise mutation, as in `BitFlip`; a 1 stays where fewer than `least` are kept."""

    def visit(kept, gene):
        bit, flips, may_live = gene
        new = jnp.where(bit > 0, jnp.where(kept >= least, 0.0, 1.0), may_live)
        new = jnp.where(flips, new, bit)
        return kept + new - bit, new

    flips = jax.random.bernoulli(key, rate, parent.shape)
    _, child = jax.lax.scan(visit, parent.sum(), (parent, flips, alive))
    return jnp.where(child.any(), child, parent)


@partial(jax.jit, static_argnames="size")
def initial_masks(
    key: Array,
    alive: Float[Array, "n"],
    init_keep: ScalarLike,
    least: ScalarLike,
    *,
    size: int,
) -> Float[Array, "P n"]:
    """The unpruned mask, and `size - 1` that keep each filter with probability `init_keep`,
    random filters being put back where fewer than `least` are left."""
    key_bits, key_repair = jax.random.split(key)
    shape = (size, alive.shape[0])
    bits = jax.random.bernoulli(key_bits, init_keep, shape) & (alive > 0)
    order = jnp.where(alive > 0, bits + jax.random.uniform(key_repair, shape), -1.0)
    bits = (bits | (_places(order) < least)) & (alive > 0)
    return bits.astype(jnp.float32).at[0].set(alive)


Decoder = Literal["threshold", "topk"]


@partial(jax.jit, static_argnames="decoder")
def decode(
    genomes: Float[Array, "P n"], alive: Float[Array, "n"], least: ScalarLike, *, decoder: Decoder
) -> Float[Array, "P n"]:
    """Masks of real genomes.

    `threshold` keeps genes above 0 and fills up to the floor with the largest others;
    `topk` keeps exactly the `least` largest genes.
    """
    place = _places(jnp.where(alive > 0, genomes, -jnp.inf))
    keep = place < least
    if decoder == "threshold":
        keep = keep | (genomes > 0)
    return (keep & (alive > 0)).astype(jnp.float32)


def _places(values: Float[Array, "P n"]) -> Array:
    """Position of every value in its row's descending order."""
    return jnp.argsort(jnp.argsort(-values, axis=-1), axis=-1)


def strategies() -> dict[str, Callable]:
    """`BitFlip` and evosax's algorithms, by name."""
    return {"BitFlip": BitFlip, **evosax_algorithms.algorithms}


def is_distribution(name: str) -> bool:
    """Whether a strategy samples from a distribution, and compares no candidates of different
    generations."""
    return not issubclass(strategies()[name], base.PopulationBasedAlgorithm)


@cache  # every strategy object compiles its own ask and tell
def strategy(name: str, population: int, filters: int) -> base.EvolutionaryAlgorithm:
    """The strategy of that name over `filters` genes; one object for equal arguments.

    Raises:
      InputError: an unknown name, or one that evosax cannot make for this population.
    """
    known = strategies()
    if name not in known:
        raise unknown("strategy", name, known)
    extra = {}
    if name == "RandomSearch":  # the one that must be told where to draw from
        extra["sampling_fn"] = lambda key: jax.random.normal(key, (filters,))
    try:
        return known[name](population_size=population, solution=jnp.zeros(filters), **extra)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"strategy {name} cannot be made for a population of {population} "
            f"({reason(error)}): change the population or choose another strategy."
        ) from error


def strong(state):
    """The state without weak types, with which evosax's `ask` and `tell` compile twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
