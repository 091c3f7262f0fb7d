"""Columns of events in whatever width a file has them, and recordings with something odd."""

from pathlib import Path

import numpy as np
import pytest
from conftest import thinned
from data_files import refusal
from test_events import draw, write_nmnist, written

from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.events import MAX_SPAN, Events, bin_events
from ccsrp_jax.data.nmnist import read_recordings
from ccsrp_jax.utils.errors import InputError

COUNT, EACH, T = 30, 50, 4


def arrays(**changes) -> dict:
    """The content of an .npz of 30 recordings of 50 events each, of 300 ms at 7 x 5 pixels."""
    random = np.random.default_rng(0)
    limits = {"x": 7, "y": 5, "p": 2}
    columns = {key: random.integers(0, limit, COUNT * EACH) for key, limit in limits.items()}
    columns["t"] = np.sort(random.integers(0, 300_000, (COUNT, EACH)), axis=1).ravel()
    rest = {"offset": np.arange(COUNT + 1) * EACH, "label": np.arange(COUNT) % 3}
    return columns | rest | changes


def write(folder: Path, **changes) -> str:
    path = folder / "mine.npz"
    np.savez(path, **arrays(**changes))
    return str(path)


def images(path: str) -> np.ndarray:
    data = load(path, time_steps=T)
    return np.concatenate([split.images for split in (data.train, data.search, data.test)])


WIDTHS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">u2", ">i4", ">u8", ">i8")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("keys", ("x", "y", "p", "xyp", ("offset",), ("label",)))
def test_a_column_may_have_any_width(tmp_path, width, keys):
    content = arrays()
    if keys == ("offset",) and width[-1] == "1":
        pytest.skip("1500 does not fit")
    changes = {key: content[key].astype(width) for key in keys}
    np.testing.assert_array_equal(images(write(tmp_path, **changes)), images(write(tmp_path)))


@pytest.mark.parametrize("width", ("u4", "i4", "u8", "i8", ">u4", ">u8"))
@pytest.mark.parametrize("origin", (0, -(2**31), 2**31 - 300_000, 2**32 - 300_000, 1_7 * 10**17))
@pytest.mark.parametrize("unit", (1, 1000))
def test_times_may_have_any_width_origin_and_unit(tmp_path, width, origin, unit):
    times = arrays()["t"].astype(object) * unit + origin
    limits = np.iinfo(width)
    if times.min() < limits.min or times.max() > limits.max:
        pytest.skip("does not fit")
    moved = images(write(tmp_path, t=times.astype(width)))
    np.testing.assert_array_equal(moved, images(write(tmp_path)))


def test_narrow_times_on_both_sides_of_zero_do_not_overflow():
    times = np.array([-30_000, -10_000, 10_000, 30_000], np.int16)
    pixel, one = np.zeros(4, np.int8), np.ones(4, bool)
    frames = bin_events(pixel, pixel, one, times, time_steps=4, shape=(1, 1), saturation=255)
    assert frames[0, 0, 1::2].tolist() == [1, 1, 1, 1]


def test_times_at_both_ends_of_64_bits_are_exact():
    pixel, one = np.zeros(3, np.uint64), np.ones(3, np.uint64)
    for low in (0, 2**63 - 5, 2**64 - 7):
        times = np.array([low, low + 3, low + 6], np.uint64)
        frames = bin_events(pixel, pixel, one, times, time_steps=7, shape=(1, 1), saturation=255)
        assert frames[0, 0, 1::2].tolist() == [1, 0, 0, 1, 0, 0, 1]
    edge = np.array([0, MAX_SPAN - 1, MAX_SPAN], np.uint64)
    frames = bin_events(pixel, pixel, one, edge, time_steps=2048, shape=(1, 1), saturation=255)
    assert np.flatnonzero(frames).tolist() == [1, 4095]


@pytest.mark.parametrize(
    "width, first, last",
    (
        ("i8", -(2**63), 2**63 - 1),
        ("u8", 0, 2**64 - 1),
        ("i8", 0, 17 * 10**17),
        ("u8", 0, 17 * 10**17),
    ),
)
def test_a_span_longer_than_any_recording_is_refused(tmp_path, width, first, last):
    times = arrays()["t"].astype(width)
    times[60], times[70] = first, last
    message = refusal(write(tmp_path, t=times))
    assert f"recording 1 of mine.npz cannot be used: microseconds of the events are from {first} " \
        f"to {last}" in message  # fmt: skip


@pytest.mark.parametrize("key, name", (("x", "x"), ("y", "y"), ("p", "polarity")))
@pytest.mark.parametrize("value", (2**40, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)))
def test_a_value_outside_the_camera_is_refused(tmp_path, key, name, value):
    column = arrays()[key].astype(np.uint64 if value > 0 else np.int64)
    column[60] = value
    message = refusal(write(tmp_path, **{key: column}))
    assert f"{name} of the events" in message and str(value) in message


@pytest.mark.parametrize("shape", ((2**40, 2), (2, 2**63), (20_000, 3), (0, 5), (5, -1)))
def test_an_impossible_camera_is_refused(tmp_path, shape):
    message = refusal(write(tmp_path, shape=np.array(shape, np.uint64 if min(shape) >= 0 else int)))
    assert "shape of mine.npz is" in message


def test_more_frames_than_memory_holds_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path, shape=np.array([5000, 5000]))
    assert "use fewer time steps" in refusal(path, time_steps=1000)
    assert "time_steps 5000 is out of range" in refusal(path, time_steps=5000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(InputError, match="GiB of memory where"):
        read_recordings(_nmnist(tmp_path), 4)


def _nmnist(folder: Path) -> Path:
    write_nmnist(folder, train=10, test=10)
    return folder / "Train"


def warnings_of(path: str, time_steps: int = T) -> list[str]:
    said = []
    data = load(path, time_steps=time_steps, warn=said.append)
    assert said == data.record["warnings"]
    assert all("\n" not in text and text.endswith(".") for text in said)
    return said


def test_sound_recordings_get_no_warning(tmp_path):
    assert warnings_of(write(tmp_path)) == []


@pytest.mark.parametrize(
    "number, change",
    (
        (-1, 10_000_000),
        (0, -10_000_000),
        (slice(-3, None), 3_000_000),
        (slice(25, None), 2**32),
        (slice(25, None), -1_000_000),
        ((-3, -2, -1), (3_000_000, 6_000_000, 9_000_000)),  # no gap of half the length
    ),
)
@pytest.mark.parametrize("where", (slice(None), slice(4, 5)))
def test_a_clock_that_jumps_is_named(tmp_path, number, change, where):
    times = arrays()["t"].reshape(COUNT, EACH)
    times[where, number] += change
    (warning,) = warnings_of(write(tmp_path, t=times.ravel()))
    odd = COUNT if where == slice(None) else 1
    assert f"mine.npz has {odd} of 30 recordings with a gap" in warning
    named = "recording 0, recording 1, recording 2 and 27 more" if odd > 1 else "(recording 4)"
    assert named in warning


def test_times_in_too_coarse_a_unit_are_named(tmp_path):
    (warning,) = warnings_of(write(tmp_path, t=arrays()["t"] // 150_000))
    assert "30 of 30 recordings with fewer different times than frames" in warning
    assert warnings_of(write(tmp_path), time_steps=1) == []


@pytest.mark.parametrize("empty", ((16,), (0,), (29,), (3, 4, 5, 6)))
def test_recordings_without_events_are_black_and_named(tmp_path, empty):
    lengths = np.full(COUNT, EACH)
    lengths[list(empty)] = 0
    kept = {key: np.repeat(lengths > 0, EACH) for key in "xypt"}
    content = {key: arrays()[key][kept[key]] for key in "xypt"}
    offset = np.concatenate([[0], np.cumsum(lengths)])
    warning = warnings_of(write(tmp_path, **content, offset=offset))[0]
    assert f"{len(empty)} of 30 recordings without any event" in warning
    assert f"recording {empty[0]}" in warning
    found = images(write(tmp_path, **content, offset=offset))
    assert (found.reshape(COUNT, -1).max(1) == 0).sum() == len(empty)


def test_a_file_without_any_event_is_refused(tmp_path):
    nothing = {key: np.zeros(0, int) for key in "xypt"}
    path = write(tmp_path, **nothing, offset=np.zeros(COUNT + 1, int))
    assert "without a single event" in refusal(path)


@pytest.mark.parametrize("key, value", thinned((("x", 600), ("y", 346)), (("y", 346),)))
def test_a_pixel_far_outside_the_others_is_named(tmp_path, key, value):
    column = arrays()[key]
    column[60] = value
    (warning,) = warnings_of(write(tmp_path, **{key: column}))
    assert f"{key} of the events of mine.npz reaches {value}" in warning
    given = write(tmp_path, **{key: column}, shape=np.array([400, 601]))
    assert warnings_of(given) == []


def test_a_camera_without_a_class_is_named(tmp_path):
    labels = np.where(arrays()["label"] == 1, 3, arrays()["label"])
    warnings = warnings_of(write(tmp_path, label=labels))
    assert warnings == [
        f"mine: the {part} images have none of class 1, of 4 classes."
        for part in ("training", "search", "test")
    ]


def test_hidden_files_of_a_mac_are_no_recordings(tmp_path):
    write_nmnist(tmp_path)
    whole = load("nmnist", data_dir=str(tmp_path))
    for path in list(tmp_path.rglob("*.bin")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0")
        path.with_name(".DS_Store").write_bytes(b"\0")
    again = load("nmnist", data_dir=str(tmp_path))
    assert again.record == whole.record
    np.testing.assert_array_equal(again.test.images, whole.test.images)


def test_odd_recordings_of_nmnist_are_named_by_their_file(tmp_path):
    write_nmnist(tmp_path)
    overflow = Events(*(np.array([n]) for n in (0, 240, 0, 0)))
    (tmp_path / "Train" / "3" / "00010.bin").write_bytes(written(overflow))
    torn = draw(0, 200, (34, 34))
    torn.microseconds[-1] = 2**22
    (tmp_path / "Test" / "0" / "00001.bin").write_bytes(written(torn))
    said = []
    load("nmnist", data_dir=str(tmp_path), warn=said.append)
    assert "Train has 1 of 60 recordings without any event" in said[0] and "3/00010.bin" in said[0]
    assert "Test has 1 of 20 recordings with a gap" in said[1] and "0/00001.bin" in said[1]
