"""What trains the lung segmentation: labels, loss, distortions and files, against counting."""

import json
import zipfile

import numpy as np
import pytest
from image_files import encoded, noise

from covid_lab.lungs import data, network, segmentation, training
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


@pytest.fixture(scope="module")
def chest():
    drawn = draw_radiograph(np.random.default_rng(1), SIDE)
    drawn.image.flags.writeable = drawn.lungs.flags.writeable = False
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
        for y, x in np.ndindex(6, 6)
    ]
    found = p[..., FIELD] if kind == "adult_labels" else 1 - p[..., OUTSIDE]
    dice = (2 * found[mask[0]].sum() + 1) / (found.sum() + mask.sum() + 1)
    expected = np.mean(entropy) + (1 - dice) / 2
    assert training.marginal_loss(labels, logits).numpy() == pytest.approx([expected], rel=1e-4)


def test_distorted_examples_follow_from_the_seed_and_keep_their_labels_sets(chest):
    image, mask = chest
    (labels,) = data.adult_labels(mask[None])
    kept = 0
    for seed in range(20):
        first = distort(image, labels, np.random.default_rng(seed))
        again = distort(image, labels, np.random.default_rng(seed))
        for one, other in zip(first, again, strict=True):
            assert (one.dtype, one.shape) == (np.uint8, (SIDE, SIDE))
            np.testing.assert_array_equal(one, other)
        assert set(np.unique(first[1])) <= set(np.unique(labels))
        kept += (first[1] == 1 << FIELD).mean() / mask.mean()
    assert 0.6 < kept / 20 < 1.2


def test_opacities_brighten_the_lungs_and_hardly_anything_far_from_them(chest):
    image, mask = chest
    grey = image.astype(np.float32) / 255
    far = np.zeros_like(mask)
    far[:, :6] = far[:, -6:] = far[:4] = True
    change = np.mean(
        [add_opacities(grey, mask, np.random.default_rng(seed)) - grey for seed in range(20)],
        axis=0,
    )
    assert change[mask].mean() > 0.03
    assert np.abs(change[far & ~mask]).max() < 0.02
    np.testing.assert_array_equal(add_opacities(grey, np.zeros_like(mask), None), grey)


def test_half_precision_costs_little_and_brightness_and_contrast_nothing(tmp_path, rng):
    moved = build_network()
    weights = [np.abs(rng.normal(w, 0.02)) if w.ndim == 1 else w for w in moved.get_weights()]
    moved.set_weights(weights)
    path = tmp_path / "some.weights.h5"
    write_weights(moved, path)
    images = rng.integers(40, 100, (2, SIDE, SIDE), np.uint8)
    probabilities = compile_probabilities(moved)
    exact = probabilities(images)
    np.testing.assert_allclose(exact.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(compile_probabilities(load_network(path))(images), exact, atol=0.02)
    assert path.stat().st_size < 2.1 * moved.count_params() + 40_000
    np.testing.assert_allclose(probabilities(2 * images + 10), exact, atol=1e-3)


def test_a_step_of_each_stage_moves_the_network(chest, monkeypatch):
    monkeypatch.setattr(training, "BATCH", 2)
    monkeypatch.setattr(network, "WIDTHS", (4, 6))
    image, mask = (part[None] for part in chest)
    sources = dict.fromkeys(training.FRACTIONS[1], (image, data.adult_labels(mask)))
    trained = training.train(sources, steps=(1, 1))
    for weight, other in zip(trained.weights, build_network().weights, strict=True):
        if weight.name == "gamma":  # of BatchNormalization: 1 at first
            assert np.abs(weight.numpy() - other.numpy()).max() > 1e-5


def test_the_record_is_that_of_the_code_that_trained_the_shipped_network():
    record = json.loads(segmentation.RECORD.read_text("utf-8"))
    assert record["side"] == SIDE
    assert record["widths"] == list(WIDTHS)
    for name in ("seed", "batch", "learning_rate", "weight_decay"):
        assert record[name] == getattr(training, name.upper())
    assert record["steps"] == list(training.STEPS)
    assert record["fractions"] == list(training.FRACTIONS)
    assert set(record["data"]) == set(data.ARCHIVES)
    assert record["images"]["phantoms"] == data.PHANTOMS
    assert record["parameters"] == load_network(segmentation.WEIGHTS).count_params()
    assert record["bytes"] == segmentation.WEIGHTS.stat().st_size < 2 * 10**6
    assert record["half_precision"]["dice"] < 0.005


def test_unsafe_masks_of_children_are_left_out_and_no_patient_is_in_both_parts(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(data, "PHANTOMS", 4)
    monkeypatch.setattr(data, "NO_CHEST", 8)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    rows = {f"train/NORMAL/IM-{k // 2:04}-000{k % 2}": 1.5 for k in range(20)}
    rows |= {
        "train/PNEUMONIA/person7_virus_1": 0.9,  # unsafe
        "train/PNEUMONIA/person7_virus_2": 1.1,
        "test/NORMAL/NORMAL2-IM-0374-0001-0001": 0.5,
    }
    with (
        zipfile.ZipFile(tmp_path / "lung_masks.zip", "w") as adults,
        zipfile.ZipFile(tmp_path / "chest_xray.zip", "w") as images,
        zipfile.ZipFile(tmp_path / "chest_xray_lung_masks.zip", "w") as masks,
    ):
        for name in "cbdaef":
            adults.writestr(f"lung_masks/jsrt/images/{name}.png", encoded(noise(ord(name), 20, 20)))
            adults.writestr(f"lung_masks/jsrt/masks/{name}.png", encoded(mask))
        table = ["image,mask,margin"]
        for number, (name, margin) in enumerate(rows.items()):
            # Both images of a patient are the same here, so that a leak shows.
            images.writestr(f"chest_xray/{name}.jpeg", encoded(noise(number // 2, 20, 20)))
            masks.writestr(f"chest_xray_lung_masks/masks/{name}.png", encoded(mask))
            table.append(f"chest_xray/{name}.jpeg,masks/{name}.png,{margin}")
        masks.writestr("chest_xray_lung_masks/masks.csv", "\n".join(table))
    sources, validation = data.read_all(tmp_path, seed=1)
    for learned, sets, count in (
        ("adults", ["JSRT"], 6),
        ("children", ["children, NORMAL", "children, PNEUMONIA"], 22),  # without the unsafe one
    ):
        kept = np.concatenate([validation[name][0].images for name in sets])
        assert len(kept) + len(sources[learned][0]) == count
        assert len(kept) > 0
        assert not {image.tobytes() for image in kept} & {x.tobytes() for x in sources[learned][0]}
    healthy = validation["children, NORMAL"][0].patients
    assert all(patient.startswith(("IM-", "NORMAL2-IM-")) for patient in healthy)
    images, _ = sources["no chest"]
    deviations = images.std(axis=(1, 2))
    assert (deviations[3::4] == 0).all()
    assert (np.delete(deviations, [3, 7]) > 5).all()
