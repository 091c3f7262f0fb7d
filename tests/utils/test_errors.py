"""Checks of numbers, whatever is given for one."""

import numpy as np
import pytest

from ccsrp_jax.utils.errors import InputError, check_number


def test_numbers_of_any_kind_are_checked(untyped):
    for value in (10**400, 10**5000, -(10**400), float("inf"), float("nan"), np.float32(7)):
        with pytest.raises(InputError, match="out of range") as refused:
            check_number("rounds", value, 0, 5)
        assert len(str(refused.value)) < 150
    for value in ("4", None, np.zeros(3), 1j, [1]):
        with pytest.raises(InputError, match="give a number"):
            check_number("rounds", value, 0, 5)
    check_number("rounds", np.int8(3), 0, 5)
