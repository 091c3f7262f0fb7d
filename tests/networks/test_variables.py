"""Variables of another network are refused in a sentence, wherever a network is given."""

import jax
import numpy as np
import pytest

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.compaction import compact
from ccsrp_jax.robustness.accuracy import predict
from ccsrp_jax.utils.errors import InputError

THIS = zoo.plain((4, "A", 6), (8, 8, 1), 10, time_steps=2)
OTHER = zoo.plain((4, "A", 5), (8, 8, 1), 10, time_steps=2)
IMAGES, LABELS = np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int32)


def _compact(variables):
    compact(THIS, variables, masks.ones(THIS))


def _predict(variables):
    predict(Classifier(THIS), (variables, None), IMAGES)


def _attack(variables):
    PGD(0.1, 1)(Classifier(THIS), (variables, None), IMAGES, LABELS, jax.random.key(0))


@pytest.mark.parametrize("use", [_compact, _predict, _attack])
def test_variables_of_another_network_are_refused(use):
    own = zoo.init(jax.random.key(0), THIS)
    more = own["params"] | {"conv9": {"kernel": np.zeros(3)}}
    for variables, says in (
        (zoo.init(jax.random.key(0), OTHER), r"another network \(.*\(6,\) != \(5,\)"),
        ({"params": own["params"]}, "lack 'batch_stats/norm1/mean'"),
        (own | {"params": more}, "beside those of the architecture, 'params/conv9/kernel'"),
        (own | {"params": own["params"] | {"conv1": {"kernel": "none"}}}, "another network"),
    ):
        with pytest.raises(InputError, match=says) as told:
            use(variables)
        assert "\n" not in str(told.value)
    use(own)
