import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from covid_lab.studies.classical import flattened, log_odds, logistic_regression, nearest_neighbours


@pytest.fixture
def slices(rng):
    labels = np.arange(40) % 2
    images = rng.integers(0, 200, (40, 6, 6, 1)) + 50 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@pytest.mark.parametrize("build", [logistic_regression, nearest_neighbours])
def test_scaling_is_learned_from_training_alone(build, slices, rng):
    images, labels = slices
    model = build().fit(images, labels)
    scaler = model.named_steps["standardscaler"]
    pixels = images.reshape(40, -1).astype(float)
    np.testing.assert_allclose(scaler.mean_, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scaler.scale_, pixels.std(axis=0), rtol=1e-6)
    # Scoring other images, however different, changes nothing, and each is scored by itself.
    other = rng.integers(200, 256, (9, 6, 6, 1)).astype(np.uint8)
    together = log_odds(model, other)
    alone = np.concatenate([log_odds(model, image[None]) for image in other])
    np.testing.assert_allclose(together, alone)
    np.testing.assert_allclose(scaler.mean_, pixels.mean(axis=0), rtol=1e-6)


def test_one_pipeline_from_images_to_scores(slices):
    model = logistic_regression()
    assert isinstance(model, Pipeline)
    names = [name for name, _ in model.steps]
    assert names[1:] == ["standardscaler", "logisticregression"]
    clone(model).fit(*slices)  # what cross-validation does: a new scaler for every fold


def test_logistic_regression_by_hand(slices):
    images, labels = slices
    model = logistic_regression(strength=0.1).fit(images, labels)
    pixels = flattened(images)
    scaled = (pixels - pixels.mean(0)) / pixels.std(0)
    plain = LogisticRegression(C=0.1, max_iter=2000).fit(scaled, labels)
    np.testing.assert_allclose(log_odds(model, images), plain.decision_function(scaled), atol=1e-2)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_nearest_neighbours_by_hand(slices, rng, neighbours):
    images, labels = slices
    model = nearest_neighbours(neighbours=neighbours).fit(images, labels)
    new = rng.integers(0, 256, (11, 6, 6, 1)).astype(np.uint8)
    pixels = flattened(images)
    mean, deviation = pixels.mean(0), pixels.std(0)
    distances = cdist((flattened(new) - mean) / deviation, (pixels - mean) / deviation)
    votes = labels[np.argsort(distances, axis=1)[:, :neighbours]].sum(axis=1)
    scores = log_odds(model, new)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores > 0, votes > neighbours / 2)
    np.testing.assert_array_equal(
        np.argsort(scores, kind="stable"), np.argsort(votes, kind="stable")
    )
