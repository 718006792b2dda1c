import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression

from covid_lab.studies.classical import log_odds, logistic_regression, nearest_neighbours


@pytest.fixture
def slices(rng):
    """Training images with labels; new images that are much brighter; both standardised by hand."""
    labels = np.arange(40) % 2
    images = rng.integers(0, 200, (40, 6, 6, 1)) + 50 * labels[:, None, None, None]
    other = rng.integers(100, 256, (9, 6, 6, 1))
    pixels = images.reshape(40, -1)
    scaled = [
        (one.reshape(len(one), -1) - pixels.mean(0)) / pixels.std(0) for one in (images, other)
    ]
    return images.astype(np.uint8), labels, other.astype(np.uint8), *scaled


def test_logistic_regression_by_hand(slices):
    images, labels, other, scaled, scaled_other = slices
    model = logistic_regression(strength=0.1).fit(images, labels)
    plain = LogisticRegression(C=0.1, max_iter=2000).fit(scaled, labels)
    expected = plain.decision_function(scaled_other)
    np.testing.assert_allclose(log_odds(model, other), expected, atol=1e-2)
    # Nothing is learned from the images that are scored.
    alone = [log_odds(model, image[None])[0] for image in other]
    np.testing.assert_allclose(log_odds(model, other), alone)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_nearest_neighbours_by_hand(slices, neighbours):
    images, labels, other, scaled, scaled_other = slices
    model = nearest_neighbours(neighbours=neighbours).fit(images, labels)
    nearest = np.argsort(cdist(scaled_other, scaled), axis=1)[:, :neighbours]
    votes = labels[nearest].sum(axis=1)
    expected = np.log((votes + 0.5) / (neighbours - votes + 0.5))
    np.testing.assert_allclose(log_odds(model, other), expected)
