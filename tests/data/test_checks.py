"""The check of images and labels: what is refused, in one sentence, and what is left as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.data.checks import checked_images, checked_labels, checked_split
from ccsrp_jax.data.datasets import from_arrays
from ccsrp_jax.data.splits import Dataset, Split
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.keys import checked_key

IMAGES = np.random.default_rng(0).uniform(size=(6, 4, 5, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0], np.int32)
ABOVE = np.nextafter(np.float32(1), np.float32(2))


class Foreign:
    """As the tensors of other libraries that refuse to become NumPy arrays."""

    shape = IMAGES.shape
    dtype = "float32"

    def __array__(self, *_, **__):
        raise TypeError("can't convert a tensor that requires grad")


def with_pixel(value, dtype=np.float32):
    images = IMAGES.astype(dtype)
    images[0, 0, 0, 0] = value
    return images


REFUSED = {
    "floats in 0..255": (Split(IMAGES * 255, LABELS), "images span"),
    "int64 in 0..255": (Split((IMAGES * 255).astype(int), LABELS), "type int64"),
    "bool": (Split(IMAGES > 0.5, LABELS), "type bool"),
    "complex": (Split(IMAGES.astype(complex), LABELS), "type complex128"),
    "normalized": (Split((IMAGES - 0.5) / 0.25, LABELS), "images span -"),
    "NaN": (Split(with_pixel(np.nan), LABELS), "images span nan"),
    "infinite": (Split(with_pixel(np.inf), LABELS), "images span .* to inf"),
    "above 1": (Split(with_pixel(1.0001), LABELS), "images span .* to 1.0001"),
    "below 0": (Split(with_pixel(-0.01, np.float64), LABELS), "images span -0.01"),
    "on a device": (Split(jnp.asarray(IMAGES * 2), LABELS), "images span"),
    "no channels": (Split(IMAGES[..., 0], LABELS), "do not go together"),
    "no pixels": (Split(IMAGES[:, :0], LABELS), "give .N, H, W, C."),
    "none": (Split(IMAGES[:0], LABELS[:0]), "no images: give at least one"),
    "fewer labels": (Split(IMAGES, LABELS[:2]), "do not go together"),
    "more labels": (Split(IMAGES[:2], LABELS), "do not go together"),
    "labels 1..K": (Split(IMAGES, LABELS + 1), "labels span 1 to 3, but the network has 3"),
    "labels from -1": (Split(IMAGES, LABELS - 1), "labels span -1 to 1"),
    "labels of 64 bits": (
        Split(IMAGES, np.full(6, 2**63, np.uint64)),
        "labels span 9223372036854775808",
    ),
    "labels as floats": (Split(IMAGES, LABELS.astype(float)), "labels have type float64"),
    "labels as bools": (Split(IMAGES, LABELS > 0), "labels have type bool"),
    "one-hot": (Split(IMAGES, np.eye(3)[LABELS]), "one-hot vectors.*argmax"),
    "labels as text": (Split(IMAGES, LABELS.astype(str)), "labels have type <U"),
    "a column of labels": (Split(IMAGES, LABELS[:, None]), "shape .6, 1."),
    "a dict": ({"images": IMAGES, "labels": LABELS}, "not a dict: give ccsrp_jax.Split"),
    "an array": (IMAGES, "not a ndarray"),
    "nothing": (None, "not a NoneType"),
    "a triple": ((IMAGES, LABELS, LABELS), "not a tuple"),
    "a data set": (
        Dataset("x", *[Split(IMAGES, LABELS)] * 3, 3, (0,), (1,), "none", {}),
        "not a Dataset: .* train, search or test",
    ),
    "foreign": (Split(Foreign(), LABELS), "images are of type Foreign"),
    "dict as images": (Split({"a": IMAGES}, LABELS), "images are of type dict"),
    "ragged": (Split([[0.5], [0.5, 0.5]], LABELS), "images are of type list"),
    "keys as images": (Split(IMAGES, jax.random.key(0)), "do not go together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_split_that_cannot_be_used_is_refused_in_one_sentence(name):
    split, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as refused:
        checked_split(split, classes=3)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_a_network_of_another_shape_is_named_and_channels_first_are_recognized():
    with pytest.raises(InputError, match=r"\(4, 5, 1\), but the network takes \(8, 8, 1\): give"):
        checked_images(IMAGES, (8, 8, 1))
    with pytest.raises(InputError, match="move the axis of channels to the end"):
        checked_images(np.moveaxis(IMAGES, -1, 1), (4, 5, 1))


@pytest.mark.parametrize("dtype", (np.uint8, np.float16, np.float32, np.float64, jnp.bfloat16))
def test_what_is_sound_is_returned_as_it_was(dtype):
    images = (IMAGES * 255 if dtype == np.uint8 else IMAGES).astype(dtype)
    for given in (images, jnp.asarray(images)):
        split = checked_split(Split(given, LABELS), classes=3, shape=(4, 5, 1))
        assert split.images is given and split.labels is LABELS


@pytest.mark.parametrize("dtype", ("uint8", "int8", "uint16", "int64", "uint64"))
def test_labels_of_any_integer_type_become_int32(dtype):
    labels = checked_labels(LABELS.astype(dtype), 6, 3)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, LABELS)


def test_lists_and_pairs_become_arrays():
    split = checked_split([IMAGES.tolist(), LABELS.tolist()], classes=3)
    assert isinstance(split, Split) and split.labels.dtype == np.int32
    np.testing.assert_allclose(split.images, IMAGES)


@pytest.mark.parametrize(
    "value, dtype",
    (
        (ABOVE, np.float32),
        (-1e-8, np.float32),
        (1 + 9e-7, np.float64),
        (-5e-324, np.float64),
        (1.001, np.float16),
        (1.0078125, jnp.bfloat16),
    ),
)
def test_what_rounding_left_outside_is_clipped(value, dtype):
    images = with_pixel(value, dtype)
    assert not 0 <= float(images[0, 0, 0, 0]) <= 1
    clipped = checked_images(images)
    assert clipped.dtype == images.dtype
    assert float(clipped[0, 0, 0, 0]) == (1 if value > 0.5 else 0)
    np.testing.assert_array_equal(clipped[1:], images[1:])
    if dtype == jnp.bfloat16:  # no type of NumPy, nor of files
        return
    found = from_arrays(*(images.repeat(5, 0), np.tile(LABELS, 5)) * 2)
    everything = np.concatenate([found.train.images, found.search.images])
    assert everything.min() >= 0 and everything.max() <= 1


@pytest.mark.parametrize("value", (1.00001, -1e-5, 1.1))
def test_what_rounding_does_not_explain_is_refused(value):
    images = with_pixel(value)
    with pytest.raises(InputError, match="images span"):
        checked_images(images)
    with pytest.raises(InputError, match="x_train of arrays has values from"):
        from_arrays(*(images, LABELS) * 2)


def test_under_jit_shapes_are_checked_and_values_are_not():
    double = jax.jit(lambda x, y: 2 * checked_split(Split(x, y), classes=3).images)
    np.testing.assert_array_equal(double(IMAGES * 9, LABELS), 18 * IMAGES)
    with pytest.raises(InputError, match="go together"):
        double(IMAGES, LABELS[:3])


def test_a_key_is_one_key_of_either_kind():
    key = jax.random.key(3)
    assert checked_key(key) is key
    for raw in (jax.random.PRNGKey(3), np.asarray(jax.random.PRNGKey(3))):
        assert checked_key(raw) == key
    for wrong in (0, None, "0", np.uint32(3), np.zeros(3, np.uint32), np.zeros(2), [0, 1]):
        with pytest.raises(InputError, match=r"give a random key, such as jax.random.key\(0\)"):
            checked_key(wrong)
    with pytest.raises(InputError, match="were given for one: give one of them"):
        checked_key(jax.random.split(key, 4))
