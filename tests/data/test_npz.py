"""Files of images in .npz format: what is read, and what is refused."""

import io
import zipfile

import numpy as np
import pytest
from data_files import NPZ, arrays, refusal, write_npz

from ccsrp_jax.data.datasets import load


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_round_trip(tmp_path, dtype, channels):
    shape = (6, 5) if channels is None else (6, 5, channels)
    content = arrays(shape=shape)
    if dtype != np.uint8:
        content["x_train"] = (content["x_train"] / 255).astype(dtype)
        content["x_test"] = (content["x_test"] / 255).astype(dtype)
    data = load(write_npz(tmp_path, **content))
    assert data.test.images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    assert data.test.images.shape == (60, 6, 5, channels or 1)
    expected = content["x_test"].reshape(60, 6, 5, -1)
    np.testing.assert_allclose(data.test.images, expected, rtol=1e-7)
    assert (data.name, data.classes, data.augmentation) == ("mine", 4, "none")


x, y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"x_test": None, "y_test": None}, ["has no x_test, y_test", "found x_train, y_train"]),
        ({"x_train": x.reshape(60, -1)}, ["x_train", "(60, 90)", "(N, H, W)"]),
        ({"x_train": x[:0], "y_train": y[:0]}, ["x_train", "(0, 6, 5, 3)"]),
        ({"x_test": x[:, :4]}, ["(6, 5, 3)", "(4, 5, 3)"]),
        ({"x_test": x[..., 0]}, ["(6, 5, 3)", "(6, 5, 1)"]),
        ({"y_train": y[:7]}, ["y_train", "(7,)", "60 images"]),
        ({"y_train": y[:, None]}, ["y_train", "(60, 1)"]),
        ({"y_test": np.int64(3)}, ["y_test", "()"]),
        ({"y_train": y.astype(float)}, ["y_train", "float64", "integers"]),
        ({"y_train": y.astype(str)}, ["y_train", "integers"]),
        ({"y_train": y > 1}, ["y_train", "bool"]),
        ({"y_train": y - 1}, ["y_train", "-1"]),
        ({"y_train": y + 2**40}, ["y_train", str(2**40)]),
        ({"y_train": y + 10**6}, ["1000004 classes"]),
        ({"y_train": y * 0}, ["y_train", "label 0 only"]),
        ({"y_test": y + 1}, ["y_test", "1 to 4", "0 to 3"]),
        ({"y_test": y - 1}, ["y_test", "-1 to 2"]),
        ({"x_train": x.astype(np.int64)}, ["x_train", "int64", "uint8"]),
        ({"x_train": x.astype(complex)}, ["x_train", "complex128"]),
        ({"x_train": x.astype(np.float32)}, ["x_train", "0 to 255", "divide by 255"]),
        ({"x_train": x / 255 - 0.5}, ["x_train", "-0.5 to 0.5"]),
        ({"x_test": np.where(x == x[3, 2, 1, 0], np.nan, x / 255)}, ["x_test", "NaN"]),
        ({"x_test": np.where(x == x[3, 2, 1, 0], np.inf, x / 255)}, ["x_test", "inf"]),
        ({"x_train": x.astype(object)}, ["plain number arrays", "allow_pickle"]),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, changes, parts):
    message = refusal(write_npz(tmp_path, **changes))
    assert all(part in message for part in ["mine.npz", *parts]), message


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "mine.npz"
    assert f"no file {path}" in refusal(str(path))
    path.mkdir()
    assert f"no file {path}" in refusal(str(path))
    path.rmdir()
    write_npz(tmp_path)
    whole = path.read_bytes()
    npy = io.BytesIO()
    np.save(npy, x)
    for content in (b"", b"not a zip", whole[: len(whole) // 2], npy.getvalue()):
        path.write_bytes(content)
        assert f"{path} is no .npz" in refusal(str(path))
    broken = bytearray(whole)
    broken[1000:1100] = bytes(100)  # inside x_train: the zip opens, its checksum fails
    path.write_bytes(broken)
    assert f"{path} cannot be read" in refusal(str(path))
    with zipfile.ZipFile(path, "w") as file:
        for key in NPZ:
            file.writestr(key, b"no array")
    assert "x_train of mine.npz" in refusal(str(path))
