"""Evolution strategies for one group's masks: CCEP's bit-flip EA and every strategy of evosax.

Both are used through evosax's `init`, `ask` and `tell`. Real-valued genomes are decoded to masks
which never restore a filter that earlier rounds removed.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from evosax import algorithms as evosax_algorithms
from evosax.algorithms.population_based import base
from flax import struct
from jaxtyping import Array, Float, Int, ScalarLike

from ccsrp_jax.utils.errors import InputError, reason, shown, unknown


def keep_count(filters: int, keep_floor: float, multiple: int = 1) -> int:
    """Fewest of `filters` that a candidate keeps: the share `keep_floor`, rounded down to a
    `multiple`.

    At least one filter may always be removed, and the last `multiple` filters never; in small
    groups either may override `keep_floor`.
    """
    floor = _ceil_share(filters, keep_floor) // multiple * multiple
    return max(min(floor, (filters - 1) // multiple * multiple), multiple)


def bit_flip_keep_count(filters: int, keep_floor: float) -> int:
    """CCEP's floor: a mutation clears a bit only while at least this many filters are kept."""
    return _ceil_share(filters, keep_floor)


def _ceil_share(filters: int, share: float) -> int:
    return math.ceil(share * filters - 1e-9)  # the product may exceed an integer by rounding


@struct.dataclass
class BitFlipParams(base.Params):
    """Parameters of `BitFlip`."""

    mutation_rate: ScalarLike
    min_kept: ScalarLike  # a 1 becomes 0 only while at least this many filters are kept
    current: Array  # (n,) 0/1, the group's current mask: filters that may be kept


class BitFlip(base.PopulationBasedAlgorithm):
    """CCEP's EA for one layer: bit-wise mutation of uniformly chosen parents, (mu + lambda)
    survival.

    Genomes are 0/1 vectors. A mutation visits the bits in order. With the mutation rate, a 0
    becomes 1, and a 1 becomes 0 if at least `min_kept` filters are kept at that point; so a child
    may keep one filter fewer than `min_kept`. A child that keeps none is replaced by its parent.

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
            keys, state.population[chosen], params.current, params.mutation_rate, params.min_kept
        )
        return children, state

    def _tell(self, key: Array, population, fitness, state: base.State, params):
        pool = jnp.concatenate([state.population, population])
        pool_fitness = jnp.concatenate([state.fitness, fitness])
        best = jnp.argsort(pool_fitness)[: self.population_size]  # stable: ties favor parents
        return state.replace(population=pool[best], fitness=pool_fitness[best])


@jax.jit
def mutate(
    key: Array,
    parent: Float[Array, "n"],
    current: Float[Array, "n"],
    rate: ScalarLike,
    min_kept: ScalarLike,
) -> Float[Array, "n"]:
    """One bit-wise mutation of a mask, as described in `BitFlip`.

    Args:
      key: of the flips.
      parent: the 0/1 mask to mutate.
      current: the group's current mask; a bit that is 0 there stays 0.
      rate: probability of a flip.
      min_kept: a 1 stays where fewer filters than this are kept.
    """

    def visit(kept, gene):
        bit, flips, allowed = gene
        new = jnp.where(bit > 0, jnp.where(kept >= min_kept, 0.0, 1.0), allowed)
        new = jnp.where(flips, new, bit)
        return kept + new - bit, new

    flips = jax.random.bernoulli(key, rate, parent.shape)
    _, child = jax.lax.scan(visit, parent.sum(), (parent, flips, current))
    return jnp.where(child.any(), child, parent)


@partial(jax.jit, static_argnames="size")
def initial_masks(
    key: Array,
    current: Float[Array, "n"],
    init_keep: ScalarLike,
    min_kept: ScalarLike,
    *,
    size: int,
) -> Float[Array, "P n"]:
    """A first population: the current mask, and `size - 1` random masks.

    Each random mask keeps every filter with probability `init_keep`; where that leaves fewer than
    `min_kept`, filters chosen at random are restored.
    """
    key_bits, key_repair = jax.random.split(key)
    shape = (size, current.shape[0])
    bits = jax.random.bernoulli(key_bits, init_keep, shape) & (current > 0)
    order = jnp.where(current > 0, bits + jax.random.uniform(key_repair, shape), -1.0)
    bits = (bits | (_descending_ranks(order) < min_kept)) & (current > 0)
    return bits.astype(jnp.float32).at[0].set(current)


Decoder = Literal["threshold", "topk"]


@partial(jax.jit, static_argnames="decoder")
def decode(
    genomes: Float[Array, "P n"],
    current: Float[Array, "n"],
    min_kept: ScalarLike,
    *,
    decoder: Decoder,
) -> Float[Array, "P n"]:
    """Masks of real-valued genomes, with one gene a filter.

    `threshold` keeps filters whose gene is above 0, and those of the largest genes if these are
    fewer than `min_kept`; `topk` keeps exactly the `min_kept` filters of the largest genes.
    Filters that the current mask has removed are never kept.
    """
    ranks = _descending_ranks(jnp.where(current > 0, genomes, -jnp.inf))
    keep = ranks < min_kept
    if decoder == "threshold":
        keep = keep | (genomes > 0)
    return (keep & (current > 0)).astype(jnp.float32)


def _descending_ranks(values: Float[Array, "P n"]) -> Int[Array, "P n"]:
    """Rank of every value in its row, 0 for the largest."""
    return jnp.argsort(jnp.argsort(-values, axis=-1), axis=-1)


STRATEGIES: Mapping[str, type[base.EvolutionaryAlgorithm]] = {
    "BitFlip": BitFlip,
    **evosax_algorithms.algorithms,
}


Strategy = str | type[base.EvolutionaryAlgorithm] | base.EvolutionaryAlgorithm

# attributes of a strategy that depend on the number of genes
OF_SIZE = frozenset(
    {"population_size", "solution", "solution_flat", "num_dims", "max_num_dims_sq"}
    | {"_ravel_solution", "_unravel_solution"}
)


def strategy_class(strategy: Any) -> type[base.EvolutionaryAlgorithm]:
    """The class of a strategy that is given by its name, as a class or as an instance.

    Raises:
      InputError: it is none.
    """
    if isinstance(strategy, base.EvolutionaryAlgorithm):
        return type(strategy)
    if isinstance(strategy, type) and issubclass(strategy, base.EvolutionaryAlgorithm):
        return strategy
    if not isinstance(strategy, str):
        raise InputError(
            f"strategy is {shown(strategy)}: give the name of one, or a class or instance of an "
            "evosax algorithm."
        )
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    return STRATEGIES[strategy]


def is_distribution_based(strategy: Strategy) -> bool:
    """Whether a strategy samples from a distribution, in evosax's classification.

    Such a strategy compares candidates of one generation only; others keep parents.
    """
    return not issubclass(strategy_class(strategy), base.PopulationBasedAlgorithm)


@cache  # every strategy object compiles its own ask and tell
def make_strategy(strategy: Strategy, population: int, filters: int) -> base.EvolutionaryAlgorithm:
    """The strategy with `filters` genes; the same object for equal arguments.

    An instance stands for one of its class with its settings and another number of genes.

    Raises:
      InputError: the name is unknown, or the strategy does not support this population size.
    """
    kind, extra = strategy_class(strategy), {}
    if kind is STRATEGIES["RandomSearch"]:  # takes its sampling distribution as an argument
        extra["sampling_fn"] = lambda key: jax.random.normal(key, (filters,))
    try:
        with own_numerics():
            made = kind(population_size=population, solution=jnp.zeros(filters), **extra)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"strategy {kind.__name__} cannot be made for a population of {population} "
            f"({reason(error)}): change the population or choose another strategy."
        ) from error
    if isinstance(strategy, base.EvolutionaryAlgorithm):
        if strategy.population_size != population:
            raise InputError(
                f"the strategy has a population of {strategy.population_size}, and the search one "
                f"of {population}: give both the same."
            )
        vars(made).update({k: v for k, v in vars(strategy).items() if k not in OF_SIZE})
    return made


@contextmanager
def own_numerics() -> Iterator[None]:
    """In this context strategies compute as they expect to, whatever JAX is set to.

    Their states begin with values that are not finite, which `JAX_DEBUG_NANS` and
    `JAX_DEBUG_INFS` would stop at, and some mix types where `JAX_ENABLE_X64` is set.
    """
    with jax.debug_nans(False), jax.debug_infs(False), jax.enable_x64(False):
        yield


def strip_weak_types(state: Any) -> Any:
    """The state with strong types: with weak ones, `ask` and `tell` would compile twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
