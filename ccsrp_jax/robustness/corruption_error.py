"""Corruption error of a network relative to another one, such as the dense network it came from."""

from collections.abc import Mapping
from typing import NamedTuple

from ccsrp_jax.utils.errors import InputError, check_number, shown


class CorruptionError(NamedTuple):
    """Errors under corruptions, in units of a baseline's errors; below 1 is better than it.

    Attributes:
      mean: mean corruption error (mCE), over corruptions.
      by_corruption: corruption error of each, the error summed over severities divided by the
        baseline's sum.
    """

    mean: float
    by_corruption: dict[str, float]


def mean_corruption_error(
    accuracies: Mapping[str, float], baseline: Mapping[str, float]
) -> CorruptionError:
    """Mean corruption error relative to a baseline (mCE).

    CE_c = sum_s E_{s,c} / sum_s E_{s,c} of the baseline, with E the top-1 error under corruption c
    at severity s; mCE is their mean over c. The source takes AlexNet as the baseline, all five
    severities, and multiplies by 100; here the severities are those that are given.

    Args:
      accuracies: of a network in [0, 1], by corruption and severity, `"fog 3"`, as in
        `Assessment.natural`.
      baseline: those of the other network, such as the dense one, on the same images.

    Raises:
      InputError: no accuracies, some that are not in [0, 1], networks that were measured under
        different corruptions, or a baseline without any error under one of them.

    References:
      Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
      Perturbations, ICLR 2019, section 4.2.
    """
    if not accuracies:
        raise InputError("there is no accuracy under a corruption: measure some, such as 'fog 3'.")
    if different := accuracies.keys() ^ baseline.keys():
        raise InputError(
            f"only one of the two networks was measured under {shown(min(different))}: measure "
            "both under the same corruptions and severities."
        )
    errors = {name: [0.0, 0.0] for name in map(_corruption, accuracies)}
    for name in accuracies:
        for which, values in enumerate((accuracies, baseline)):
            check_number(f"accuracy under {name}", values[name], 0, 1)
            errors[_corruption(name)][which] += 1 - values[name]
    for name, (_, reference) in errors.items():
        if reference == 0:
            raise InputError(
                f"the baseline makes no error under {name}, so that a ratio to it has no meaning: "
                "measure on more images or at higher severities, or leave that corruption out."
            )
    ratios = {name: error / reference for name, (error, reference) in errors.items()}
    return CorruptionError(sum(ratios.values()) / len(ratios), ratios)


def _corruption(name: str) -> str:
    """The corruption of a name and severity."""
    corruption, _, severity = name.rpartition(" ")
    if not corruption or not severity.isdecimal():
        raise InputError(
            f"{shown(name)} names no corruption with its severity: write them as 'fog 3'."
        )
    return corruption
