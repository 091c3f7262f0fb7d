"""Alternating flips: each image is mirrored in every second epoch, from a random first one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.data.augmentation import alternating_flips, augment
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)


def test_every_image_is_mirrored_in_every_second_epoch():
    indices = jax.random.permutation(KEY, 400)[:300]
    by_epoch = np.array([alternating_flips(KEY, indices, epoch, 400) for epoch in range(4)])
    assert (by_epoch[1:] != by_epoch[:-1]).all()
    assert 0.4 < by_epoch[0].mean() < 0.6
    whole = alternating_flips(KEY, jnp.arange(400), 0, 400)
    np.testing.assert_array_equal(by_epoch[0], whole[indices])  # an image's, wherever it comes
    other = alternating_flips(jax.random.key(1), indices, 0, 400)
    assert 0.3 < (other != by_epoch[0]).mean() < 0.7


def test_two_epochs_show_an_image_in_both_ways(images):
    indices = jnp.arange(len(images))
    shown = []
    for epoch in range(2):
        flips = alternating_flips(KEY, indices, epoch, len(images))
        key = jax.random.fold_in(KEY, epoch)
        shown.append(augment(key, images, kind="alternating_flip", flips=flips))
    both = np.stack([images, images[:, :, ::-1]], 1)
    np.testing.assert_array_equal(sum(shown), both.sum(1))
    assert (shown[0] == images).all((1, 2, 3)).any() and not (shown[0] == images).all()


def test_cropping_goes_with_alternating_flips(images):
    flips = jnp.arange(len(images)) % 2 == 0
    moved = augment(KEY, images, kind="crop_alternating_flip", flips=flips)
    shifted = augment(KEY, images, kind="shift")
    expected = np.where(flips[:, None, None, None], shifted[:, :, ::-1], shifted)
    np.testing.assert_array_equal(moved, expected)


def test_alternating_flips_are_to_be_given(images):
    with pytest.raises(InputError, match="alternating_flip mirrors chosen images"):
        augment(KEY, images, kind="alternating_flip")
