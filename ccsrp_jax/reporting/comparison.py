"""Comparison of pruning methods: hypervolumes, statistics over seeds, and statistical tests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.utils.errors import InputError

COSTS = ("macs", "params", "synops")  # as a share of the dense network's
REFERENCE = (1.0, 1.0, 1.0)  # clean error, robust error and cost: all wrong, nothing saved


class Spread(NamedTuple):
    """Mean and standard deviation of a quantity over seeds."""

    mean: float
    deviation: float  # of the sample; nan for a single seed
    seeds: int


class PairedTest(NamedTuple):
    """Comparison of two methods on the same seeds."""

    difference: float  # mean of first minus second
    deviation: float  # sample standard deviation of the differences
    p: float  # of a two-sided paired t-test; nan if it cannot be computed
    wins: int  # seeds on which the first has the higher value
    seeds: int  # that both have


class MethodRank(NamedTuple):
    """Comparison of a method with all others over several networks."""

    method: str
    mean_rank: float  # over networks; 1 is the highest hypervolume
    ranks: tuple[float, ...]  # on each network
    behind: int  # networks on which the default method has the higher hypervolume
    lead: float  # of the default in hypervolume, mean over networks
    p: float  # of a two-sided Wilcoxon signed-rank test over networks; nan for the default


def objectives(
    cells: Iterable[Mapping], dense: Mapping, cost: str = "macs"
) -> Float[np.ndarray, "N 3"]:
    """Clean error, robust error and share of the dense network's cost, for each cell."""
    rows = [
        (1 - cell["accuracy"], 1 - cell["robust_accuracy"], cell[cost] / dense[cost])
        for cell in cells
    ]
    return np.array(rows, np.float32).reshape(-1, 3)


def hypervolumes(
    cells: Sequence[Mapping], dense: Mapping, cost: str = "macs"
) -> dict[str, dict[int, float]]:
    """Hypervolume of each method and seed, over its networks for all targets.

    The reference point is a network that classifies nothing correctly and saves nothing. Methods
    and seeds without a network for every target are omitted, since fewer points dominate less.
    """
    targets = {cell["target"] for cell in cells}
    volumes: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = [cell for cell in cells if cell["method"] == method]
        for seed in sorted({cell["seed"] for cell in own}):
            chosen = [cell for cell in own if cell["seed"] == seed]
            if {cell["target"] for cell in chosen} == targets:
                points = jnp.asarray(objectives(chosen, dense, cost))
                volume = hypervolume(points, jnp.array(REFERENCE))
                volumes.setdefault(method, {})[seed] = float(volume)
    return volumes


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation over seeds."""
    array = np.array(list(values), float)
    deviation = array.std(ddof=1) if len(array) > 1 else np.nan
    return Spread(float(array.mean()), float(deviation), len(array))


def paired_t_test(first: Mapping[int, float], second: Mapping[int, float]) -> PairedTest:
    """Compares the values of two methods by seed, on the seeds that both have."""
    from scipy.stats import ttest_1samp  # slow to import

    seeds = sorted(first.keys() & second.keys())
    gaps = np.array([first[seed] - second[seed] for seed in seeds])
    if not len(gaps):
        return PairedTest(np.nan, np.nan, np.nan, 0, 0)
    deviation = gaps.std(ddof=1) if len(gaps) > 1 else np.nan
    p = _p_value(ttest_1samp(gaps, 0)) if deviation > 0 else np.nan
    return PairedTest(float(gaps.mean()), float(deviation), p, int((gaps > 0).sum()), len(gaps))


def rank_over_networks(
    records: Sequence[Mapping], default: str, cost: str = "macs"
) -> list[MethodRank]:
    """Ranks methods that remove filters by their hypervolumes on several networks.

    Each network counts once, with the mean over its seeds, since seeds of one network do not tell
    how methods rank on another. Methods that are missing for a network are omitted. The p-values
    are not corrected for the number of methods.

    Args:
      records: written by `experiments/compare_methods.py`, one for each network.
      default: the method that the others are compared with.
      cost: one of `COSTS`.

    Returns:
      The methods in ascending order of their mean rank.

    Raises:
      InputError: there is only one network, or fewer than two methods with the default are
        common to all.

    References:
      Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006).
    """
    from scipy.stats import rankdata, wilcoxon  # slow to import

    volumes = []
    for record in records:
        cells = [cell for cell in record["cells"] if not cell["weights"]]
        by_method = hypervolumes(cells, record["dense"], cost)
        volumes.append({method: spread(of.values()).mean for method, of in by_method.items()})
    shared = [m for m in (volumes[0] if volumes else ()) if all(m in v for v in volumes)]
    if len(records) < 2 or default not in shared or len(shared) < 2:
        raise InputError(
            f"{len(records)} networks share the methods {', '.join(shared) or 'none'}: give tables "
            f"of two networks or more that share {default!r} and another method."
        )
    table = np.array([[v[method] for method in shared] for v in volumes])
    ranks = np.asarray(rankdata(-table, axis=1))
    gaps = table[:, [shared.index(default)]] - table
    rows = [
        MethodRank(
            method=method,
            mean_rank=float(ranks[:, i].mean()),
            ranks=tuple(ranks[:, i].tolist()),
            behind=int((gaps[:, i] > 0).sum()),
            lead=float(gaps[:, i].mean()),
            p=_p_value(wilcoxon(gaps[:, i])) if gaps[:, i].any() else np.nan,
        )
        for i, method in enumerate(shared)
    ]
    return sorted(rows, key=lambda row: row.mean_rank)


def _p_value(result: Any) -> float:
    return float(result.pvalue)


@jax.jit
def hypervolume(points: Float[Array, "N 3"], reference: Float[Array, "3"]) -> Float[Array, ""]:
    """Volume dominated by the points and bounded by the reference, all objectives minimized.

    The values of the third objective divide space into slabs; within each, the area dominated by
    the points below it is a staircase in the other two. This takes O(N^2) operations in one
    program.

    Args:
      points: the objectives of each point; dominated points and those beyond the reference
        contribute nothing.
      reference: the worst value of each objective.

    References:
      Zitzler & Thiele, PPSN 1998, for the measure.
    """
    x, y, z = jnp.minimum(points, reference).T
    order = jnp.argsort(x)
    x, y, z = x[order], y[order], z[order]
    levels = jnp.sort(z)
    widths = jnp.diff(x, append=reference[0])
    heights = jnp.diff(levels, append=reference[2])
    steps = jnp.where(z <= levels[:, None], y, reference[1])
    areas = ((reference[1] - jax.lax.cummin(steps, axis=1)) * widths).sum(1)
    return jnp.vdot(areas, heights)
