"""Events: what frames hold, what the readers accept, and what a network sees of them."""

import io
import lzma
import struct
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy

from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.events import Events, bin_events
from ccsrp_jax.data.nmnist import read_recording
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.neurons import Surrogate, lif
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError

SUBSET = Path(__file__).parents[3] / "shared" / "data" / "nmnist_small.npz.xz"


def draw(seed: int, count: int = 300, shape=(5, 7), span: int = 4000) -> Events:
    """Events all over a small camera, in no order, many at equal times."""
    random = np.random.default_rng(seed)
    limits = (shape[1], shape[0], 2, span)
    x, y, p, t = (random.integers(0, limit, count) for limit in limits)
    return Events(x.astype(np.uint8), y.astype(np.uint8), p > 0, t.astype(np.uint32) + 900)


def looped(events, time_steps, shape, by, saturation):
    """Frames by one event after the other, in exact fractions."""
    counts = np.zeros((*shape, 2 * time_steps))
    listed = sorted(zip(*(part.tolist() for part in events), strict=True), key=lambda e: e[3])
    first, last = listed[0][3], listed[-1][3]
    for rank, (x, y, p, t) in enumerate(listed):
        if by == "time":
            borders = [first + Fraction(last + 1 - first, time_steps) * k for k in range(1, 99)]
            frame = sum(t >= border for border in borders)
        else:
            frame = min(rank // (len(listed) // time_steps), time_steps - 1)
        counts[y, x, 2 * frame + int(p)] += 1
    return np.round(np.minimum(counts, saturation) * 255 / saturation)


@pytest.mark.parametrize("by", ("time", "count"))
@pytest.mark.parametrize("time_steps, saturation, span", ((1, 5, 9), (3, 3, 4000), (7, 4, 23)))
def test_frames_are_what_a_loop_over_the_events_fills(by, time_steps, saturation, span):
    events = draw(time_steps, span=span)
    options = {"time_steps": time_steps, "shape": (5, 7), "by": by, "saturation": saturation}
    found = bin_events(*events, **options)
    assert found.dtype == np.uint8 and found.shape == (5, 7, 2 * time_steps)
    np.testing.assert_array_equal(found, looped(events, *options.values()))


@pytest.mark.parametrize("by", ("time", "count"))
@pytest.mark.parametrize("count", (1, 2, 300))
def test_every_event_is_counted_once(by, count):
    for time_steps in (1, 4, 10):
        options = {"time_steps": time_steps, "shape": (5, 7), "by": by, "saturation": 255}
        assert bin_events(*draw(0, count), **options).sum() == count


def test_frames_by_number_hold_equally_many_events_and_the_last_what_is_left():
    frames = bin_events(*draw(0, 302), time_steps=4, shape=(5, 7), by="count", saturation=255)
    assert frames.reshape(35, 4, 2).sum((0, 2)).tolist() == [75, 75, 75, 77]


def test_no_events_are_silent_frames_and_one_moment_is_one_frame():
    none = Events(*(part[:0] for part in draw(0)))
    for by in ("time", "count"):
        assert not bin_events(*none, time_steps=3, by=by).any()
    events = draw(0)._replace(microseconds=np.full(300, 7))
    frames = bin_events(*events, time_steps=3, shape=(5, 7))
    assert frames[..., :2].any() and not frames[..., 2:].any()


def written(events: Events) -> bytes:
    """A recording as N-MNIST's authors write it."""
    rows = zip(*(part.tolist() for part in events), strict=True)
    return b"".join(bytes([x, y]) + struct.pack(">I", p << 23 | t)[1:] for x, y, p, t in rows)


def write_nmnist(root: Path, train: int = 60, test: int = 20) -> dict[str, list[Events]]:
    """Official folders of a few recordings, numbered across the classes."""
    recordings = {}
    for part, count in (("Train", train), ("Test", test)):
        recordings[part] = [draw(1000 * count + i, 200, (34, 34)) for i in range(count)]
        for number, events in enumerate(recordings[part]):
            folder = root / part / str(number * 7 % 10)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number + 1:05}.bin").write_bytes(written(events))
    return recordings


@pytest.mark.parametrize("inside", (".", "N-MNIST"))
def test_official_recordings_are_read_as_they_were_written(tmp_path, inside):
    recordings = write_nmnist(tmp_path / inside)
    first = read_recording(tmp_path / inside / "Test" / "0" / "00001.bin")
    for read, wrote in zip(first, recordings["Test"][0], strict=True):
        np.testing.assert_array_equal(read, wrote)

    data = load("nmnist", data_dir=str(tmp_path), time_steps=3)
    expected = [bin_events(*events, time_steps=3) for events in recordings["Test"]]
    np.testing.assert_array_equal(data.test.images, expected)
    assert data.test.labels.tolist() == [number * 7 % 10 for number in range(20)]
    searched = data.record["search_indices"]
    expected = [bin_events(*recordings["Train"][i], time_steps=3) for i in searched]
    np.testing.assert_array_equal(data.search.images, expected)
    assert len(data.train.labels) == 60 - len(searched) and data.classes == 10
    assert (data.encoding, data.mean, data.std) == ("frames", (0.0,), (1.0,))
    assert (data.name, data.augmentation) == ("nmnist", "shift")
    assert "60 of 60000" in data.record["footnote"]


def test_the_record_changes_with_an_event(tmp_path):
    events = write_nmnist(tmp_path)["Test"][0]
    before = load("nmnist", data_dir=str(tmp_path)).record
    assert before == load("nmnist", data_dir=str(tmp_path)).record
    moved = events._replace(x=(events.x + 1) % 34)
    (tmp_path / "Test" / "0" / "00001.bin").write_bytes(written(moved))
    assert before != load("nmnist", data_dir=str(tmp_path)).record


def test_where_the_clock_goes_round_times_go_on_and_no_event_is_seen(tmp_path):
    path = tmp_path / "a.bin"
    rows = [(1, 2, 1, 5), (0, 240, 0, 0), (3, 4, 0, 6), (0, 240, 1, 9), (5, 6, 1, 7)]
    path.write_bytes(written(Events(*map(np.array, zip(*rows, strict=True)))))
    events = read_recording(path)
    assert np.stack(events).tolist() == [
        [1, 3, 5],
        [2, 4, 6],
        [1, 0, 1],
        [5, 6 + 8192, 7 + 16384],
    ]


def arrays() -> dict:
    """The content of an .npz of 30 recordings, of different lengths."""
    recordings = [draw(i, 50 + i) for i in range(30)]
    parts = (np.concatenate(part) for part in zip(*recordings, strict=True))
    content = dict(zip("xypt", parts, strict=True))
    content["offset"] = np.cumsum([0] + [len(events.x) for events in recordings])
    content["label"] = np.arange(30) % 3
    return content


def write_npz(folder: Path, **changes) -> str:
    path = folder / "mine.npz"
    np.savez(path, **{k: v for k, v in (arrays() | changes).items() if v is not None})
    return str(path)


def test_recordings_of_an_npz_are_binned_and_divided_as_it_says(tmp_path):
    data = load(write_npz(tmp_path, train=20), time_steps=4)
    expected = [bin_events(*draw(i, 50 + i), time_steps=4, shape=(5, 7)) for i in range(20, 30)]
    np.testing.assert_array_equal(data.test.images, expected)
    assert data.test.labels.tolist() == [i % 3 for i in range(20, 30)]
    assert (len(data.train.labels), len(data.search.labels)) == (16, 4)
    assert (data.name, data.classes, data.encoding) == ("mine", 3, "frames")
    assert data.record["footnote"] is None
    larger = load(write_npz(tmp_path, shape=np.array([6, 9])), time_steps=4)
    assert larger.test.images.shape == (6, 6, 9, 8)


def test_without_a_division_a_fifth_is_drawn_for_the_test(tmp_path):
    path = write_npz(tmp_path)
    first, again, other = (load(path, seed=seed) for seed in (1, 1, 2))
    assert np.bincount(first.test.labels).tolist() == [2, 2, 2]
    assert "drawn with seed 1" in first.record["footnote"]
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.images, other.test.images)
    every = np.concatenate([part.images for part in first[1:4]])
    expected = [bin_events(*draw(i, 50 + i), time_steps=4, shape=(5, 7)) for i in range(30)]
    assert sorted(map(bytes, every)) == sorted(map(bytes, expected))


x = arrays()["x"]
offset = arrays()["offset"]


@pytest.mark.parametrize(
    "changes, sentence",
    (
        ({"p": None}, "has no p: expected x, y, p, t, offset, label"),
        ({"x": x[:-1]}, "y of the events has type uint8 and shape"),
        ({"x": x.reshape(-1, 1)}, "x of the events"),
        ({"t": x.astype(float)}, "microseconds of the events has type float64"),
        ({"p": x}, "recording 0 of mine.npz cannot be used: polarity of the events is from 0 to 6"),
        ({"y": x - 2.0}, "y of the events has type float64"),
        ({"y": x.astype(int) - 2}, "y of the events is from -2 to 4: give 0 to 4"),
        ({"shape": np.array([5, 6])}, "x of the events is from 0 to 6: give 0 to 5"),
        ({"shape": np.array([5])}, "shape of mine.npz is [5]"),
        ({"offset": offset[:-1]}, "offset of mine.npz does not divide"),
        ({"offset": offset + 1}, "offset of mine.npz does not divide"),
        ({"offset": offset[::-1]}, "offset of mine.npz does not divide"),
        ({"offset": offset[[0, 2, 1, *range(3, 31)]]}, "offset of mine.npz does not divide"),
        ({"offset": np.int64(0)}, "offset of mine.npz does not divide"),
        ({"label": np.arange(29)}, "label of mine.npz has shape (29,) for 30 images"),
        ({"label": np.zeros(30, int)}, "label of mine.npz contains label 0 only"),
        ({"train": 30}, "train of mine.npz is 30"),
        ({"train": 0}, "train of mine.npz is 0"),
        ({"train": "all"}, "train of mine.npz is all"),
    ),
)
def test_arrays_that_are_no_recordings_are_refused(tmp_path, changes, sentence):
    with pytest.raises(InputError) as error:
        load(write_npz(tmp_path, **changes))
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", (b"", b"\x01\x02\x03", bytes(503)))
def test_files_of_another_format_are_refused(tmp_path, content):
    write_nmnist(tmp_path)
    path = tmp_path / "Train" / "3" / "00010.bin"
    assert path.exists()
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"00010.bin has {len(content)} bytes"):
        load("nmnist", data_dir=str(tmp_path))


def test_missing_folders_and_impossible_events_are_named(tmp_path):
    with pytest.raises(InputError, match="give the --data-dir that holds Train and Test"):
        load("nmnist")
    with pytest.raises(InputError, match=f"no recordings in {tmp_path}/Train"):
        load("nmnist", data_dir=str(tmp_path))
    write_nmnist(tmp_path)
    path = tmp_path / "Train" / "3" / "00010.bin"
    path.write_bytes(written(Events(*(np.array([n]) for n in (34, 2, 1, 5)))))
    with pytest.raises(InputError, match=r"00010.bin is no recording.*x of the events is from 34"):
        load("nmnist", data_dir=str(tmp_path))
    with pytest.raises(InputError, match="time_steps 0"):
        load("nmnist", data_dir=str(tmp_path), time_steps=0)
    with pytest.raises(InputError, match=r"unknown way to bin events 'number'.*count"):
        bin_events(*draw(0), time_steps=2, by="number")


def test_the_nmnist_subset_has_every_event_in_the_order_of_mnist(tmp_path):
    if not SUBSET.exists():
        pytest.skip(f"{SUBSET} is absent")
    with np.load(io.BytesIO(lzma.decompress(SUBSET.read_bytes()))) as file:
        source = {name: file[name] for name in file.files}
    ends, since = source["offset"], np.cumsum(source["dt"], dtype=np.int64)
    starts = np.repeat(since[ends[:-1]] - source["dt"][ends[:-1]], np.diff(ends))
    path = tmp_path / "nmnist_subset.npz"
    same = {key: source[key] for key in ("x", "offset", "label")}
    more = {"y": source["y"] & 127, "p": source["y"] >> 7, "t": since - starts, "train": 1000}
    np.savez(path, **same, **more)
    data = load(str(path), time_steps=4)
    assert data.test.images.shape == (100, 34, 34, 8)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(data.train.labels).min() > 60
    events = Events(*(more.get(key, source["x"])[ends[1000] : ends[1001]] for key in "xypt"))
    np.testing.assert_array_equal(
        data.test.images[0], looped(events, 4, (34, 34), "time", saturation=5)
    )


@pytest.fixture(scope="module")
def seen():
    """An architecture for frames, its variables, and some images of events."""
    architecture = zoo.plain(
        (4, "A", 3), (6, 6, 6), 5, time_steps=3, encoding="frames", mean=(0.0,), std=(1.0,)
    )
    recordings = [draw(i, 60, (6, 6)) for i in range(4)]
    frames = [bin_events(*events, time_steps=3, shape=(6, 6)) for events in recordings]
    return architecture, busy(architecture, seed=0), np.stack(frames)


def test_a_network_sees_frame_t_in_step_t(seen):
    """Its first layer's currents are those that each frame gives alone, as an image."""
    architecture, variables, images = seen
    alone = zoo.plain((4, "A", 3), (6, 6, 2), 5, time_steps=1, mean=(0.0,), std=(1.0,))

    @jax.jit
    def currents(frame):
        network = SpikingNetwork(alone)
        values = network.apply(variables, frame, method="encode")
        return network.apply(variables, values, end=2, keep=("norm1",), method="walk")[0]["norm1"]

    each = [
        currents(to_unit_range(jnp.asarray(images[..., 2 * t : 2 * t + 2])))[0] for t in range(3)
    ]
    spikes, potentials = lif(jnp.stack(each), architecture.neuron, Surrogate(), 3)
    network = SpikingNetwork(architecture)
    _, active = jax.jit(lambda x: network.apply(variables, x, activity=True))(
        to_unit_range(jnp.asarray(images))
    )
    np.testing.assert_allclose(active.potentials["lif1"], potentials, atol=1e-5)
    np.testing.assert_array_equal(active.spikes["lif1"], spikes)
    assert 0.1 < spikes.mean() < 0.9


def test_silence_stays_zero_and_all_else_does_not(seen):
    architecture, variables, images = seen
    values = SpikingNetwork(architecture).apply(
        variables, to_unit_range(jnp.asarray(images)), method="encode"
    )["image"]
    assert values.shape == (3, 4, 6, 6, 2)
    counted = images.reshape(4, 6, 6, 3, 2).transpose(3, 0, 1, 2, 4)
    np.testing.assert_array_equal(values != 0, counted != 0)
    np.testing.assert_allclose(values, counted / 255, rtol=1e-6)
