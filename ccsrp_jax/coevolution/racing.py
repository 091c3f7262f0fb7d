"""Racing: candidates that are significantly worse are eliminated before they see all images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from ccsrp_jax.utils.fields import Limits, check_fields

LIMITS = {
    "confidence": Limits(0, 1, above=True),
    "first": Limits(2),
    "robust_weight": Limits(0),
    "macs_weight": Limits(0),
}


@dataclass(frozen=True)
class Racing:
    """Elimination of candidates that are significantly worse than the leader.

    All candidates see the same images in the same random order. At each elimination point, of
    which there is one whenever the odds n / (N - n) of n seen to N - n unseen images have doubled,
    each candidate is compared with the leader, the best so far, by the paired differences of their
    values on the images seen. It is eliminated if the lower confidence limit of its mean difference
    over all N images is above 0.

    The limit is Student's with finite-population correction, so that it equals the mean at n = N;
    the error level is divided among all pairs and elimination points (Bonferroni). It holds as far
    as means over `first` images and more are normal. A candidate whose differences are all equal is
    not eliminated.

    Attributes:
      confidence: that the best candidate of a race is not eliminated.
      first: images seen before the first elimination point, at least.
      objective, robust_weight, macs_weight: the compared value, as in `Search`.

    Raises:
      InputError: a setting out of its range.

    References:
      Maron & Moore, Hoeffding Races, NIPS 1993 (with Hoeffding's bound, which at some
      thousands of images eliminates almost no candidate); Moore & Lee, ICML 1994 (paired
      differences).
    """

    confidence: float = 0.95
    first: int = 32
    objective: Literal["accuracy", "loss"] = "accuracy"
    robust_weight: float = 1.0
    macs_weight: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "racing", LIMITS)

    def elimination_points(self, batches: int, batch_size: int) -> list[int]:
        """Numbers of batches after which candidates may be eliminated, in increasing order.

        The width of the confidence interval after n of N images is proportional to
        sqrt((N - n) / n), so equal factors of the odds n / (N - n) narrow it by equal factors. The
        end of the race is not among the points.
        """
        first = -(-self.first // batch_size)
        if first >= batches:
            return []
        odds = first / (batches - first)
        doublings = max(0, math.floor(-2 * math.log2(odds)))  # up to the odds' inverse
        shares = [odds * 2**i / (1 + odds * 2**i) for i in range(doublings + 1)]
        return sorted({round(batches * share) for share in shares})

    def eliminated(
        self,
        values: Float[np.ndarray, "2 2 M n"],
        macs: Float[np.ndarray, "M"],
        total: int,
        points: int,
    ) -> Bool[np.ndarray, "M"]:
        """Which candidates are eliminated at one point; those with a non-finite value always are.

        Args:
          values: by set (clean, adversarial) and kind (error, loss), on the n images seen.
          macs: share of the dense network's MACs that each candidate leaves.
          total: images of the whole race, N.
          points: elimination points of the whole race.
        """
        from scipy.special import stdtrit  # slow to import

        kind = ("accuracy", "loss").index(self.objective)
        out = np.asarray(~np.isfinite(values).all((0, 1, 3)))
        if out.all():
            return out
        clean, robust = values[:, kind, ~out].astype(np.float64)
        macs = self.macs_weight * macs[~out]
        leader = np.argmin(clean.mean(-1) + self.robust_weight * robust.mean(-1) + macs)
        # differences of each set first: equal ones then stay equal whatever the weight
        difference = clean - clean[leader] + self.robust_weight * (robust - robust[leader])
        varies = (difference != difference[:, :1]).any(-1)
        (_, _, members, seen) = values.shape
        level = 1 - (1 - self.confidence) / max((members - 1) * points, 1)
        quantile = stdtrit(seen - 1, level) * np.sqrt((1 - seen / total) / seen)
        mean = difference.mean(-1) + macs - macs[leader]
        out[~out] = varies & (mean > quantile * difference.std(-1, ddof=1))
        return out


def rank_eliminated_last(
    points: Float[np.ndarray, "M 3"],
    eliminated: Bool[np.ndarray, "M"],
    scalarize: Callable[[np.ndarray], np.ndarray],
) -> Float[np.ndarray, "M 3"]:
    """Objectives in which every eliminated candidate is worse than all that finished the race.

    An eliminated candidate's means over fewer images are not comparable and could be better by
    chance; its clean objective is raised until its scalar value exceeds the worst finisher's.

    Args:
      points: objectives of the candidates of one race, minimized.
      eliminated: which of them were eliminated.
      scalarize: (M, 3) objectives to (M,) values, linear with weight 1 on the first objective.
    """
    values = scalarize(points)
    finished = values[~eliminated & np.isfinite(values)]
    if not finished.size:
        return points
    raised = points.copy()
    # strictly above: an equal one could be chosen
    raised[eliminated, 0] += np.maximum(finished.max() + 1e-9 - values[eliminated], 0)
    return raised
