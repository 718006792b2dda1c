"""Drawn CT slices: what is said of them is true of their pixels."""

import numpy as np
import pandas as pd
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from covid_lab.studies.ct_phantoms import SHARES, draw_slice, graded, write_dataset
from covid_lab.studies.nrrd_slices import load_masks, load_slices, open_slices
from covid_project.data import DataError


def drawn(number, nodule=None, **how):
    rng = np.random.default_rng([2, number if nodule is None else nodule])
    return draw_slice(np.random.default_rng([1, number]), rng, **how)


def test_same_seed_same_slice_and_the_patient_stays_with_another_nodule():
    first, again, other = drawn(3, size=128), drawn(3, size=128), drawn(3, 9, size=128)
    np.testing.assert_array_equal(first.hounsfield, again.hounsfield)
    np.testing.assert_array_equal(first.lungs, other.lungs)
    assert not np.array_equal(first.nodule, other.nodule)


@pytest.mark.parametrize("grade", [1, 2, 3, 4, 5])
def test_values_are_hounsfield_units_of_what_the_masks_say(grade):
    for pleural in (False, True):
        one = drawn(grade, malignancy=grade, size=256, pleural=pleural)
        assert one.hounsfield.dtype == np.int16
        values = one.hounsfield.astype(float)
        around = ndimage.binary_dilation(one.nodule, iterations=4)
        deep = ndimage.binary_erosion(one.lungs & ~around, iterations=3)
        assert -920 < np.median(values[deep]) < -780
        assert np.median(values[:10]) < -950  # air round the body
        assert values.max() > 250  # bone
        assert one.nodule.any()
        assert not (one.nodule & ~one.lungs).any()
        core = ndimage.binary_erosion(one.nodule)
        if core.any():
            assert np.median(values[core]) > np.median(values[deep]) + 150
        on_edge = (ndimage.binary_dilation(one.nodule) & ~one.lungs).any()
        assert on_edge == pleural
        assert one.nodule[one.view].sum() > 0.9 * one.nodule.sum()
        assert all(22 <= side <= 62 for side in one.nodule[one.view].shape)  # half of 44 to 124


def test_touching_lungs_are_parted_by_a_thin_wall_only():
    lungs = drawn(0, touching=True).lungs
    assert ndimage.label(lungs)[1] == 2
    assert ndimage.label(ndimage.binary_dilation(lungs, iterations=2))[1] == 1


def test_shares_are_those_of_the_published_class_weights():
    counts = np.bincount(graded(2363))[1:]
    weights = [1.929, 1.053, 0.426, 1.149, 3.176]
    np.testing.assert_allclose(2363 / (5 * counts), weights, rtol=0.01)
    assert sum(SHARES) == pytest.approx(1)
    assert np.bincount(graded(25))[1:].tolist() == [5] * 5
    for wrong, said in (
        (lambda: graded(24), "allowed: 25"),
        (lambda: drawn(0, size=64), "size is 64"),
        (lambda: drawn(0, malignancy=6), "6"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_a_written_set_opens_as_a_real_folder_does(tmp_path):
    folder = write_dataset(tmp_path / "drawn", 25, 2, 128, seed=4)
    dataset = open_slices(folder)
    assert dataset.is_phantom
    assert dataset.table.groupby("group").size().tolist() == [2] * 12 + [1]
    labels = pd.read_csv(folder / "labels.csv").set_index("name").loc[dataset.table["name"]]
    np.testing.assert_array_equal(labels["malignancy"] - 1, dataset.table["label"])
    full, nodule = load_slices(dataset, "full"), load_slices(dataset, "nodule")
    window = sliding_window_view(full[7].values, nodule[7].values.shape)
    assert (window == nodule[7].values).all(axis=(2, 3)).sum() == 1  # cut from the full view
    assert full[7].spacing == nodule[7].spacing
    assert 2.4 < full[7].spacing[0] < 3.2  # mm, at 128 pixels
    for view, images in (("full", full), ("nodule", nodule), ("lungs", full)):
        masks = load_masks(dataset, view)
        assert [mask.shape for mask in masks] == [image.values.shape for image in images]
        assert all(mask.any() for mask in masks)
    assert write_dataset(folder, 25, 2, 128, seed=4) == folder  # the same again
    again = write_dataset(tmp_path / "again", 25, 2, 128, seed=4)
    assert open_slices(again).fingerprint == dataset.fingerprint
    with pytest.raises(DataError, match="something else"):
        write_dataset(folder, 26, 2, 128, seed=4)


def test_simpleitk_reads_what_is_written(tmp_path):
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK, an independent peer, is missing")
    dataset = open_slices(write_dataset(tmp_path / "drawn", 25, 5, 128, seed=4))
    (first, *_), (mask, *_) = load_slices(dataset, "full"), load_masks(dataset, "full")
    for file, values in ((dataset.table["full"][0], first.values),
                         (f"masks/{dataset.table['full'][0]}", mask)):  # fmt: skip
        found = itk.ReadImage(str(dataset.root / file))
        np.testing.assert_array_equal(itk.GetArrayFromImage(found), values)
        assert found.GetSpacing() == pytest.approx(first.spacing)
