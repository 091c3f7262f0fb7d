"""One check of images and labels, at every public function that takes them."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy
from workers import entries
from workers.processes import finish, start

from ccsrp_jax.data.splits import Split
from ccsrp_jax.utils.errors import InputError

IMAGES, LABELS = entries.sound()
NAN = IMAGES.copy()
NAN[3, 2, 1, 0] = np.nan
WRONG_IMAGES = {
    "floats in 0..255": (IMAGES * 255, "images span"),
    "normalized": ((IMAGES - 0.5) / 0.25, "images span"),
    "a NaN": (NAN, "images span nan"),
    "none": (IMAGES[:0], "no images"),
    "of another size": (IMAGES[:, :6], r"\(6, 8, 1\), but the network takes \(8, 8, 1\)"),
    "of other channels": (np.repeat(IMAGES, 3, -1), "but the network takes"),
}
WRONG_LABELS = {
    "1..10": (LABELS + 1, "labels span 1 to 10, but the network has 10 classes"),
    "-1..8": (LABELS - 1, "labels span -1 to 8"),
    "too few": (LABELS[:4], "do not go together"),
    "too many": (np.tile(LABELS, 2), "do not go together"),
}


@pytest.fixture(scope="module")
def variables():
    return busy(entries.NETWORK, seed=0)


def cases():
    for what, (images, message) in WRONG_IMAGES.items():
        for entry in entries.ENTRIES:
            if "take" not in message or entry not in entries.FREE_OF_SHAPE:
                labels = LABELS[: len(images)]
                yield pytest.param(entry, images, labels, message, id=f"{entry}-{what}")
    for what, (labels, message) in WRONG_LABELS.items():
        for entry in entries.WITH_LABELS:
            # lengths of an attack's arguments are refused by their annotations here, and by
            # `entries.check_types` without them
            if message != "do not go together" or entry not in entries.ATTACKS:
                yield pytest.param(entry, IMAGES, labels, message, id=f"{entry}-labels {what}")


@pytest.mark.parametrize("entry, images, labels, message", list(cases()))
def test_every_entry_refuses_what_cannot_be_used(variables, entry, images, labels, message):
    # attacks take arrays of JAX
    arrays = jnp.asarray if entry in ("PGD", "APGD") else np.asarray
    split = Split(arrays(images), arrays(labels))
    with pytest.raises(InputError, match=message) as refused:
        entries.ENTRIES[entry](entries.CLASSIFIER, variables, split, entries.KEY)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_wrong_types_are_refused_in_a_sentence():
    # in a process of its own, in which beartype does not refuse them first
    finish([start("from workers import entries; entries.check_types()")])


@pytest.mark.parametrize("entry", ("correct", "Square", "Noise", "predict", "corrupt", "certify"))
def test_bytes_in_another_order_are_read(variables, entry):
    call = entries.ENTRIES[entry]
    swapped = Split(IMAGES.astype(">f4"), LABELS.astype(">i8"))
    found, expected = (
        call(entries.CLASSIFIER, variables, each, entries.KEY)
        for each in (swapped, Split(IMAGES, LABELS))
    )
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("entry", ("correct", "PGD", "Noise", "predict", "corrupt", "certify"))
def test_bytes_are_sound_everywhere(variables, entry):
    pixels = (IMAGES * 255).round().astype(np.uint8)
    call = entries.ENTRIES[entry]
    found, expected = (
        call(entries.CLASSIFIER, variables, Split(each, LABELS), entries.KEY)
        for each in (pixels, pixels.astype(np.float32) / 255)
    )
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-6)
