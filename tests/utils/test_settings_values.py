"""Fields of settings: refused in a sentence, or converted to plain numbers."""

import dataclasses
import math

import numpy as np
import pytest

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import Hart
from ccsrp_jax.networks.zoo import plain
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods.hydra import ScoreSearch
from ccsrp_jax.robustness.smoothing import Smoothing
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils.errors import InputError, check_number, unknown
from ccsrp_jax.utils.execution import Execution

pytestmark = pytest.mark.usefixtures("untyped")

SETTINGS = (
    *(PGD(), APGD(), SAPGD(), Square(), Noise(0.1), ThreatModel("linf", 0.1), Smoothing(0.1)),
    *(Racing(), Search(), Recipe(), Target(), ScoreSearch(), Execution(), Hart()),
    Classifier(plain((2,), (4, 4, 1), 2)),
)
NO_NUMBERS = (math.nan, math.inf, -1, 10**400, "3", b"3", True, [3, 4], {"a": 1}, 1j, object())
FIELDS = [(each, field.name) for each in SETTINGS for field in dataclasses.fields(each)]
NUMBERS = [(each, name) for each, name in FIELDS if type(getattr(each, name)) in (int, float)] + [
    (Execution(), "member_chunk"),
    (ScoreSearch(), "epochs"),
]


def named(value):
    return value if isinstance(value, str) else type(value).__name__


def refused(instance, name, value):
    with pytest.raises(InputError) as caught:
        dataclasses.replace(instance, **{name: value})
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 600


@pytest.mark.parametrize("instance, name", NUMBERS, ids=named)
def test_a_number_is_one_that_is_finite_and_not_negative(instance, name):
    for value in NO_NUMBERS:
        refused(instance, name, value)
    if type(getattr(instance, name)) is int:
        refused(instance, name, 2.5)


@pytest.mark.parametrize("instance, name", FIELDS, ids=named)
def test_no_field_takes_what_is_neither_number_nor_name(instance, name):
    for value in (object(), {"a": 1}, 1j, [[1]]):
        if not (name == "mesh" or callable(value)):
            refused(instance, name, value)


@pytest.mark.parametrize("instance, name", NUMBERS, ids=named)
@pytest.mark.parametrize("kind", (np.asarray, np.float32, np.float64, np.int64))
def test_numbers_of_numpy_become_plain(instance, name, kind):
    plain_value = getattr(instance, name)
    plain_value = 3 if plain_value is None else plain_value
    if type(plain_value) is int and kind in (np.float32, np.float64):
        return
    if type(plain_value) is float and kind is np.int64:
        kind = np.float16
    changed = dataclasses.replace(instance, **{name: kind(plain_value)})
    assert type(getattr(changed, name)) in (int, float)
    hash(changed)


@pytest.mark.parametrize(
    "value", ("3", b"3", True, None, [1], 1j, math.nan, 10**5000, "a\nb"), ids=named
)
def test_a_check_of_a_number_refuses_all_else_in_one_line(value):
    with pytest.raises(InputError) as caught:
        check_number("size", value, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", (3, None, b"ce", ["ce"], math.nan))
def test_a_name_is_text(value):
    assert "expected one of a, b" in str(unknown("name", value, ("b", "a")))
