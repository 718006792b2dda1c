"""The conditional GAN: its networks, its training cut off and resumed, and the judges of it."""

import numpy as np
import pytest

from covid_lab.studies import cgan
from covid_lab.studies.cgan import (
    Recipe,
    cross_tests,
    discriminator_network,
    generator_network,
    memorisation,
    nearest_distances,
    train,
)
from covid_lab.studies.imbalance import NotTraining, balance
from covid_project.training import set_seed

SMALL = {"image_size": 16, "noise": 8, "width": 8, "batch_size": 16, "learning_rate": 0.001}


def discs(rng, count, classes=3, size=16):
    """Images whose class is the radius of a disc."""
    labels = np.arange(count) % classes
    yy, xx = np.mgrid[:size, :size] - size / 2 + 0.5
    images = [
        50 + 150 * (np.hypot(yy - dy, xx - dx) < 2 + 2 * label) + rng.normal(0, 5, (size, size))
        for label, (dy, dx) in zip(labels, rng.integers(-1, 2, (count, 2)), strict=True)
    ]
    return np.clip(images, 0, 255).astype(np.uint8)[..., None], labels


def trained(folder, rng, steps, **how):
    set_seed(0)
    images, labels = discs(np.random.default_rng(5), 60)
    how = {"classes": 3, "seed": 1, "folder": folder, "splits": ["train"] * 60} | how
    return train(images, labels, how.pop("splits"), Recipe(**SMALL, steps=steps), **how)


def test_the_networks_take_the_class_and_give_images_and_logits():
    recipe = Recipe(**{**SMALL, "image_size": 64}, steps=1)
    generator, discriminator = generator_network(recipe, 5), discriminator_network(recipe, 5)
    noise, told = np.zeros((2, 8), np.float32), np.eye(5, dtype=np.float32)[[0, 4]]
    images = generator([noise, told]).numpy()
    assert images.shape == (2, 64, 64, 1)
    assert np.abs(images).max() <= 1
    assert not np.array_equal(images[0], images[1])  # same noise, other class
    same = np.repeat(images[:1], 2, axis=0)
    logits = discriminator([same, told]).numpy()
    assert logits.shape == (2, 1)
    assert logits[0] != logits[1]


def test_a_training_cut_off_goes_on_as_if_it_had_not_been(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(cgan, "SAVED_EVERY", 3)
    whole = trained(tmp_path / "whole", rng, 8)
    trained(tmp_path / "parts", rng, 4)
    resumed = trained(tmp_path / "parts", rng, 8)
    for first, second in zip(
        whole.network.get_weights(), resumed.network.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    assert whole.history.equals(resumed.history)
    assert whole.history["step"].tolist() == list(range(1, 9))
    again = trained(tmp_path / "whole", rng, 8)  # finished: nothing is trained
    np.testing.assert_array_equal(again.generate(1, 3, 0), whole.generate(1, 3, 0))
    assert len(list((tmp_path / "whole").glob("cgan-*.npz"))) == 1
    other = trained(tmp_path / "whole", rng, 2, seed=2)
    assert not np.array_equal(other.generate(1, 3, 0), whole.generate(1, 3, 0))


def test_it_learns_what_its_classes_are(tmp_path, rng):
    """Larger discs are brighter on average: the generator's classes are ordered as the real."""
    found = trained(tmp_path, rng, 150)
    means = [found.generate(label, 40, 0).mean() for label in range(3)]
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


def test_only_training_images_of_the_right_kind_are_taken(tmp_path, rng):
    with pytest.raises(NotTraining):
        trained(tmp_path, rng, 1, splits=["train"] * 59 + ["val"])
    with pytest.raises(ValueError, match=r"no training image: counts are \[20, 20, 20, 0\]"):
        trained(tmp_path, rng, 1, classes=4)
    with pytest.raises(ValueError, match="wanted uint8"):
        train(np.zeros((2, 8, 8, 1)), [0, 1], ["train"] * 2, Recipe(**SMALL, steps=1), classes=2,
              seed=0, folder=tmp_path)  # fmt: skip


def test_cross_tests_tell_useful_synthetic_images_from_useless_ones(rng):
    def features(count, shift=0.0):
        labels = np.arange(count) % 3
        return rng.normal(size=(count, 6)) + 3 * np.eye(6)[labels] + shift, labels

    real, held_out = features(150), features(90)
    good = cross_tests(real, features(150), held_out).set_index(["trained", "tested"])
    values, labels = features(150)
    useless = (values, rng.permutation(labels))
    bad = cross_tests(real, useless, held_out).set_index(["trained", "tested"])
    assert good.loc[("synthetic", "real"), "macro_F1"] > 0.85
    assert good.loc[("real", "synthetic"), "macro_F1"] > 0.85
    assert bad.loc[("synthetic", "real"), "macro_F1"] < 0.6
    assert bad.loc[("real", "synthetic"), "macro_F1"] < 0.5
    assert bad.loc[("real", "real"), "macro_F1"] == good.loc[("real", "real"), "macro_F1"]


def test_nearest_distances_by_a_naive_loop_with_mirrored_images(rng):
    asked = rng.integers(0, 256, (4, 6, 6, 1), dtype=np.uint8)
    known = rng.integers(0, 256, (5, 6, 6, 1), dtype=np.uint8)
    found = nearest_distances(asked, known)
    for image, distance in zip(asked.astype(float), found, strict=True):
        loop = min(
            np.sqrt(((image - variant) ** 2).mean())
            for one in known.astype(float)
            for variant in (one, one[::-1], one[:, ::-1], one[::-1, ::-1])
        )
        assert distance == pytest.approx(loop, rel=1e-4)
    assert nearest_distances(known[:, ::-1], known) == pytest.approx(np.zeros(5), abs=0.05)


def test_copies_of_training_images_are_caught_and_new_images_are_not(rng):
    training, held_out, new = (discs(rng, 200)[0] for _ in range(3))
    noisy = np.clip(training[:100].astype(int) + rng.integers(-2, 3, (100, 16, 16, 1)), 0, 255)
    copied = memorisation(noisy.astype(np.uint8), training, held_out).set_index("images")
    fresh = memorisation(new, training, held_out).set_index("images")
    assert copied.loc["synthetic", "copies"] == 1
    assert fresh.loc["synthetic", "copies"] < 0.06
    assert copied.loc["held out", "copies"] <= 0.01
