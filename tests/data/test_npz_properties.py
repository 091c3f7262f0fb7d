"""Any .npz gives a sound data set or one sentence, whatever its arrays and bytes are."""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.npz import EVENT_KEYS, IMAGE_KEYS, OPTIONAL_EVENT_KEYS
from ccsrp_jax.utils.errors import InputError

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
relaxed = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # the same examples in every run of the tests
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

dtypes = (
    arrays.integer_dtypes(endianness="?")
    | arrays.unsigned_integer_dtypes(endianness="?")
    | arrays.floating_dtypes(endianness="?")
    | st.sampled_from(["bool", "U3", "S2", "c8", "M8[us]", "m8[s]", "i4,f4"]).map(np.dtype)
)
any_array = dtypes.flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0))
)


@st.composite
def image_files(draw) -> dict:
    """Arrays that are mostly right: images of one shape, labels of few classes."""
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=3, max_side=6))
    random, content = np.random.default_rng(draw(st.integers(0, 9))), {}
    classes = draw(st.integers(1, 3))
    for part, count in (("train", draw(st.integers(0, 30))), ("test", draw(st.integers(0, 9)))):
        images = random.integers(0, 256, (count, *shape))
        kind = draw(st.sampled_from(["u1", "u1", "f4", ">f4", "f8", "f2", "i8"]))
        scaled = images if kind in ("u1", "i8") else images / 255
        content[f"x_{part}"] = scaled.astype(kind)
        labels = (np.arange(count) % classes).astype(draw(st.sampled_from(["i8", "u1", ">u8"])))
        content[f"y_{part}"] = labels
    return content


@st.composite
def event_files(draw) -> dict:
    """Arrays that are mostly right recordings."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=20))
    total, random = sum(lengths), np.random.default_rng(draw(st.integers(0, 9)))
    width = st.sampled_from(["i8", "u8", "i2", "u2", ">i4", "u4"])
    content = {
        key: random.integers(0, limit, total).astype(draw(width))
        for key, limit in (("x", 5), ("y", 4), ("p", 2), ("t", 20_000))
    }
    content["offset"] = np.cumsum([0, *lengths]).astype(draw(width))
    content["label"] = np.arange(len(lengths)) % draw(st.integers(1, 3))
    if draw(st.booleans()):
        content["shape"] = np.array(draw(st.tuples(st.integers(0, 9), st.integers(0, 9))))
    if draw(st.booleans()):
        content["train"] = np.array(draw(st.integers(-1, 20)))
    for key in "xypt":
        if total and draw(st.integers(0, 3)) == 0:
            limits = np.iinfo(content[key].dtype)
            values = st.sampled_from([limits.min, limits.max, limits.max // 2, 2**14 - 1])
            content[key][draw(st.integers(0, total - 1))] = draw(values) & limits.max
    return content


def replaced(files, keys):
    """Some of the arrays replaced by any other, or left out."""
    other = st.dictionaries(st.sampled_from(keys), st.none() | any_array, max_size=2)
    return st.builds(
        lambda file, changes: {k: v for k, v in (file | changes).items() if v is not None},
        files,
        other,
    )


images = image_files() | replaced(image_files(), IMAGE_KEYS)
events = event_files() | replaced(event_files(), (*EVENT_KEYS, *OPTIONAL_EVENT_KEYS))


def packed(content: dict, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for key, array in content.items():
            npy = io.BytesIO()
            np.lib.format.write_array(npy, array, allow_pickle=False)
            file.writestr(f"{key}.npy", npy.getvalue())
    return out.getvalue()


def outcome(data: bytes) -> str:
    """`sound`, or the sentence by which a file of these bytes is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.npz"
        path.write_bytes(data)
        try:
            found = load(str(path), warn=lambda text: None)
        except InputError as error:
            message = str(error)
            assert message and "\n" not in message and message[-1] in ".?"
            return message
    for split in (found.train, found.search, found.test):
        assert split.images.ndim == 4 and len(split.images) == len(split.labels) > 0
        assert split.images.dtype in (np.uint8, np.float32) and split.labels.dtype == np.int32
        assert split.images.dtype == np.uint8 or (
            split.images.min() >= 0 and split.images.max() <= 1
        )
        assert split.labels.min() >= 0 and split.labels.max() < found.classes
    return "sound"


@relaxed
@given(images)
def test_any_arrays_of_images_are_sound_or_refused(content):
    outcome(packed(content))


@relaxed
@given(events)
def test_any_arrays_of_events_are_sound_or_refused(content):
    outcome(packed(content))


@relaxed
@given(any_array)
def test_any_array_in_the_place_of_each_other_is_sound_or_refused(array):
    base = {
        "x_train": np.arange(240, dtype=np.uint8).reshape(20, 3, 4),
        "y_train": np.arange(20) % 2,
        "x_test": np.arange(60, dtype=np.uint8).reshape(5, 3, 4),
        "y_test": np.arange(5) % 2,
    }
    for key in base:
        outcome(packed(base | {key: array}))


SOUND = {
    "x_train": np.random.default_rng(0).integers(0, 256, (20, 6, 5), np.uint8),
    "y_train": np.arange(20) % 2,
    "x_test": np.random.default_rng(1).integers(0, 256, (6, 6, 5), np.uint8),
    "y_test": np.arange(6) % 2,
}


@relaxed
@given(st.sampled_from(COMPRESSIONS), st.data())
def test_damaged_bytes_are_refused_or_change_nothing(compression, draws):
    """A change may hit bytes that a zip does not use; no other array may come of it."""
    whole = packed(SOUND, compression)
    damaged = bytearray(whole)
    for _ in range(draws.draw(st.integers(1, 3))):
        at = draws.draw(st.integers(0, len(damaged) - 1))
        kind = draws.draw(st.sampled_from(["flip", "cut", "insert", "swap"]))
        if kind == "flip":
            damaged[at] ^= 1 << draws.draw(st.integers(0, 7))
        elif kind == "cut":
            del damaged[at : at + draws.draw(st.integers(1, 40))]
        elif kind == "insert":
            damaged[at:at] = draws.draw(st.binary(min_size=1, max_size=8))
        else:
            damaged[at : at + 8] = damaged[at : at + 8][::-1]
        if not damaged:
            break
    if outcome(bytes(damaged)) == "sound":
        with tempfile.TemporaryDirectory() as folder:
            for name, data in (("a.npz", whole), ("b.npz", bytes(damaged))):
                (Path(folder) / name).write_bytes(data)
            a, b = (load(f"{folder}/{name}", warn=lambda text: None) for name in ("a.npz", "b.npz"))
        for ours, theirs in zip(a[1:4], b[1:4], strict=True):
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
