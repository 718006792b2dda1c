"""Perturbations, against naive loops, closed forms and the package imagecorruptions."""

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp
from skimage.color import hsv2rgb, rgb2hsv

from covid_lab.studies.perturbations import (
    CONSTANTS,
    PERTURBATIONS,
    SEVERITIES,
    constant,
    motion_blurred,
    perturbed,
)

PEER = {  # names there
    "gaussian noise": "gaussian_noise",
    "speckle": "speckle_noise",
    "motion blur": "motion_blur",
    "contrast": "contrast",
    "brightness": "brightness",
}


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip(
        "imagecorruptions",
        reason="a peer only: pip install -r requirements-bench.txt",
        exc_type=ImportError,
    )


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_the_seed_decides_and_each_severity_is_further_from_the_original(perturbation, rng):
    smooth = np.cumsum(rng.normal(0, 4, (4, 28, 30, 1)), axis=2) + 120
    images = np.clip(smooth, 0, 255).astype(np.uint8)
    found = [perturbed(images, perturbation, severity, seed=4) for severity in SEVERITIES]
    assert found[2].dtype == np.uint8
    assert found[2].shape == images.shape
    np.testing.assert_array_equal(found[2], perturbed(images, perturbation, 3, seed=4))
    random = perturbation in ("gaussian noise", "speckle", "motion blur")
    assert (found[2] != perturbed(images, perturbation, 3, seed=5)).any() == random
    assert perturbed(images[:0], perturbation, 3).shape == (0, 28, 30, 1)
    distances = [np.mean((one - images.astype(float)) ** 2) for one in found]
    assert distances[0] > 0
    assert distances == sorted(distances)


@pytest.mark.parametrize(("columns", "size"), [(28, 32), (45, 32), (46, 64), (119, 64), (128, 224)])
def test_the_constants_are_those_of_the_nearest_published_size(columns, size):
    assert constant("gaussian noise", 5, columns) == CONSTANTS["gaussian noise"][size][4]


def test_noise_has_the_published_deviation_and_no_offset():
    grey = np.full((40, 64, 64, 1), 128, np.uint8)
    found = perturbed(grey, "gaussian noise", 2).astype(float) - 128
    assert found.std() == pytest.approx(math.hypot(255 * 0.08, 1 / math.sqrt(12)), rel=0.01)
    assert found.mean() == pytest.approx(0, abs=4 * found.std() / math.sqrt(found.size))
    for value in (0, 40, 80):  # speckle grows with the grey value and leaves black as it is
        found = perturbed(np.full((20, 28, 28, 1), value, np.uint8), "speckle", 5)
        assert found.std() == pytest.approx(0.2 * value, rel=0.02, abs=1e-9)


def test_contrast_and_brightness_are_the_published_formulas(rng):
    images = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    means = images.mean(axis=(1, 2), keepdims=True)
    expected = (images - means) * 0.2 + means
    np.testing.assert_allclose(perturbed(images, "contrast", 3), expected, atol=0.5 + 1e-3)
    colour = images[:, :32, :32]
    colour[0, 0, 0] = 0
    hsv = rgb2hsv(colour)
    hsv[..., 2] = np.minimum(hsv[..., 2] + 0.2, 1)
    found = perturbed(colour, "brightness", 4)
    np.testing.assert_allclose(found, 255 * hsv2rgb(hsv), atol=0.5 + 1e-3)
    grey = colour[..., :1]
    expected = np.minimum(grey.astype(int) + 51, 255)
    np.testing.assert_array_equal(perturbed(grey, "brightness", 4), expected)


def naive_motion_blur(image, radius, sigma, angle):
    """One pixel after the other."""
    height, width = image.shape
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(2 * radius + 1)]
    found = np.zeros(image.shape)
    for row, column in np.ndindex(height, width):
        for step, weight in enumerate(weights):
            y = row + math.ceil(step * math.sin(math.radians(angle)) - 0.5)
            x = column + math.ceil(step * math.cos(math.radians(angle)) - 0.5)
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            found[row, column] += weight / sum(weights) * image[y, x]
    return found


def test_motion_blur_is_the_naive_loop(rng):
    images, angles = rng.integers(0, 256, (3, 28, 30, 1), np.uint8), np.array([-45.0, 0, 33.3])
    found = motion_blurred(images, 6, 2, angles)
    for image, angle, blurred in zip(images[..., 0], angles, found[..., 0], strict=True):
        expected = naive_motion_blur(image, 6, 2, angle)
        np.testing.assert_allclose(blurred, expected, atol=0.5 + 1e-3)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_what_is_not_random_agrees_with_the_package(severity, peer, rng, monkeypatch):
    angle = 27.5
    monkeypatch.setattr("imagecorruptions.corruptions.np.random.uniform", lambda *_: angle)
    image = rng.integers(0, 256, (1, 224, 224, 3), np.uint8)
    found = {
        ("contrast", 3): perturbed(image, "contrast", severity),
        ("brightness", 3): perturbed(image, "brightness", severity),
        ("contrast", 1): perturbed(image[..., :1], "contrast", severity),
        ("brightness", 1): perturbed(image[..., :1], "brightness", severity),
        ("motion blur", 3): motion_blurred(
            image, *constant("motion blur", severity, 224), np.array([angle])
        ),
    }
    for (name, channels), ours in found.items():
        theirs = peer.corrupt(image[0, ..., :channels], severity, PEER[name])[..., :channels]
        assert np.abs(ours[0].astype(int) - theirs).max() <= 1, name


@pytest.mark.parametrize("perturbation", ["gaussian noise", "speckle"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_agrees_with_the_package_in_distribution(perturbation, severity, peer):
    image = np.full((224, 224, 3), 90, np.uint8)
    np.random.seed(0)  # noqa: NPY002  the package draws from NumPy's old generator
    theirs = peer.corrupt(image, severity, PEER[perturbation]).ravel().astype(float)
    ours = perturbed(image[None], perturbation, severity, seed=1).ravel().astype(float)
    # Half a grey level apart, since the package cuts off: spread evenly, both are continuous.
    spread = np.random.default_rng(2).random((2, len(ours)))
    inside, both = ((one > 0) & (one < 255) for one in (ours, theirs))
    shifted = ours - 0.5 + spread[0]
    assert inside.mean() == pytest.approx(both.mean(), abs=0.01)
    assert ks_2samp(shifted[inside], (theirs + spread[1])[both]).statistic < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbation": "fog"}, "fog.*motion blur"),
        ({"severity": 6}, "6.*1 to 5"),
        ({"images": np.zeros((1, 28, 28, 1))}, "float64.*uint8"),
        ({"images": np.zeros((28, 28, 1), np.uint8)}, "expected uint8"),
        ({"images": np.zeros((1, 16, 28, 1), np.uint8)}, "16×28"),
    ],
)
def test_bad_input_is_named(change, message):
    images = np.zeros((1, 28, 28, 1), np.uint8)
    arguments = {"images": images, "perturbation": "contrast", "severity": 1} | change
    with pytest.raises(ValueError, match=message):
        perturbed(**arguments)
