"""Confidence intervals."""

import math


def wilson_interval(share: float, count: float | int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share measured on `count` images; nan if unknown.

    It says what another draw of as many test images could show for the same network; two
    networks that saw the same images differ more surely than their intervals suggest.
    """
    if not (math.isfinite(share + count) and count > 0):
        return math.nan, math.nan
    z2 = 1.96**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return centre - half, centre + half
