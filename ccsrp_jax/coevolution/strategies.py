"""Evolution strategies for one group's masks: CCEP's bit-flip EA and every strategy of evosax.

Both are used through evosax's `init`, `ask` and `tell`. Real-valued genomes are decoded to masks
which never restore a filter that earlier rounds removed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from ccsrp_jax.utils.errors import InputError, reason, shown, unknown

if TYPE_CHECKING:
    from evosax.algorithms.base import EvolutionaryAlgorithm

    Strategy = str | type[EvolutionaryAlgorithm] | EvolutionaryAlgorithm
else:  # evosax is loaded where a strategy is made
    EvolutionaryAlgorithm = Strategy = Any


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


# whether the strategies of the presets sample from a distribution, known without loading evosax
KNOWN = {"BitFlip": False, "SNES": True}


@cache
def all_strategies() -> dict[str, type[EvolutionaryAlgorithm]]:
    """Every strategy by name, `STRATEGIES` of this module: `BitFlip`, and those of evosax."""
    # evosax makes arrays where it is imported
    with own_numerics(), jax.ensure_compile_time_eval():
        from evosax.algorithms import algorithms

        from ccsrp_jax.coevolution.bit_flip import BitFlip
    return {"BitFlip": BitFlip, **algorithms}


def __getattr__(name: str) -> Any:
    if name == "STRATEGIES":
        return all_strategies()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# attributes of a strategy that depend on the number of genes
OF_SIZE = frozenset(
    {"population_size", "solution", "solution_flat", "num_dims", "max_num_dims_sq"}
    | {"_ravel_solution", "_unravel_solution"}
)


def check_strategy(strategy: Any) -> None:
    """As `strategy_class`, without loading evosax for the presets' strategies."""
    if not (isinstance(strategy, str) and strategy in KNOWN):
        strategy_class(strategy)


def strategy_class(strategy: Any) -> type[EvolutionaryAlgorithm]:
    """The class of a strategy that is given by its name, as a class or as an instance.

    Raises:
      InputError: it is none.
    """
    strategies = all_strategies()
    from evosax.algorithms.base import EvolutionaryAlgorithm as Base

    if isinstance(strategy, Base):
        return type(strategy)
    if isinstance(strategy, type) and issubclass(strategy, Base):
        return strategy
    if not isinstance(strategy, str):
        raise InputError(
            f"strategy is {shown(strategy)}: give the name of one, or a class or instance of an "
            "evosax algorithm."
        )
    if strategy not in strategies:
        raise unknown("strategy", strategy, strategies)
    return strategies[strategy]


def is_distribution_based(strategy: Strategy) -> bool:
    """Whether a strategy samples from a distribution, in evosax's classification.

    Such a strategy compares candidates of one generation only; others keep parents.
    """
    if isinstance(strategy, str) and strategy in KNOWN:
        return KNOWN[strategy]
    kind = strategy_class(strategy)
    from evosax.algorithms.population_based.base import PopulationBasedAlgorithm

    return not issubclass(kind, PopulationBasedAlgorithm)


@cache  # every strategy object compiles its own ask and tell
def make_strategy(strategy: Strategy, population: int, filters: int) -> EvolutionaryAlgorithm:
    """The strategy with `filters` genes; the same object for equal arguments.

    An instance stands for one of its class with its settings and another number of genes.

    Raises:
      InputError: the name is unknown, or the strategy does not support this population size.
    """
    kind, extra = strategy_class(strategy), {}
    if kind is all_strategies()["RandomSearch"]:  # takes its sampling distribution as an argument
        extra["sampling_fn"] = lambda key: jax.random.normal(key, (filters,))
    try:
        with own_numerics():
            made = kind(population_size=population, solution=jnp.zeros(filters), **extra)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"strategy {kind.__name__} cannot be made for a population of {population} "
            f"({reason(error)}): change the population or choose another strategy."
        ) from error
    if not isinstance(strategy, str | type):
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
