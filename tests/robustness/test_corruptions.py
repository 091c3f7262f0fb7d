"""Corruptions: closed forms, naive loops, scipy, colorsys and pillow, at published severities."""

import colorsys
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear, thinned
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from ccsrp_jax.data.splits import Split
from ccsrp_jax.robustness import evaluation
from ccsrp_jax.robustness.corruptions import (
    CORRUPTIONS,
    check_corruption,
    common,
    corrupt,
    names,
)
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
NAMES = sorted(CORRUPTIONS)
SOME = thinned(NAMES, NAMES[::3])  # of properties that all have for the same reason
SEVERITIES = range(1, 6)
UNDRAWN = {"gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate"}
UNDRAWN |= {"pixelate", "jpeg"}
ZOOM_APART = 0.04  # mean distance between two ways to enlarge, of values in [0, 1]


def resized(images, side):
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((side, side), Image.BILINEAR)) for x in images]
    )[..., None]


@pytest.fixture(scope="module")
def grey():
    """Real digits by side; the published lengths are for a side of 32."""
    digits = (load_digits().images[:30] / 16).astype(np.float32)
    return {side: resized(digits, side) for side in (8, 32, 64)}


@pytest.fixture(scope="module")
def colour(grey):
    """Three digits on top of each other: black, gray and colored pixels."""
    a, b, c = grey[32][:10], grey[32][10:20], grey[32][20:]
    images = np.concatenate([a, b * 0.9, c * 0.8], -1)
    images[:, :2, :, :] = np.linspace(0, 1, 32, dtype=np.float32)[:, None]
    return images


def apply(images, name, severity, key=KEY):
    return np.asarray(corrupt(images, name, severity, key))


def flat(value, *shape):
    return np.full(shape, value, np.float32)


def correlated(images, kernel, border):
    """Weighted sum of shifted copies."""
    reach = len(kernel) // 2
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), border)
    height, width = images.shape[1:3]
    return sum(
        kernel[i, j] * padded[:, i : i + height, j : j + width]
        for i in range(len(kernel))
        for j in range(len(kernel))
    )


def bell(sigma, reach):
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noises_have_the_moments_of_their_closed_form(severity):
    at = severity - 1
    photons, share = (500, 250, 100, 75, 50)[at], (0.01, 0.02, 0.03, 0.05, 0.07)[at]
    images = flat(0.4, 4, 32, 32, 3)
    expected = {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10)[at],
        "speckle_noise": 0.4 * (0.06, 0.1, 0.12, 0.16, 0.2)[at],
        "shot_noise": (0.4 / photons) ** 0.5,
    }
    for name, std in expected.items():
        noise = apply(images, name, severity).astype(float) - 0.4
        assert abs(noise.mean()) < 5 * std / noise.size**0.5
        assert abs(noise.std() / std - 1) < 0.03
        # The same for every value: neither images, nor pixels, nor channels share a draw.
        for axis in range(4):
            mean = noise.mean(axis)
            assert abs(mean.std() * noise.shape[axis] ** 0.5 / std - 1) < 0.2
    counts = apply(images, "shot_noise", severity) * photons
    np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    struck = apply(images, "impulse_noise", severity)
    for value in (0, 1):
        assert abs((struck == value).mean() - share / 2) < 5 * (share / 2 / struck.size) ** 0.5
    np.testing.assert_array_equal(struck[(struck > 0) & (struck < 1)], np.float32(0.4))


def test_proportional_noise_does_not_change_black():
    for name in ("shot_noise", "speckle_noise"):
        assert not apply(flat(0, 30, 8, 8, 1), name, 5).any()


@pytest.mark.parametrize("side", (8, 32, 64))
@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_the_weighted_sum_over_repeated_borders(grey, side, severity):
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * max(1, side / 32)
    weights = bell(sigma, int(4 * sigma + 0.5))
    expected = correlated(grey[side], np.outer(weights, weights), "edge")
    np.testing.assert_allclose(apply(grey[side], "gaussian_blur", severity), expected, atol=1e-6)


@pytest.mark.parametrize("side", (8, 32, 64))
@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_a_smoothed_disk_over_mirrored_borders(grey, side, severity):
    scale = max(1, side // 32)
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    weights = bell(sigma * scale, scale)
    kernel = np.zeros((15, 15))
    for i in range(-3, 4):
        for j in range(-3, 4):
            if np.hypot(i, j) <= radius * scale:
                place = slice(7 + i - scale, 8 + i + scale), slice(7 + j - scale, 8 + j + scale)
                kernel[place] += np.outer(weights, weights)
    expected = correlated(grey[side], kernel / kernel.sum(), "reflect")
    np.testing.assert_allclose(apply(grey[side], "defocus_blur", severity), expected, atol=1e-6)


@pytest.mark.parametrize("side", (8, 32, 64))
@pytest.mark.parametrize("severity", thinned(SEVERITIES, (2, 5)))
def test_motion_blur_is_a_ray_of_one_angle_per_image(grey, side, severity):
    scale = max(1, side // 32)
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    steps = np.arange(2 * radius * scale + 1)
    weights = np.exp(-((steps / (sigma * scale)) ** 2) / 2)
    weights /= weights.sum()
    angles = np.linspace(-45, 45, 3601)
    down = np.rint(steps * np.sin(np.radians(angles))[:, None]).astype(int)
    right = np.rint(steps * np.cos(np.radians(angles))[:, None]).astype(int)

    # The image of a dot shows the angle, which depends on key and index only.
    wide = max(32, side)
    dots = flat(0, 30, wide, wide, 1)
    dots[:, wide // 2, -2] = 1
    answers = apply(dots, "motion_blur", severity)[..., 0]
    rays = np.zeros((len(angles), wide, wide), np.float32)
    for step, weight in enumerate(weights):
        ends = np.arange(len(angles)), wide // 2 - down[:, step], wide - 2 - right[:, step]
        rays[ends] += weight
    found = np.array([np.abs(rays - answer).sum((1, 2)).argmin() for answer in answers])
    assert angles[found].min() < -35 and angles[found].max() > 35

    expected = np.zeros_like(grey[side])
    for number, angle in enumerate(found):
        for step, weight in enumerate(weights):
            rows = np.clip(np.arange(side) + down[angle, step], 0, side - 1)
            columns = np.clip(np.arange(side) + right[angle, step], 0, side - 1)
            expected[number] += weight * grey[side][number][rows][:, columns]
    for ours, naive in (
        (answers, rays[found]),
        (apply(grey[side], "motion_blur", severity), expected),
    ):
        error = np.abs(ours - naive).reshape(30, -1).max(1)
        # Between two angles of the grid a last step, of little weight, may round elsewhere.
        assert np.median(error) < 1e-6 and error.max() < 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_blur_is_the_mean_of_interpolated_zooms(grey, severity):
    images = np.concatenate([grey[32][:3, :, 4:], grey[32][:3, :, 4:] ** 2], -1)[..., [0, 1, 1]]
    height, width = images.shape[1:3]
    stop = (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1]
    zooms = np.arange(1, stop, 0.01)
    expected = images.astype(float)
    for zoom in zooms:
        rows = (height - 1) / 2 + (np.arange(height) - (height - 1) / 2) / zoom
        columns = (width - 1) / 2 + (np.arange(width) - (width - 1) / 2) / zoom
        grid = np.meshgrid(np.arange(3), rows, columns, np.arange(3), indexing="ij")
        expected += ndimage.map_coordinates(images, grid, order=1)
    expected /= len(zooms) + 1
    np.testing.assert_allclose(apply(images, "zoom_blur", severity), expected, atol=1e-5)


@pytest.mark.parametrize("count, side, far", ((200, 32, 1), (40, 64, 2)))
def test_glass_takes_each_pixel_from_a_neighbour_with_equal_chance(count, side, far):
    # Every pixel encodes its index; severity 1 does not blur, 4 shuffles twice and hardly blurs.
    number = np.arange(side * side).reshape(1, side, side, 1)
    images = np.repeat((number / side**2).astype(np.float32), count, 0)
    for severity, rounds in ((1, 1), (4, 2)):
        if rounds == 2 and far == 2:
            continue  # a sigma of half a pixel blurs
        glass = apply(images, "glass_blur", severity)
        taken = np.rint(glass[..., 0] * side**2).astype(int)
        margin = rounds * far
        inside = (slice(None), slice(margin, -margin), slice(margin, -margin))
        rows, columns = np.divmod(taken[inside], side)
        here = np.arange(margin, side - margin)
        shifts = np.stack([rows - here[:, None], columns - here])
        chance = np.full(2 * far, 1 / (2 * far))
        if rounds == 2:
            chance = np.convolve(chance, chance)
        both = shifts.reshape(2, -1) + margin
        share = np.zeros((4 * far, 4 * far))
        np.add.at(share, tuple(both), 1 / both[0].size)
        expected = np.zeros_like(share)
        expected[: len(chance), : len(chance)] = np.outer(chance, chance)
        np.testing.assert_allclose(share, expected, atol=0.03)


def test_glass_blurs_before_and_after():
    # A stripe remains one in the mean over rows; its width shows both blurs.
    images = flat(0, 200, 32, 32, 1)
    images[:, :, 15] = 1
    for severity, sigma, rounds in ((2, 0.25, 1), (3, 0.4, 1), (4, 0.25, 2), (5, 0.4, 2)):
        weights = bell(sigma, int(4 * sigma + 0.5))
        shares = np.convolve(weights, weights)
        for _ in range(rounds):
            shares = np.convolve(shares, [0.5, 0.5])
        mean = apply(images, "glass_blur", severity)[:, 4:-4].mean((0, 1, 3))
        left = 15 - 2 * (len(weights) // 2)
        np.testing.assert_array_equal(np.flatnonzero(mean), left + np.arange(len(shares)))
        np.testing.assert_allclose(mean[mean > 0], shares, atol=0.03)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_is_a_fractal_of_the_published_decay(severity):
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    foggy = apply(flat(0.8, 40, 64, 64, 3), "fog", severity).astype(float)
    assert (foggy == foggy[..., :1]).all()
    heights = (foggy[..., 0] * (0.8 + amount) / 0.8 - 0.8) / amount
    np.testing.assert_allclose(heights.min((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(heights.max((1, 2)), 1, atol=1e-5)
    spread = {}
    for step in (16, 8, 4):
        half = step // 2
        corners, middles = heights[:, ::step, ::step], heights[:, half::step, half::step]
        tops, lefts = heights[:, ::step, half::step], heights[:, half::step, ::step]
        right, below = np.roll(corners, -1, 2), np.roll(corners, -1, 1)
        of_corners = (corners + right + below + np.roll(below, -1, 2)) / 4
        of_tops = (corners + right + middles + np.roll(middles, 1, 1)) / 4
        of_lefts = (corners + below + middles + np.roll(middles, 1, 2)) / 4
        added = [middles - of_corners, tops - of_tops, lefts - of_lefts]
        spread[step] = np.array([x.std((1, 2)) for x in added])
    # The variance that each level adds decreases by the decay squared, at all three positions.
    for step in (16, 8):
        ratios = np.median(spread[step] / spread[step // 2], 1)
        np.testing.assert_allclose(ratios, decay**2, rtol=0.12)


def test_fog_of_any_size_is_cut_from_the_next_power_of_two():
    whole = apply(flat(0.8, 4, 32, 32, 3), "fog", 3)
    np.testing.assert_allclose(apply(flat(0.8, 4, 31, 20, 3), "fog", 3), whole[:, :31, :20])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_adds_and_scales_back_to_the_brightest_value(colour, severity):
    amount = (0.2, 0.5, 0.75, 1, 1.5)[severity - 1]
    images = colour[:4] * np.float32(0.7)
    top = images.max((1, 2, 3), keepdims=True)
    heights = apply(flat(1, 4, 32, 32, 3), "fog", severity) * (1 + amount) - 1
    expected = (images + heights) * top / (top + amount)
    np.testing.assert_allclose(apply(images, "fog", severity), expected, atol=1e-5)
    assert not apply(flat(0, 4, 32, 32, 3), "fog", severity).any()


def through_hsv(images, change):
    pixels = images.reshape(-1, 3).astype(float)
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in pixels]
    return np.array(changed).reshape(images.shape)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_raises_the_value_of_hsv(grey, colour, severity):
    rise = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    expected = through_hsv(colour[:4], lambda h, s, v: (h, s, min(v + rise, 1)))
    np.testing.assert_allclose(apply(colour[:4], "brightness", severity), expected, atol=1e-6)
    raised = np.minimum(grey[8] + rise, 1)
    np.testing.assert_allclose(apply(grey[8], "brightness", severity), raised, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_scales_and_shifts_the_saturation_of_hsv(grey, colour, severity):
    gain, shift = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    expected = through_hsv(colour[:4], lambda h, s, v: (h, min(gain * s + shift, 1), v))
    np.testing.assert_allclose(apply(colour[:4], "saturate", severity), expected, atol=2e-6)
    np.testing.assert_array_equal(apply(grey[8], "saturate", severity), grey[8])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_the_deviation_from_each_channels_mean(colour, severity):
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    low = apply(colour, "contrast", severity)
    np.testing.assert_allclose(low.mean((1, 2)), colour.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(low.std((1, 2)), kept * colour.std((1, 2)), atol=1e-5)
    assert np.corrcoef(low[0, ..., 1].ravel(), colour[0, ..., 1].ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box_filter_down_and_up(colour, severity):
    fraction = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    images = np.rint(255 * colour[:4, :, :24]).astype(np.uint8)  # not square
    ours = apply(images.astype(np.float32) / 255, "pixelate", severity)
    small = int(24 * fraction), int(32 * fraction)
    for image, result in zip(images, ours, strict=True):
        pillows = Image.fromarray(image).resize(small, Image.BOX).resize((24, 32), Image.BOX)
        assert np.abs(255 * result - np.asarray(pillows)).max() < 1.02  # it rounds twice


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows_round_trip(grey, colour, severity):
    quality = (80, 65, 58, 50, 40)[severity - 1]
    for images in (grey[8][:4], colour[:4]):
        results = apply(images, "jpeg", severity)
        for image, result in zip(images, results, strict=True):
            pixels = np.rint(255 * image).astype(np.uint8)
            file = io.BytesIO()
            mode = "L" if image.shape[-1] == 1 else "RGB"
            size = image.shape[1::-1]
            Image.frombytes(mode, size, pixels.tobytes()).save(file, "jpeg", quality=quality)
            decoded = np.asarray(Image.open(file)).reshape(image.shape)
            np.testing.assert_allclose(result, decoded / 255, atol=1e-6)


def sources(severity, side):
    """Source positions of the pixels of 60 images, from images of row and column indices."""
    rows, columns = np.mgrid[:side, :side]
    plan = np.stack([rows, columns, 0 * rows], -1).astype(np.float32) / side
    moved = apply(np.repeat(plan[None], 60, 0), "elastic", severity)
    return side * moved[..., :2].astype(float)


def test_elastic_of_severity_1_moves_three_corners_by_at_most_8_percent():
    side = 64
    inner = np.arange(side // 2 - side // 5, side // 2 + side // 5)
    places = np.stack(np.meshgrid(inner, inner, indexing="ij"), -1).reshape(-1, 2)
    corners = side // 2 + side // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    everywhere = np.stack(np.meshgrid(*2 * [np.arange(side)], indexing="ij"), -1)
    images = np.random.default_rng(0).uniform(size=(60, side, side, 3)).astype(np.float32)
    results = apply(images, "elastic", 1)
    shifts = []
    for source, image, result in zip(sources(1, side), images, results, strict=True):
        known = np.insert(places, 2, 1, axis=1)
        back, error, *_ = np.linalg.lstsq(known, source[inner][:, inner].reshape(-1, 2))
        assert error.max() < 1e-6
        shifts.append((corners - back[2]) @ np.linalg.inv(back[:2]) - corners)
        grid = (everywhere @ back[:2] + back[2]).transpose(2, 0, 1)
        for channel in range(3):
            sampled = ndimage.map_coordinates(image[..., channel], grid, order=1, mode="mirror")
            np.testing.assert_allclose(result[..., channel], sampled, atol=1e-3)
    # Uniform in the square about each corner.
    shifts = np.abs(shifts) / (0.08 * side)
    assert shifts.max() < 1.001 and (shifts.max(0) > 0.85).all()
    np.testing.assert_allclose(shifts.mean(0), 0.5, atol=0.15)


@pytest.mark.parametrize("severity", (2, 3, 4, 5))
def test_elastic_shifts_are_smoothed_uniform_noise(severity):
    side = 64
    shift, sigma = ((0.05, 0.2), (0.08, 0.06), (0.1, 0.04), (0.1, 0.03))[severity - 2]
    weights = bell(sigma * side, int(3 * sigma * side + 0.5))
    # Second differences along rows do not depend on the affine map.
    bent = np.convolve(weights, (1, -2, 1))
    std = shift * side / 3**0.5 * np.sqrt((bent**2).sum() * (weights**2).sum())
    second = np.diff(sources(severity, side)[:, 20:44, 20:44], n=2, axis=1)
    np.testing.assert_allclose(second.std((0, 1, 2)), std, rtol=0.12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("severity", thinned((1, 5), (5,)))
def test_blurs_and_shuffles_leave_a_constant_image(name, severity):
    images = flat(0.6, 4, 32, 32, 3)
    corrupted = apply(images, name, severity)
    kept = name.endswith("blur") or name in ("contrast", "elastic", "pixelate", "jpeg")
    assert (np.abs(corrupted - images).max() < 1e-5) == kept or (name, severity) == ("saturate", 1)


def test_colors_change_and_fade_together(colour):
    images = colour[:4, :, :, :1].repeat(3, -1)
    for name in sorted(CORRUPTIONS):
        corrupted = apply(images, name, 4)
        together = not name.endswith("noise") and name != "saturate"
        assert (np.ptp(corrupted, -1).max() < 1e-6) == together


@pytest.mark.parametrize("side", thinned((8, 32), (32,)))
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"saturate", "elastic", "glass_blur"}))
def test_the_distance_from_the_image_grows_with_severity(grey, name, side):
    if (name, side) == ("pixelate", 8):
        pytest.skip("the five fractions of 8 pixels are 7, 7, 6, 6 and 5")
    distances = [np.abs(apply(grey[side], name, s) - grey[side]).mean() for s in SEVERITIES]
    assert distances[0] > 1e-3
    growth = np.diff(distances)
    if name == "motion_blur":  # 3 and 4 differ in a tail of no weight
        assert abs(growth[2]) < 1e-5
        growth = np.delete(growth, 2)
    assert (growth > 0).all()


@pytest.mark.parametrize("name", SOME)
def test_range_type_and_shape_do_not_change(name):
    random = np.random.default_rng(0)
    for shape in ((30, 8, 8, 1), (1, 200, 224, 3)):
        images = (random.uniform(size=shape) > 0.5).astype(np.float32)
        for severity in SEVERITIES:
            corrupted = corrupt(images, name, severity, KEY)
            assert corrupted.shape == shape and corrupted.dtype == jnp.float32
            assert corrupted.min() >= 0 and corrupted.max() <= 1
            assert jnp.isfinite(corrupted).all()


@pytest.mark.parametrize("name", SOME)
def test_a_result_depends_on_key_and_index_and_not_on_the_batch(colour, name):
    images = np.repeat(colour[:1], 4, 0)
    batch = apply(images, name, 5)
    np.testing.assert_array_equal(apply(images, name, 5), batch)
    np.testing.assert_allclose(apply(images[:1], name, 5), batch[:1], atol=1e-6)
    among_others = np.concatenate([colour[5:7], images[2:3], colour[7:8]])
    np.testing.assert_allclose(apply(among_others, name, 5)[2], batch[2], atol=1e-6)
    other_key = apply(images, name, 5, jax.random.key(1))
    for other in (other_key, batch[::-1]):
        assert (np.abs(other - batch).max() < 1e-6) == (name in UNDRAWN)


@pytest.mark.parametrize("name", SOME)
def test_images_of_any_number_of_channels_are_so_many_gray_images(name):
    images = np.random.default_rng(3).uniform(0.1, 0.9, (3, 9, 14, 2)).astype(np.float32)
    images[:, 4, 5] = 1  # the brightest value of every channel, which a fog keeps
    for severity in (2, 5):
        both = apply(images, name, severity)
        alone = np.concatenate([apply(images[..., [c]], name, severity) for c in range(2)], -1)
        assert both.shape == images.shape and both.min() >= 0 and both.max() <= 1
        if name.endswith("noise"):  # every value has its own
            noise = (both - images)[..., 0].ravel(), (both - images)[..., 1].ravel()
            assert abs(np.corrcoef(*noise)[0, 1]) < 0.3
        else:
            np.testing.assert_allclose(both, alone, atol=1e-6)
        if name == "gaussian_blur":
            sigma = (0.6, 1.0)[severity == 5]
            scipys = ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")
            np.testing.assert_allclose(both, scipys, atol=1e-6)


def test_a_zoom_is_close_to_the_sources_which_is_about_a_whole_pixel(grey):
    """The published code on 32 x 32 images: it crops, lets scipy enlarge, and cuts."""

    def enlarged(image, zoom):
        crop = math.ceil(32 / zoom)
        top = (32 - crop) // 2
        whole = ndimage.zoom(image[top : top + crop, top : top + crop], zoom, order=1)
        cut = (len(whole) - 32) // 2
        return whole[cut : cut + 32, cut : cut + 32]

    images = grey[32][:4]
    for severity, stop in zip(SEVERITIES, (1.06, 1.11, 1.16, 1.21, 1.26), strict=True):
        zooms = np.arange(1, stop, 0.01)
        expected = images.astype(float)
        for image, total in zip(images[..., 0], expected[..., 0], strict=True):
            for zoom in zooms:
                total += enlarged(image, zoom)
        apart = apply(images, "zoom_blur", severity) - expected / (len(zooms) + 1)
        assert np.abs(apart).mean() < ZOOM_APART < np.abs(images - images[::-1]).mean() / 2


def test_standard_evaluations_corrupt_images_of_any_number_of_channels():
    split = Split(flat(0.5, 2, 8, 8, 2), np.zeros(2, np.int32))
    assert evaluation.default_corruptions("standard", split) == [(n, 3) for n in names(2)]
    assert names(2) == names(1) and "saturate" not in names(2)


def test_names_are_those_that_change_images_with_this_number_of_channels(grey, colour):
    assert names(3) == tuple(CORRUPTIONS)
    assert set(CORRUPTIONS) - set(names(1)) == {"saturate"}
    for images, channels in ((grey[32], 1), (colour[:4], 3)):
        assert all(np.abs(apply(images, n, 5) - images).max() > 0.01 for n in names(channels))


@pytest.mark.parametrize(
    "name, severity, channels, message",
    (
        ("gausian_noise", 1, 1, "unknown corruption 'gausian_noise'.*mean gaussian_noise"),
        ("frost", 1, 1, "unknown corruption 'frost'"),
        ("fog", 0, 1, "corruption severity 0 is out of range: give a number of 1 .* at most 5"),
        ("fog", 6, 1, "corruption severity 6 is out of range"),
    ),
)
def test_unsupported_arguments_are_refused_in_one_sentence(name, severity, channels, message):
    with pytest.raises(InputError, match=message) as refusal:
        corrupt(flat(0, 1, 8, 8, channels), name, severity, KEY)
    assert "\n" not in str(refusal.value) and str(refusal.value)[-1] in ".?"


FLAT = [[1, 40, 1], [40, 1, 3], [2, 40, 1], [1, 2, 1], [1, 1, 1], [1, 1, 3], [2, 2, 3], [3, 1, 1]]
FLAT += [[9, 5, 4]]


@pytest.mark.parametrize("shape", thinned(FLAT, [[1, 40, 1], [1, 1, 3]]))
@pytest.mark.parametrize("name", SOME)
def test_flat_and_small_images_can_be_corrupted(name, shape):
    images = np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32)
    for severity in SEVERITIES:
        corrupted = corrupt(images, name, severity, KEY)
        assert corrupted.shape == images.shape and jnp.isfinite(corrupted).all()
        assert corrupted.min() >= 0 and corrupted.max() <= 1


@pytest.mark.parametrize("name", thinned(sorted(set(NAMES) - {"jpeg"}), NAMES[::2]))
def test_constant_images_stay_finite(name):
    for value in (0, 1):
        corrupted = corrupt(flat(value, 1, 1, 9, 1), name, 5, KEY)
        assert jnp.isfinite(corrupted).all()


def test_a_signal_is_made_coarser_along_its_length_only():
    signal = np.random.default_rng(1).uniform(size=(1, 1, 40, 1)).astype(np.float32)
    square = signal.repeat(40, 1)
    np.testing.assert_allclose(
        apply(signal, "pixelate", 5)[:, 0], apply(square, "pixelate", 5)[:, 20], atol=1e-6
    )


@pytest.mark.slow
def test_few_at_a_time_is_the_same_as_all_at_once(grey, monkeypatch):
    images = grey[8][:7]
    whole = {name: apply(images, name, 3) for name in ("fog", "gaussian_noise", "elastic")}
    monkeypatch.setattr(common, "MAX_VALUES", 3 * 64)
    jax.clear_caches()
    for name, expected in whole.items():
        np.testing.assert_allclose(apply(images, name, 3), expected, atol=1e-6)


@pytest.mark.parametrize("name, side", (("jpeg", 65_501), ("fog", 5000), ("pixelate", 4097)))
def test_sides_beyond_a_corruption_are_known_before_it_runs(name, side):
    assert name in names(1, 32) and name not in names(1, side)
    for shape in ((1, side, 1), (side, 1, 3)):
        with pytest.raises(InputError, match=f"{name} takes images of at most"):
            check_corruption(name, 3, shape)


@pytest.mark.slow
def test_a_standard_evaluation_of_flat_images_ends(monkeypatch):
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(40, 3)), jnp.float32)
    images = random.random((8, 1, 40, 1)).astype(np.float32)
    split = Split(images, np.asarray(linear(weights, images).argmax(-1), np.int32))
    everything = evaluation.default_corruptions("standard", split)
    assert {name for name, _ in everything} == set(names(1))
    options = {"eps": 0.1, "key": KEY, "suite": "pgd", "audit_images": 4}
    found = evaluation.evaluate(linear, weights, split, natural=everything, **options)
    assert set(found.natural) == {f"{name} 3" for name in names(1)}


def test_what_is_not_applicable_is_refused_before_any_attack(monkeypatch, untyped):
    monkeypatch.setattr(evaluation, "attack_all", None)
    weights, images = jnp.ones((5000, 2)), flat(0.5, 2, 1, 5000, 1)
    options = {"eps": 0.1, "key": KEY, "suite": "pgd"}
    for natural, message in (((("fog", 3),), "at most 4096"), ((("fog", 2.5),), "no integer")):
        with pytest.raises(InputError, match=message):
            split = Split(images, np.zeros(2, np.int32))
            evaluation.evaluate(linear, weights, split, natural=natural, **options)
