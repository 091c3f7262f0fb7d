"""Files of images in .npz format: what is read, and what is refused."""

import io
import os
import shutil
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
        ({"y_train": y * 0 + 3}, ["y_train", "label 3 only"]),
        ({"y_train": np.where(y == 3, 60, y)}, ["y_train", "labels up to 60", "60 images"]),
        ({"y_train": y.astype(np.uint64) + 2**63}, ["y_train", str(2**63)]),
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


COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def recompressed(path: str, compression: int) -> bytes:
    """The bytes of an .npz, with its members in another compression."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return out.getvalue()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("at", (0.02, 0.1, 0.3, 0.5, 0.7))
def test_a_damaged_member_is_refused_in_every_compression(tmp_path, compression, at):
    path = write_npz(tmp_path)
    whole = recompressed(path, compression)
    with open(path, "wb") as file:
        file.write(whole)
    np.testing.assert_array_equal(load(path).test.images, arrays()["x_test"])
    start = int(at * len(whole))
    damaged = bytearray(whole)
    damaged[start : start + 20] = bytes(byte ^ 0x5A for byte in damaged[start : start + 20])
    with open(path, "wb") as file:
        file.write(damaged)
    assert "cannot be read" in refusal(path)


def npy(header: bytes, data: bytes = b"") -> bytes:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "member",
    (
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (10, 6, 5, 3)}", bytes(60 * 90)),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (61, 6, 5, 3)}", bytes(60 * 90)),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000000,)}"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 400 + b",)}"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 5)}"),
        npy(b"{'descr': '|u1', 'fortran_order': 3, 'shape': 'six'}"),
        npy(b"{'descr': [['a']], 'fortran_order': False, 'shape': (1,)}"),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (60, 6, 5, 3)}"),
        npy(b"(" * 3000 + b")" * 3000),
        npy(b""),
        b"\x93NUMPY\x09\x00",
        b"",
    ),
)
def test_headers_that_do_not_fit_their_data_are_refused(tmp_path, member):
    path = write_npz(tmp_path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (content | {"x_train.npy": member}).items():
            file.writestr(name, data)
    message = refusal(path)
    assert "cannot be read" in message and "mine.npz" in message


def test_arrays_larger_than_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = write_npz(tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    assert "of memory where" in refusal(path)


@pytest.mark.parametrize(
    "name, part",
    (
        ("~nosuchuser/mine.npz", "'~nosuchuser/mine.npz' cannot be used as a path"),
        ("a\0b.npz", r"'a\x00b.npz' cannot be used as a path"),
        ("a\ud800b.npz", r"'a\ud800b.npz' cannot be used as a path"),
        ("a" * 5000 + ".npz", "File name too long"),
        ("loop.npz", "symbolic links"),
        ("loop/mine.npz", "symbolic links"),
        ("file/mine.npz", "there is no file"),
        ("dangling.npz", "there is no file"),
        ("missing/mine.npz", "there is no file"),
        ("pipe.npz", "there is no file"),
    ),
)
def test_paths_that_no_file_can_have_are_refused(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    for link in ("loop", "loop.npz"):
        os.symlink(link, link)
    os.symlink("nowhere.npz", "dangling.npz")
    os.mkfifo("pipe.npz")
    open("file", "w").close()
    message = refusal(name)
    assert part in message
    assert message.isprintable()


@pytest.mark.parametrize("data", ("nmnist", "mnist"))
@pytest.mark.parametrize("folder", ("~nosuchuser/x", "a\0b", "a\ud800b", "loop", "a" * 5000))
def test_folders_that_cannot_be_are_refused(tmp_path, monkeypatch, data, folder):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    message = refusal(data, data_dir=folder)
    assert "cannot be used as a path" in message and message.isprintable()


def test_the_home_folder_may_be_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_npz(tmp_path)
    assert load("~/mine.npz").name == "mine"
    assert load(tmp_path / "mine.npz").name == "mine"


def test_files_that_a_mac_adds_to_an_archive_are_passed_over(tmp_path):
    path = write_npz(tmp_path)
    with zipfile.ZipFile(path, "a") as file:
        for key in (*NPZ, "offset"):
            file.writestr(f"__MACOSX/._{key}.npy", b"\0\5\x16\7")
    assert load(path).name == "mine"
    assert shutil.copy(path, tmp_path / "._mine.npz")
    assert load(str(tmp_path / "._mine.npz")).name == "._mine"
