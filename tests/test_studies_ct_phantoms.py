"""Drawn CT slices: what is said of them is true of their pixels."""

import numpy as np
import pandas as pd
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from covid_lab.studies.ct_phantoms import (
    GRADES,
    SHARES,
    draw_slice,
    graded,
    write_dataset,
    write_slice,
)
from covid_lab.studies.nrrd_slices import load_masks, load_slices, open_slices
from covid_project.data import DataError


def drawn(number, **how):
    return draw_slice(np.random.default_rng([1, number]), np.random.default_rng([2, number]), **how)


def test_same_seed_same_slice_and_the_patient_stays_with_another_nodule():
    first, again = drawn(3, size=128), drawn(3, size=128)
    np.testing.assert_array_equal(first.hounsfield, again.hounsfield)
    other = draw_slice(np.random.default_rng([1, 3]), np.random.default_rng(9), size=128)
    np.testing.assert_array_equal(first.lungs, other.lungs)
    assert not np.array_equal(first.nodule, other.nodule)


@pytest.mark.parametrize("grade", GRADES)
def test_values_are_hounsfield_units_of_what_the_masks_say(grade):
    one = drawn(grade, malignancy=grade)
    values = one.hounsfield.astype(float)
    assert values.dtype == float
    assert one.hounsfield.dtype == np.int16
    assert one.hounsfield.shape == (512, 512)
    deep = ndimage.binary_erosion(one.lungs & ~ndimage.binary_dilation(one.nodule, iterations=4),
                                  iterations=3)  # fmt: skip
    assert -920 < np.median(values[deep]) < -780
    assert np.median(values[:20]) < -950  # air round the body
    assert values.max() > 250  # bone
    assert one.nodule.any()
    assert not (one.nodule & ~one.lungs).any()
    core = ndimage.binary_erosion(one.nodule)
    if core.any():
        assert np.median(values[core]) > np.median(values[deep]) + 150


def test_the_view_holds_the_nodule_and_is_of_the_published_sizes():
    for number in range(12):
        one = drawn(number, malignancy=1 + number % 5)
        rows, columns = one.view
        assert one.nodule[rows, columns].sum() > 0.9 * one.nodule.sum()
        for side in one.nodule[rows, columns].shape:
            assert 44 <= side <= 124


def test_touching_lungs_are_parted_by_a_thin_wall_only():
    one = drawn(0, touching=True)
    _, count = ndimage.label(one.lungs)
    assert count == 2
    _, joined = ndimage.label(ndimage.binary_dilation(one.lungs, iterations=2))
    assert joined == 1


def test_pleural_nodules_lie_on_the_lungs_edge_and_others_do_not():
    for number in range(8):
        on, off = (drawn(number, malignancy=4, pleural=p) for p in (True, False))
        assert (ndimage.binary_dilation(on.nodule) & ~on.lungs).any()
        assert not (ndimage.binary_dilation(off.nodule) & ~off.lungs).any()


def test_shares_are_those_of_the_published_class_weights():
    labels = graded(2363)
    counts = np.bincount(labels)[1:]
    np.testing.assert_allclose(
        len(labels) / (5 * counts), [1.929, 1.053, 0.426, 1.149, 3.176], rtol=0.01
    )
    assert sum(SHARES) == pytest.approx(1)
    assert np.bincount(graded(25))[1:].tolist() == [5] * 5
    with pytest.raises(ValueError, match="allowed: 25"):
        graded(24)


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


def test_simpleitk_reads_what_is_written(tmp_path, rng):
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK, an independent peer, is missing")
    for values in (
        rng.integers(-1024, 3071, (6, 9)).astype(np.int16),
        rng.integers(0, 2, (6, 9), dtype=np.uint8),
    ):
        write_slice(tmp_path / "a.nrrd", values, 0.6875)
        found = itk.ReadImage(str(tmp_path / "a.nrrd"))
        np.testing.assert_array_equal(itk.GetArrayFromImage(found), values)
        assert found.GetSpacing() == (0.6875, 0.6875)


@pytest.mark.parametrize(("how", "said"), [({"size": 64}, "size is 64"), ({"malignancy": 6}, "6")])
def test_out_of_range_is_refused(how, said):
    with pytest.raises(ValueError, match=said):
        drawn(0, **how)
