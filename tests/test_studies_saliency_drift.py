"""Drift of saliency maps: its measures, the grid that goes on after a cut, the flag."""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import center_of_mass
from scipy.stats import spearmanr

from covid_lab.explain.gradcam import grad_cam
from covid_lab.models import resnet18
from covid_lab.studies import saliency_drift
from covid_lab.studies.perturbations import PERTURBATIONS, SEVERITIES, perturbed
from covid_lab.studies.saliency_drift import MEASURES, as_grey_levels, drift, flag, grid
from covid_project.files import read_csv
from covid_project.normalization import normalization_layer
from covid_project.training import set_seed

LAYERS = ("block1_1", "block4_2")


@pytest.fixture
def maps(rng):
    return rng.random((4, 7, 7), np.float32)


def test_maps_are_made_8_bit_at_the_size_of_the_image(maps):
    maps[0] = np.eye(7)
    found = as_grey_levels(maps, (7, 7))
    np.testing.assert_array_equal(found[0], 255 * np.eye(7))
    assert found.dtype == np.uint8
    assert as_grey_levels(maps, (28, 20)).shape == (4, 28, 20)


def test_equal_maps_have_not_drifted(maps):
    found = drift(maps, maps, (28, 28))
    assert tuple(found) == MEASURES
    np.testing.assert_array_equal(found["rmse"], 0)
    np.testing.assert_array_equal(found["centroid_shift"], 0)
    np.testing.assert_allclose(found["ssim"], 1, atol=1e-6)
    np.testing.assert_allclose(found["spearman"], 1)


def test_rmse_of_scaled_maps_is_the_closed_form_and_their_place_the_same():
    before = np.ones((1, 14, 14), np.float32)
    found = drift(before, before * 0.2, (28, 28))
    assert found["rmse"][0] == pytest.approx(255 - 51)
    assert found["centroid_shift"][0] == 0


def test_the_centroid_moves_as_far_as_the_spot():
    before, after = np.zeros((2, 1, 28, 28), np.float32)
    before[0, 10:13, 5:8] = 1
    after[0, 13:16, 9:12] = 1
    assert drift(before, after, (28, 28))["centroid_shift"][0] == pytest.approx(5)  # 3, 4, 5


def test_the_measures_are_those_of_scipy(rng):
    before, after = rng.random((2, 3, 64, 64), np.float32)
    found = drift(before, after, (64, 64))
    for number in range(3):
        pair = [255 * maps[number].astype(np.float64) for maps in (before, after)]
        assert found["rmse"][number] == pytest.approx(
            np.sqrt(np.mean((pair[0] - pair[1]) ** 2)), abs=0.1
        )
        correlation = spearmanr(pair[0].ravel(), pair[1].ravel()).statistic
        assert found["spearman"][number] == pytest.approx(correlation)
        levels = [np.rint(one) for one in pair]
        shift = np.subtract(center_of_mass(levels[0]), center_of_mass(levels[1]))
        assert found["centroid_shift"][number] == pytest.approx(np.hypot(*shift))


def test_a_blank_map_has_no_place(maps):
    found = drift(maps, np.zeros_like(maps), (28, 28))
    assert np.isnan(found["centroid_shift"]).all()
    assert np.isnan(found["ssim"]).all()
    assert np.isfinite(found["rmse"]).all()


@pytest.fixture(scope="module")
def network():
    set_seed(3)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    return resnet18(28, normalization_layer("fixed", images), classes=3), images


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    return folder, *grid(*network, folder, layers=LAYERS, seed=5)


def test_the_grid_has_every_row_once(whole):
    _, scores, drifts = whole
    assert len(scores) == 3 * 26
    assert not scores.duplicated(["image", "perturbation", "severity"]).any()
    assert len(drifts) == 3 * 25 * len(LAYERS)
    assert not drifts.duplicated(["image", "perturbation", "severity", "layer"]).any()
    assert set(drifts["perturbation"]) == set(PERTURBATIONS)
    assert set(drifts["severity"]) == set(SEVERITIES)


def test_a_row_of_the_grid_is_what_one_image_gives_by_itself(whole, network):
    model, images = network
    _, scores, drifts = whole
    version = perturbed(images, "speckle", 4, (5, PERTURBATIONS.index("speckle"), 4))
    rows = scores[(scores["perturbation"] == "speckle") & (scores["severity"] == 4)]
    logits = model(version.astype(np.float32), training=False).numpy()
    np.testing.assert_allclose(rows.filter(like="logit_"), logits, rtol=1e-4, atol=1e-4)
    for layer in LAYERS:
        maps = [
            grad_cam(model, one, "predicted", layer, "grad-cam++").maps for one in (images, version)
        ]
        expected = drift(*maps, (28, 28))
        here = drifts[
            (drifts["perturbation"] == "speckle")
            & (drifts["severity"] == 4)
            & (drifts["layer"] == layer)
        ]
        for measure in MEASURES:
            np.testing.assert_allclose(here[measure], expected[measure], atol=0.02)


def test_a_grid_that_was_cut_goes_on_and_is_the_same(whole, network, tmp_path, monkeypatch):
    done = 0
    write = saliency_drift.write_table

    def cut(path, table):
        nonlocal done
        done += 1
        if done > 12:
            raise KeyboardInterrupt
        write(path, table)

    monkeypatch.setattr(saliency_drift, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        grid(*network, tmp_path, layers=LAYERS, seed=5)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 12
    monkeypatch.setattr(saliency_drift, "write_table", write)
    scores, drifts = grid(*network, tmp_path, layers=LAYERS, seed=5)
    pd.testing.assert_frame_equal(scores, whole[1], rtol=1e-4, atol=1e-4)
    pd.testing.assert_frame_equal(drifts, whole[2], rtol=1e-3, atol=0.02)
    unchanged = [path.stat().st_mtime_ns == time for path, time in kept.items()]
    assert sum(unchanged) >= 11  # the drift of the version that was cut is made again


def test_the_same_table_is_the_same_file(tmp_path):
    table = pd.DataFrame({"image": [0, 1], "rmse": [0.1, 1 / 3]})
    for name in ("first.csv.gz", "second.csv.gz"):
        saliency_drift.write_table(tmp_path / name, table)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    pd.testing.assert_frame_equal(read_csv(tmp_path / "first.csv.gz"), table)


def test_the_flag_keeps_its_false_alarm_rate_on_others(rng):
    rates = []
    for _ in range(400):
        scores = rng.normal(size=60)
        threshold = flag(scores, np.arange(60) >= 50, 0.1)
        rates.append((rng.normal(size=2000) > threshold).mean())
    assert np.mean(rates) == pytest.approx((50 + 1 - 46) / 51, abs=0.005)  # the 46th of 50
    assert np.mean(rates) <= 0.1


def test_the_flag_never_rises_where_too_few_were_seen():
    assert flag(np.arange(5.0), np.zeros(5, bool), 0.05) == np.inf
    assert flag(np.arange(19.0), np.zeros(19, bool), 0.05) == 18


@pytest.mark.parametrize(
    ("scores", "share", "message"), [([np.nan, 1], 0.1, "1 of 2"), ([0, 1], 1.5, "is 1.5")]
)
def test_the_flag_refuses_what_has_no_answer(scores, share, message):
    with pytest.raises(ValueError, match=message):
        flag(np.array(scores), np.zeros(2, bool), share)
