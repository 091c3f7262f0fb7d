"""Catastrophic overfitting: seen in sequences, in a function that shows it, and in the records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, linear
from workers import trainer

from ccsrp_jax.attacks.one_step import NFGSM, rs_fgsm
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.training import overfitting
from ccsrp_jax.training import trainer as training
from ccsrp_jax.training.overfitting import AttackedAccuracies, attacked_accuracies, collapsed
from ccsrp_jax.training.recipe import Recipe

EPS = 0.1


@pytest.mark.parametrize(
    ("sequence", "expected"),
    (
        ([], False),
        ([(0.2, 0.1)], False),
        ([(0.2, 0.15), (0.3, 0.25), (0.4, 0.33)], False),
        ([(0.3, 0.25), (0.4, 0.33), (0.7, 0.05)], True),
        ([(0.3, 0.25), (0.4, 0.33), (0.41, 0.12)], True),  # a fall beside a rise
        ([(0.4, 0.33), (0.2, 0.1)], False),  # both fall: not robust, but as it is trained
        ([(0.4, 0.33), (0.7, 0.05), (0.38, 0.34)], False),  # recovered
        ([(0.8, 0.0)], True),  # as a resumed training finds it
        ([(0.2, 0.0)], False),
    ),
)
def test_a_collapse_is_a_fall_under_pgd_while_the_one_step_attack_fails(sequence, expected):
    assert collapsed([AttackedAccuracies(*each) for each in sequence]) == expected


def dented(eps, images):
    """Right at an image and in the corners of its ball, wrong half way: what such networks do."""
    distance = jnp.abs((images - 0.5).mean((1, 2, 3))) / eps
    margin = jnp.where(distance < 0.6, 0.5 - 2 * distance, 10 * (distance - 0.75))
    return jnp.stack([jnp.zeros_like(margin), margin], 1)


@pytest.mark.parametrize("attack", (rs_fgsm(EPS), PGD(EPS, 1)))
def test_a_function_that_only_withstands_whole_steps_is_found(attack):
    batches = [(jnp.full((8, 4, 4, 1), 0.5), jnp.ones(8, int)) for _ in range(2)]
    found = attacked_accuracies(dented, EPS, batches, attack, jax.random.key(0))
    assert found.one_step == 1 and found.pgd < 0.15 and collapsed([found])


def test_accuracies_are_those_of_the_worst_case_for_a_linear_function():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.3, 0.7, (64, 2, 2, 1)).astype(np.float32))
    weights = jnp.asarray(rng.normal(size=(4, 2)).astype(np.float32))
    labels = linear(weights, images).argmax(-1)
    change = jnp.abs(weights[:, 1] - weights[:, 0]).sum() * EPS
    logits = linear(weights, images)
    robust = float((jnp.abs(logits[:, 1] - logits[:, 0]) > change).mean())
    assert 0.1 < robust < 0.9
    halves = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    found = attacked_accuracies(linear, weights, halves, fgsm(EPS), jax.random.key(0))
    assert found == pytest.approx((robust, robust)) and not collapsed([found])


def test_epochs_of_one_step_attacks_record_both_accuracies_and_do_not_depend_on_it(
    digits, monkeypatch
):
    split = Split(digits.train.images[:24], digits.train.labels[:24])
    plan = Recipe(epochs=3, batch_size=12, clean_epochs=1, adversarial=NFGSM(EPS))

    def trained():
        rows = []
        variables = training.train(
            jax.random.key(0),
            Classifier(trainer.SMALL),
            busy(trainer.SMALL, seed=0),
            {},
            split,
            plan,
            on_epoch=lambda epoch: rows.append(epoch.as_row()),
        )
        return variables, rows

    variables, rows = trained()
    assert [row.get("collapsed") for row in rows] == [None, False, False]
    assert "pgd_accuracy" not in rows[0]
    assert all(
        0 <= row[f"{name}_accuracy"] <= 1 for row in rows[1:] for name in ("pgd", "one_step")
    )
    monkeypatch.setattr(overfitting, "is_checked", lambda recipe, epoch: False)
    unchecked, _ = trained()
    jax.tree.map(np.testing.assert_array_equal, variables, unchecked)


@pytest.mark.parametrize("attack", (PGD(EPS, 3), fgsm(EPS, norm="l2"), None))
def test_other_trainings_are_not_checked(attack):
    assert not overfitting.is_checked(Recipe(adversarial=attack), 3)
    assert not overfitting.is_checked(Recipe(adversarial=fgsm(EPS), clean_epochs=4), 3)
