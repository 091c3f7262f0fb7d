"""Races between candidates: the beaten ones drop out before they have seen all images."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from ccsrp_jax.utils.errors import check_number, unknown


@dataclass(frozen=True)
class Racing:
    """When a candidate is out: when it is worse than the leader beyond chance.

    Candidates see the same images in the same random order. Every time that the odds of images
    seen to images not seen have doubled, each is compared with the leader, the best so far, by
    the paired differences between their values on the images seen; it is out where even the
    lower end of the confidence interval says that it is worse on all images. The interval is
    Student's, with the correction for a finite population (after the last image nothing is left
    to chance), and its level divided among all pairs and looks. It holds as far as means of
    `first` images and more are normal; where no two differences differ, nothing is concluded.

    Attributes:
      confidence: that the best candidate of a race is not dropped.
      first: images seen before the first may drop out, at least.
      objective, robust_weight, macs_weight: what is compared, as in `Search`.

    References:
      Maron & Moore, Hoeffding Races, NIPS 1993 (with Hoeffding's bound, which at some
      thousands of images drops next to nobody); Moore & Lee, ICML 1994 (paired differences).
    """

    confidence: float = 0.95
    first: int = 32
    objective: Literal["accuracy", "loss"] = "accuracy"
    robust_weight: float = 1.0
    macs_weight: float = 0.0

    def __post_init__(self) -> None:
        check_number("racing confidence", self.confidence, 0, 1, above=True)
        check_number("racing first", self.first, 2)
        check_number("robust_weight", self.robust_weight, 0)
        check_number("macs_weight", self.macs_weight, 0)
        if self.objective not in ("accuracy", "loss"):
            raise unknown("objective", self.objective, ("accuracy", "loss"))

    def looks(self, batches: int, batch_size: int) -> list[int]:
        """After how many batches to look, but for the last, after which all is known.

        With n of N images seen, the interval is as wide as the root of (N - n) / n, so that equal
        steps of the odds n / (N - n) make it narrower by equal factors.
        """
        first = -(-self.first // batch_size)
        if first >= batches:
            return []
        odds = first / (batches - first)
        doublings = max(0, math.floor(-2 * math.log2(odds)))  # until as few are not yet seen
        shares = [odds * 2**i / (1 + odds * 2**i) for i in range(doublings + 1)]
        return sorted({round(batches * share) for share in shares})

    def beaten(
        self,
        values: Float[np.ndarray, "2 2 M n"],
        macs: Float[np.ndarray, "M"],
        total: int,
        looks: int,
    ) -> Bool[np.ndarray, "M"]:
        """Which candidates are out.

        Args:
          values: by set (clean, adversarial) and kind (error, loss), on the n images seen.
          macs: share of the MACs that each leaves.
          total: images of the whole race.
          looks: how many times candidates may drop out in it.
        """
        kind = ("accuracy", "loss").index(self.objective)
        out = ~np.isfinite(values).all((0, 1, 3))
        if out.all():
            return out
        clean, robust = values[:, kind, ~out].astype(np.float64)
        macs = self.macs_weight * macs[~out]
        leader = np.argmin(clean.mean(-1) + self.robust_weight * robust.mean(-1) + macs)
        # each set's first: equal differences then stay equal, however they are weighted
        difference = clean - clean[leader] + self.robust_weight * (robust - robust[leader])
        differ = (difference != difference[:, :1]).any(-1)
        (_, _, members, seen) = values.shape
        level = 1 - (1 - self.confidence) / max((members - 1) * looks, 1)
        quantile = stats.t.ppf(level, seen - 1) * np.sqrt((1 - seen / total) / seen)
        worse = difference.mean(-1) + macs - macs[leader]
        out[~out] = differ & (worse > quantile * difference.std(-1, ddof=1))
        return out
