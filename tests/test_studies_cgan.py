"""The conditional GAN: its training, cut off and resumed, and the tests of its images."""

import numpy as np
import pytest
import tensorflow as tf

from covid_lab.studies import cgan
from covid_lab.studies.cgan import Recipe, cross_tests, memorisation, train
from covid_lab.studies.imbalance import NotTraining, balance
from covid_project.training import set_seed

SMALL = {"image_size": 16, "noise": 8, "width": 8, "batch_size": 16, "learning_rate": 0.002}


def discs(rng, count, classes=3, size=16):
    """Images whose class is the radius of a disc."""
    labels = np.arange(count) % classes
    yy, xx = np.mgrid[:size, :size] - size / 2 + 0.5
    images = [
        50 + 150 * (np.hypot(yy - dy, xx - dx) < 2 + 2 * label) + rng.normal(0, 5, (size, size))
        for label, (dy, dx) in zip(labels, rng.integers(-1, 2, (count, 2)), strict=True)
    ]
    return np.clip(images, 0, 255).astype(np.uint8)[..., None], labels


def trained(folder, steps, **how):
    set_seed(0)
    images, labels = discs(np.random.default_rng(5), 60)
    how = {"classes": 3, "seed": 1, "folder": folder, "splits": ["train"] * 60} | how
    return train(images, labels, how.pop("splits"), Recipe(**SMALL, steps=steps), **how)


@pytest.fixture
def eager():
    """Few steps are faster without a graph."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_a_training_cut_off_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, eager):
    monkeypatch.setattr(cgan, "SAVED_EVERY", 2)
    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 3)
    resumed = trained(tmp_path / "parts", 4)
    again = trained(tmp_path / "whole", 4)  # finished: nothing is trained
    for weights in zip(
        *(one.network.get_weights() for one in (whole, resumed, again)), strict=True
    ):
        np.testing.assert_array_equal(weights[0], weights[1])
        np.testing.assert_array_equal(weights[0], weights[2])
    assert whole.history.equals(resumed.history)
    assert whole.history["step"].tolist() == [1, 2, 3, 4]
    assert len(list((tmp_path / "whole").glob("cgan-*.npz"))) == 1


def test_it_learns_what_its_classes_are(tmp_path, rng):
    """Larger discs are brighter on average: the generator's classes are ordered as the real."""
    found = trained(tmp_path, 70)
    means = [found.generate(label, 30, 0).mean() for label in range(3)]
    assert means[0] + 10 < means[1] < means[2] - 10
    images, labels = discs(rng, 60)
    real_means = [images[labels == label].mean() for label in range(3)]
    np.testing.assert_allclose(means, real_means, atol=30)
    balanced = balance(
        "cgan", images[:50], np.repeat([0, 1, 2], [30, 15, 5]), ["train"] * 50, seed=0,
        generate=found.generate,
    )  # fmt: skip
    assert np.bincount(balanced.labels).tolist() == [30] * 3
    assert balanced.inputs.dtype == np.uint8


def test_only_training_images_of_the_right_kind_are_taken(tmp_path):
    with pytest.raises(NotTraining):
        trained(tmp_path, 1, splits=["train"] * 59 + ["val"])
    with pytest.raises(ValueError, match=r"no training image: counts are \[20, 20, 20, 0\]"):
        trained(tmp_path, 1, classes=4)
    with pytest.raises(ValueError, match="wanted uint8"):
        train(np.zeros((2, 8, 8, 1)), [0, 1], ["train"] * 2, Recipe(**SMALL, steps=1), classes=2,
              seed=0, folder=tmp_path)  # fmt: skip


def test_cross_tests_tell_useful_synthetic_images_from_useless_ones(rng):
    def features(count):
        labels = np.arange(count) % 3
        return rng.normal(size=(count, 6)) + 3 * np.eye(6)[labels], labels

    real, held_out = features(150), features(90)
    good = cross_tests(real, features(150), held_out).set_index(["trained", "tested"])["macro_F1"]
    useless = (features(150)[0], rng.permutation(np.arange(150) % 3))
    bad = cross_tests(real, useless, held_out).set_index(["trained", "tested"])["macro_F1"]
    assert good.min() > 0.85
    assert bad["synthetic", "real"] < 0.6
    assert bad["real", "synthetic"] < 0.5
    assert bad["real", "real"] == good["real", "real"]


def test_distances_by_a_naive_loop_with_mirrored_images(rng):
    asked = rng.integers(0, 256, (4, 6, 6, 1), dtype=np.uint8)
    known = rng.integers(0, 256, (5, 6, 6, 1), dtype=np.uint8)
    found = memorisation(asked, known, known[:, ::-1]).set_index("images")
    loop = [
        min(
            np.sqrt(((image - variant) ** 2).mean())
            for one in known.astype(float)
            for variant in (one, one[::-1], one[:, ::-1], one[::-1, ::-1])
        )
        for image in asked.astype(float)
    ]
    expected = [np.median(loop), min(loop)]
    assert found.loc["synthetic", ["median", "nearest"]].tolist() == pytest.approx(expected, 1e-4)
    assert found.loc["held out", "median"] == pytest.approx(0, abs=0.05)


def test_copies_of_training_images_are_caught_and_new_images_are_not(rng):
    training, held_out, new = (discs(rng, 200)[0] for _ in range(3))
    noisy = np.clip(training[:100].astype(int) + rng.integers(-2, 3, (100, 16, 16, 1)), 0, 255)
    copied = memorisation(noisy.astype(np.uint8), training, held_out).set_index("images")
    fresh = memorisation(new, training, held_out).set_index("images")
    assert copied.loc["synthetic", "copies"] == 1
    assert fresh.loc["synthetic", "copies"] < 0.06
    assert copied.loc["held out", "copies"] <= 0.01
