import numpy as np
import pytest

from covid_lab.explain.heatmaps import Heatmaps, normalize_heatmaps, on_one_scale

RAW = np.array([[[1.0, -4.0], [2.0, 0.0]], [[8.0, 4.0], [0.0, 2.0]], [[-1.0, 0], [0, -2]]])


def test_each_map_is_scaled_by_its_own_maximum():
    np.testing.assert_allclose(
        normalize_heatmaps(RAW), [[[0.5, 0], [1, 0]], [[1, 0.5], [0, 0.25]], [[0, 0], [0, 0]]]
    )


def test_on_one_scale_all_maps_are_divided_by_the_largest_evidence():
    found = Heatmaps.from_raw("layer", RAW, np.zeros(3), np.zeros(3), {})
    np.testing.assert_array_equal(found.strength, [2, 8, 0])
    np.testing.assert_allclose(
        on_one_scale(found.maps, found.strength),
        [[[0.125, 0], [0.25, 0]], [[1, 0.5], [0, 0.25]], [[0, 0], [0, 0]]],
    )
    assert not on_one_scale(found.maps[2:], found.strength[2:]).any()


def test_the_strength_of_maps_of_magnitudes_is_the_magnitude():
    raw = np.array([[[-4.0, 2.0]]])
    found = Heatmaps.from_raw("pixels", raw, np.zeros(1), np.zeros(1), {}, evidence=np.abs(raw))
    np.testing.assert_array_equal(found.strength, [4])


def test_a_blank_map_is_given_the_first_reason_that_holds():
    raw = np.array([[[1.0, -2.0]], [[0, 0]], [[0, 0]], [[-1, -2]], [[0, 0]]], np.float32)
    reasons = {
        "zero features": np.array([True, True, False, False, False]),
        "zero gradient": np.array([True, True, True, False, False]),
    }
    found = Heatmaps.from_raw("layer", raw, np.zeros(5), np.zeros(5), reasons)
    blank = ["zero features", "zero gradient", "all negative", "all negative"]
    assert found.status.tolist() == ["ok", *blank]
    np.testing.assert_array_equal(found.maps.any(axis=(1, 2)), found.status == "ok")


def test_maps_show_other_evidence_where_it_is_given():
    raw = np.array([[[-4.0, 2.0]]])
    found = Heatmaps.from_raw("pixels", raw, np.zeros(1), np.zeros(1), {}, evidence=np.abs(raw))
    np.testing.assert_array_equal(found.maps, [[[1, 0.5]]])
    assert found.status.tolist() == ["ok"]


def test_maps_that_are_not_finite_are_refused_by_layer_and_image():
    raw = np.zeros((3, 2, 2))
    raw[2, 0, 1] = np.inf
    with pytest.raises(ValueError, match=r"'relu'.*\[2\]"):
        Heatmaps.from_raw("relu", raw, np.zeros(3), np.zeros(3), {})
