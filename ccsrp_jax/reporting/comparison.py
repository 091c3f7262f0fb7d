"""Methods side by side: hypervolumes over targets, their spread over seeds, and paired tests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from ccsrp_jax.utils.errors import InputError

# What is minimised beside the clean and the robust error, as a share of the dense network's.
COSTS = ("macs", "params", "synops")


WORST = (1.0, 1.0, 1.0)  # errors and share: nothing right, nothing saved


class Spread(NamedTuple):
    """A measure over seeds."""

    mean: float
    deviation: float  # of the sample; nan for a single seed
    seeds: int


class Paired(NamedTuple):
    """Two methods on the same seeds."""

    difference: float  # mean, first minus second
    deviation: float  # of the differences
    p: float  # of a paired t-test, two-sided; nan where it says nothing
    wins: int  # seeds on which the first is above
    seeds: int  # that both have


class Standing(NamedTuple):
    """A method beside all others, over networks."""

    method: str
    mean_rank: float  # 1 is the highest hypervolume
    ranks: tuple[float, ...]  # by network
    behind: int  # networks on which the default is above it
    lead: float  # of the default over it, mean over networks
    p: float  # of Wilcoxon's signed-rank test over networks, two-sided; nan for the default


def points(cells: Iterable[Mapping], dense: Mapping, cost: str = "macs") -> np.ndarray:
    """(N, 3): clean error, robust error and share of the dense network's cost, of each cell."""
    rows = [
        (1 - cell["accuracy"], 1 - cell["robust_accuracy"], cell[cost] / dense[cost])
        for cell in cells
    ]
    return np.array(rows, np.float32).reshape(-1, 3)


def hypervolumes(
    cells: Sequence[Mapping], dense: Mapping, cost: str = "macs"
) -> dict[str, dict[int, float]]:
    """By method and seed, the hypervolume that the method's networks for all targets dominate.

    The reference is a network without a right answer that saves nothing. Methods and seeds
    that lack a target which others have are left out, since fewer points dominate less.
    """
    wanted = {cell["target"] for cell in cells}
    found: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = [cell for cell in cells if cell["method"] == method]
        for seed in sorted({cell["seed"] for cell in own}):
            chosen = [cell for cell in own if cell["seed"] == seed]
            if {cell["target"] for cell in chosen} == wanted:
                volume = hypervolume(jnp.asarray(points(chosen, dense, cost)), jnp.array(WORST))
                found.setdefault(method, {})[seed] = float(volume)
    return found


def spread(values: Iterable[float]) -> Spread:
    """Mean and deviation over seeds."""
    values = np.array(list(values), float)
    deviation = values.std(ddof=1) if len(values) > 1 else np.nan
    return Spread(float(values.mean()), float(deviation), len(values))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired:
    """Compares two methods seed by seed, on those that both have."""
    seeds = sorted(first.keys() & second.keys())
    gaps = np.array([first[seed] - second[seed] for seed in seeds])
    if not len(gaps):
        return Paired(np.nan, np.nan, np.nan, 0, 0)
    spread_ = gaps.std(ddof=1) if len(gaps) > 1 else np.nan
    p = float(stats.ttest_1samp(gaps, 0).pvalue) if len(gaps) > 1 and spread_ > 0 else np.nan
    return Paired(float(gaps.mean()), float(spread_), p, int((gaps > 0).sum()), len(gaps))


def over_networks(records: Sequence[Mapping], default: str, cost: str = "macs") -> list[Standing]:
    """Compares methods that remove filters over several networks, by ranks of their hypervolumes.

    A network counts once, with the mean over its seeds: seeds of one network do not tell what
    another would say. Methods that a network lacks are left out. The p of a rival is its own, not
    corrected for their number.

    Args:
      records: of `experiments/compare_methods.py`, a network each.
      default: the method that the others are set against.
      cost: of `COSTS`.

    Returns:
      Methods in ascending order of their mean rank.

    Raises:
      InputError: there is one network only, or no two methods with the default on all of them.

    References:
      Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006).
    """
    volumes = []
    for record in records:
        cells = [cell for cell in record["cells"] if not cell["weights"]]
        found = hypervolumes(cells, record["dense"], cost)
        volumes.append({method: spread(of.values()).mean for method, of in found.items()})
    shared = [m for m in (volumes[0] if volumes else ()) if all(m in v for v in volumes)]
    if len(records) < 2 or default not in shared or len(shared) < 2:
        raise InputError(
            f"{len(records)} networks share the methods {', '.join(shared) or 'none'}: give tables "
            f"of two networks or more that share {default!r} and another method."
        )
    table = np.array([[v[method] for method in shared] for v in volumes])
    ranks = stats.rankdata(-table, axis=1)
    standings = []
    for column, method in enumerate(shared):
        gaps = table[:, shared.index(default)] - table[:, column]
        p = float(stats.wilcoxon(gaps).pvalue) if gaps.any() else np.nan
        own = tuple(ranks[:, column].tolist())
        standings.append(
            Standing(method, float(np.mean(own)), own, int((gaps > 0).sum()), float(gaps.mean()), p)
        )
    return sorted(standings, key=lambda standing: standing.mean_rank)


@jax.jit
def hypervolume(points: Float[Array, "N 3"], reference: Float[Array, "3"]) -> Float[Array, ""]:
    """Volume between a reference point and the points, all objectives minimised.

    The third objective cuts space into slabs; in each, the area that the points below it dominate
    is a staircase in the first two. That is O(N^2) work in one program.

    Args:
      points: objectives of each; dominated ones and those beyond the reference add nothing.
      reference: the worst value of every objective.

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
