"""Drift of saliency maps: its measures, the grid that goes on after a cut, the flag."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from scipy.ndimage import center_of_mass
from scipy.stats import spearmanr

from covid_lab.explain.gradcam import grad_cam
from covid_lab.studies import saliency_drift
from covid_lab.studies.perturbations import PERTURBATIONS, perturbed
from covid_lab.studies.saliency_drift import MEASURES, drift, flag, grid

LAYERS = ("block1_1", "block4_2")


def test_the_measures_are_those_of_scipy(rng):
    before, after = rng.random((2, 3, 64, 64), np.float32)
    found = drift(before, after, (64, 64))
    assert tuple(found) == MEASURES
    for number, pair in enumerate(zip(255.0 * before, 255.0 * after, strict=True)):
        rmse = np.sqrt(np.mean((pair[0] - pair[1]) ** 2))
        assert found["rmse"][number] == pytest.approx(rmse, abs=0.1)
        correlation = spearmanr(pair[0].ravel(), pair[1].ravel()).statistic
        assert found["spearman"][number] == pytest.approx(correlation)
        shift = np.subtract(*(center_of_mass(np.rint(one)) for one in pair))
        assert found["centroid_shift"][number] == pytest.approx(np.hypot(*shift))


def test_drift_of_maps_that_are_equal_scaled_moved_and_blank(rng):
    maps = rng.random((4, 7, 7), np.float32)
    same = drift(maps, maps, (28, 20))
    assert not same["rmse"].any()
    assert not same["centroid_shift"].any()
    np.testing.assert_allclose([same["ssim"], same["spearman"]], 1, atol=1e-6)
    ones = np.ones((1, 14, 14), np.float32)
    scaled = drift(ones, ones * 0.2, (28, 28))
    assert scaled["rmse"][0] == pytest.approx(255 - 51)
    assert scaled["centroid_shift"][0] == 0
    spot, moved = np.zeros((2, 1, 28, 28), np.float32)
    spot[0, 10:13, 5:8] = moved[0, 13:16, 9:12] = 1
    assert drift(spot, moved, (28, 28))["centroid_shift"][0] == pytest.approx(5)  # 3, 4, 5
    blank = drift(maps, np.zeros_like(maps), (28, 28))
    assert np.isnan([blank["centroid_shift"], blank["ssim"]]).all()
    assert np.isfinite(blank["rmse"]).all()


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(3)
    pictures = keras.Input((28, 28, 1))
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name=LAYERS[0])(pictures)
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name=LAYERS[1])(x)
    logits = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    return keras.Model(pictures, logits), images


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    return grid(*network, tmp_path_factory.mktemp("grid"), layers=LAYERS, seed=5)


def test_the_grid_has_every_row_once_and_each_is_what_one_image_gives(whole, network):
    scores, drifts = whole
    keys = ["image", "perturbation", "severity"]
    assert len(scores) == len(scores[keys].drop_duplicates()) == 3 * 26
    assert len(drifts) == len(drifts[[*keys, "layer"]].drop_duplicates()) == 3 * 25 * len(LAYERS)
    assert set(drifts["perturbation"]) == set(PERTURBATIONS)
    model, images = network
    version = perturbed(images, "speckle", 4, (5, PERTURBATIONS.index("speckle"), 4))
    rows = scores.query("perturbation == 'speckle' and severity == 4")
    logits = model(version.astype(np.float32), training=False).numpy()
    np.testing.assert_allclose(rows.filter(like="logit_"), logits, rtol=1e-4, atol=1e-4)
    maps = [
        grad_cam(model, one, "predicted", LAYERS[1], "grad-cam++").maps for one in (images, version)
    ]
    expected = pd.DataFrame(drift(*maps, (28, 28)))
    here = drifts.query("perturbation == 'speckle' and severity == 4 and layer == @LAYERS[1]")
    np.testing.assert_allclose(here[list(MEASURES)], expected, atol=0.02)


def test_a_grid_that_was_cut_goes_on_and_is_the_same(whole, network, tmp_path, monkeypatch):
    written, write = [], saliency_drift.write_table

    def cut(path, table):
        if len(written) == 12:
            raise KeyboardInterrupt
        written.append(path)
        write(path, table)

    monkeypatch.setattr(saliency_drift, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        grid(*network, tmp_path, layers=LAYERS, seed=5)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(kept) == sorted(written)
    monkeypatch.setattr(saliency_drift, "write_table", write)
    resumed = grid(*network, tmp_path, layers=LAYERS, seed=5)
    for first, second in zip(whole, resumed, strict=True):
        pd.testing.assert_frame_equal(first, second, rtol=1e-3, atol=0.02)
    unchanged = [path.stat().st_mtime_ns == time for path, time in kept.items()]
    assert sum(unchanged) >= 11  # the drift of the version that was cut is made again
    again = tmp_path / "again.csv.gz"
    write(again, resumed[1])
    first = again.read_bytes()
    write(again, resumed[1])
    assert again.read_bytes() == first  # no date inside


def test_the_flag_keeps_its_false_alarm_rate_on_others(rng):
    rates = []
    for _ in range(400):
        scores = rng.normal(size=60)
        threshold = flag(scores, np.arange(60) >= 50, 0.1)
        rates.append((rng.normal(size=2000) > threshold).mean())
    assert np.mean(rates) == pytest.approx((50 + 1 - 46) / 51, abs=0.005)  # the 46th of 50
    assert np.mean(rates) <= 0.1
    assert flag(np.arange(5.0), np.zeros(5, bool), 0.05) == np.inf  # too few were seen
    assert flag(np.arange(19.0), np.zeros(19, bool), 0.05) == 18


@pytest.mark.parametrize(
    ("scores", "share", "message"), [([np.nan, 1], 0.1, "1 of 2"), ([0, 1], 1.5, "is 1.5")]
)
def test_the_flag_refuses_what_has_no_answer(scores, share, message):
    with pytest.raises(ValueError, match=message):
        flag(np.array(scores), np.zeros(2, bool), share)
