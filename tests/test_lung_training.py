"""What trains the lung segmentation: labels, loss, distortions and files, against counting."""

import json
import zipfile

import numpy as np
import pytest
from image_files import encoded

from covid_lab.lungs import data, segmentation, training
from covid_lab.lungs.augmentation import add_opacities, distort
from covid_lab.lungs.network import (
    FIELD,
    HEART,
    OUTSIDE,
    SIDE,
    WIDTHS,
    build_network,
    compile_probabilities,
    load_network,
    write_weights,
)
from covid_lab.phantoms import draw_radiograph


@pytest.fixture
def chest():
    drawn = draw_radiograph(np.random.default_rng(1), SIDE)
    return drawn.image, drawn.lungs


def allows(labels, k):
    return labels & (1 << k) > 0


def test_adults_labels_leave_the_heart_open_between_the_lungs_alone(chest):
    _, mask = chest
    (labels,) = data.adult_labels(mask[None])
    for y in range(0, SIDE, 7):
        columns = np.flatnonzero(mask[y])
        for x in range(0, SIDE, 5):
            between = len(columns) > 0 and columns[0] < x < columns[-1] and not mask[y, x]
            found = [allows(labels[y, x], k) for k in (OUTSIDE, HEART, FIELD)]
            assert found == [not mask[y, x], between, mask[y, x]]


def test_childrens_labels_leave_open_which_part_of_the_mask_is_behind_the_heart(chest):
    _, mask = chest
    (labels,) = data.child_labels(mask[None])
    np.testing.assert_array_equal(allows(labels, OUTSIDE), ~mask)
    np.testing.assert_array_equal(allows(labels, HEART), mask)
    np.testing.assert_array_equal(allows(labels, FIELD), mask)


def test_another_network_decides_open_labels_alone_and_only_where_it_is_sure(chest, rng):
    labels = data.adult_labels(chest[1][None])
    lung = rng.random(labels.shape)
    decided = data.decide_heart(labels, lung)
    is_open = labels == 1 << OUTSIDE | 1 << HEART
    np.testing.assert_array_equal(decided[~is_open], labels[~is_open])
    np.testing.assert_array_equal(decided[is_open] == 1 << HEART, lung[is_open] > 0.8)
    np.testing.assert_array_equal(decided[is_open] == 1 << OUTSIDE, lung[is_open] < 0.2)


@pytest.mark.parametrize("kind", ["adult_labels", "child_labels"])
def test_the_loss_is_that_of_the_marginal_probabilities(kind, rng):
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 1:4, [1, 2, 4]] = True
    labels = getattr(data, kind)(mask)
    logits = rng.normal(size=(1, 6, 6, 3)).astype(np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=-1, keepdims=True)
    entropy = [
        -np.log(sum(p[y, x, k] for k in range(3) if allows(labels[0, y, x], k)))
        for y in range(6)
        for x in range(6)
    ]
    found = p[..., FIELD] if kind == "adult_labels" else 1 - p[..., OUTSIDE]
    dice = (2 * found[mask[0]].sum() + 1) / (found.sum() + mask.sum() + 1)
    expected = np.mean(entropy) + (1 - dice) / 2
    assert training.marginal_loss(labels, logits).numpy() == pytest.approx([expected], rel=1e-4)


def test_an_image_without_a_chest_costs_nothing_once_it_is_all_outside():
    labels = np.full((1, 4, 4), 1 << OUTSIDE, np.uint8)
    logits = np.tile(np.float32([30, 0, 0]), (1, 4, 4, 1))
    assert training.marginal_loss(labels, logits).numpy() == pytest.approx([0], abs=1e-5)


def test_distorted_examples_follow_from_the_seed_and_keep_their_labels_sets(chest):
    image, mask = chest
    (labels,) = data.adult_labels(mask[None])
    kept = 0
    for seed in range(40):
        first = distort(image, labels, np.random.default_rng(seed))
        again = distort(image, labels, np.random.default_rng(seed))
        for one, other in zip(first, again, strict=True):
            assert (one.dtype, one.shape) == (np.uint8, (SIDE, SIDE))
            np.testing.assert_array_equal(one, other)
        assert set(np.unique(first[1])) <= set(np.unique(labels))
        kept += (first[1] == 1 << FIELD).mean() / mask.mean()
    assert 0.6 < kept / 40 < 1.2
    np.testing.assert_array_equal(image, chest[0])  # not changed in place


def test_opacities_brighten_the_lungs_and_hardly_anything_far_from_them(chest):
    image, mask = chest
    grey = image.astype(np.float32) / 255
    far = np.zeros_like(mask)
    far[:, :6] = far[:, -6:] = far[:4] = True
    change = np.mean(
        [add_opacities(grey, mask, np.random.default_rng(seed)) - grey for seed in range(30)],
        axis=0,
    )
    assert change[mask].mean() > 0.03
    assert np.abs(change[far & ~mask]).max() < 0.02
    np.testing.assert_array_equal(add_opacities(grey, np.zeros_like(mask), None), grey)


def test_half_precision_and_the_file_lose_nothing_that_counts(tmp_path, rng):
    network = build_network()
    moved = [np.abs(rng.normal(w, 0.02)) if w.ndim == 1 else w for w in network.get_weights()]
    network.set_weights(moved)
    path = tmp_path / "some.weights.h5"
    write_weights(network, path)
    images = rng.integers(0, 256, (3, SIDE, SIDE), np.uint8)
    exact = compile_probabilities(network)(images)
    stored = compile_probabilities(load_network(path))(images)
    np.testing.assert_allclose(exact.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(stored, exact, atol=0.02)
    assert path.stat().st_size < 2.1 * network.count_params() + 40_000


def test_the_network_ignores_brightness_and_contrast(rng):
    probabilities = compile_probabilities(build_network())
    image = rng.integers(40, 100, (1, SIDE, SIDE), np.uint8)
    np.testing.assert_allclose(probabilities(2 * image + 10), probabilities(image), atol=1e-4)


def test_a_step_of_training_moves_the_network(chest):
    image, mask = (part[None] for part in chest)
    sources = dict.fromkeys(training.FRACTIONS[1], (image, data.adult_labels(mask)))
    network = training.train(sources, steps=(2, 2))
    fresh = build_network()
    assert network.count_params() == fresh.count_params()
    assert all(np.isfinite(weight).all() for weight in network.get_weights())


def test_the_record_states_the_settings_of_this_script():
    record = json.loads(segmentation.RECORD.read_text("utf-8"))
    assert record["side"] == SIDE
    assert record["widths"] == list(WIDTHS)
    assert record["seed"] == training.SEED
    assert record["batch"] == training.BATCH
    assert record["steps"] == list(training.STEPS)
    assert record["fractions"] == list(training.FRACTIONS)
    assert record["learning_rate"] == training.LEARNING_RATE
    assert record["weight_decay"] == training.WEIGHT_DECAY
    assert set(record["data"]) == set(data.ARCHIVES)
    assert record["images"]["phantoms"] == data.PHANTOMS
    assert record["parameters"] == load_network(segmentation.WEIGHTS).count_params()


def test_no_patient_is_in_training_and_validation():
    patients = np.repeat([f"person{k}" for k in range(50)], np.arange(50) % 4 + 1)
    learned, kept = data.split_patients(patients, 0.1, 5)
    assert not set(patients[learned]) & set(patients[kept])
    assert sorted([*learned, *kept]) == list(range(len(patients)))
    assert len(set(patients[kept])) == 5


def test_pairs_and_children_are_read_by_name_and_unsafe_masks_left_out(tmp_path, rng):
    image = rng.integers(0, 256, (20, 20), np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as file:
        for name in "ba":
            file.writestr(f"set/images/{name}.png", encoded(image))
            file.writestr(f"set/masks/{name}.png", encoded(mask))
    found = data.read_pairs(tmp_path / "pairs.zip", "set", 20)
    assert found.patients.tolist() == ["a", "b"]
    np.testing.assert_array_equal(found.masks[1], mask > 0)
    np.testing.assert_array_equal(found.images[0], image)

    rows = {
        "train/NORMAL/IM-0115-0001": 1.5,
        "train/PNEUMONIA/person7_virus_1": 0.9,  # unsafe
        "train/PNEUMONIA/person7_virus_2": 1.1,
        "test/NORMAL/NORMAL2-IM-0374-0001-0001": 0.5,
    }
    with (
        zipfile.ZipFile(tmp_path / "chest_xray.zip", "w") as images,
        zipfile.ZipFile(tmp_path / "chest_xray_lung_masks.zip", "w") as masks,
    ):
        table = ["image,mask,margin"]
        for name, margin in rows.items():
            images.writestr(f"chest_xray/{name}.jpeg", encoded(image))
            masks.writestr(f"chest_xray_lung_masks/masks/{name}.png", encoded(mask))
            table.append(f"chest_xray/{name}.jpeg,masks/{name}.png,{margin}")
        masks.writestr("chest_xray_lung_masks/masks.csv", "\n".join(table))
    found, pneumonia = data.read_children(tmp_path, 20)
    assert found.patients.tolist() == ["NORMAL2-IM-0374", "IM-0115", "person7"]
    assert pneumonia.tolist() == [False, False, True]
    assert training.measure_test(tmp_path) == {}


def test_drawn_images_without_a_chest_are_of_four_kinds():
    images = data.draw_no_chests(8, seed=3)
    assert (images.shape, images.dtype) == ((8, SIDE, SIDE), np.uint8)
    deviations = images.std(axis=(1, 2))
    assert (deviations[3::4] == 0).all()
    assert (np.delete(deviations, [3, 7]) > 5).all()


def test_dice_is_counted_per_image():
    found, true = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    found[0, :2], true[0, 1:3] = True, True
    found[1, 0] = True
    assert training.dice(found, true).tolist() == [0.5, 0, 1]


def test_the_interval_of_a_mean_is_that_of_the_normal_law_for_many_images(rng):
    values = rng.normal(0.9, 0.05, 400)
    found = training.mean_dice(values)
    assert found["n"] == 400
    half = 1.96 * values.std(ddof=1) / 20
    assert found["low"] == pytest.approx(values.mean() - half, abs=6e-4)
    assert found["high"] == pytest.approx(values.mean() + half, abs=6e-4)
    assert found["lowest"] == pytest.approx(values.min(), abs=1e-4)
