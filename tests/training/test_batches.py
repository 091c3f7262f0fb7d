"""Shuffled batches: every image at most once an epoch, keys by step, the same when resumed."""

import jax
import numpy as np
import pytest

from ccsrp_jax.training.batches import full_batch, shuffled_batches, steps_per_epoch
from ccsrp_jax.training.recipe import Recipe

KEY = jax.random.key(3)


@pytest.mark.parametrize(("batch_size", "steps", "size"), [(4, 5, 4), (7, 3, 7), (30, 1, 22)])
def test_an_epoch_has_full_batches_of_distinct_images(batch_size, steps, size):
    recipe = Recipe(batch_size=batch_size)
    batches = list(shuffled_batches(KEY, recipe, 22, 0))
    assert len(batches) == steps_per_epoch(recipe, 22) == steps
    assert {len(batch.indices) for batch in batches} == {full_batch(recipe, 22)} == {size}
    indices = np.concatenate([batch.indices for batch in batches])
    assert len(np.unique(indices)) == len(indices)
    assert set(indices.tolist()) <= set(range(22))


def test_epochs_are_numbered_through_and_have_orders_and_keys_of_their_own():
    recipe = Recipe(batch_size=5)
    batches = [batch for epoch in range(3) for batch in shuffled_batches(KEY, recipe, 20, epoch)]
    assert [batch.step for batch in batches] == list(range(12))
    orders = np.reshape([batch.indices for batch in batches], (3, 20))
    assert (np.sort(orders) == np.arange(20)).all()
    assert len({tuple(order) for order in orders.tolist()}) == 3
    keys = {tuple(jax.random.key_data(batch.key).tolist()) for batch in batches}
    assert len(keys) == 12


def test_an_epochs_batches_depend_on_the_key_and_the_epoch_alone():
    recipe = Recipe(batch_size=5)
    first, again = (list(shuffled_batches(KEY, recipe, 20, 2)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.step == other.step and (one.indices == other.indices).all()
        assert jax.random.key_data(one.key).tolist() == jax.random.key_data(other.key).tolist()
    elsewhere = list(shuffled_batches(jax.random.key(4), recipe, 20, 2))
    assert any((a.indices != b.indices).any() for a, b in zip(first, elsewhere, strict=True))
