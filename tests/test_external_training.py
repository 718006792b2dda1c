"""Ways to fine-tune for another collection: what each shows the network, or asks of it."""

from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from covid_lab.external import methods, mitigation, training_methods
from covid_lab.external.bench import Bench, Images, Settings
from covid_lab.external.controls import border_scores
from covid_lab.external.methods import (
    LABELLED,
    NONE,
    REFERENCE,
    UNLABELLED,
    Outcome,
    fit_network,
    linear_exit,
)
from covid_lab.external.styles import mix_boxes
from covid_lab.external.training_methods import TRAINING, _reverse_gradient
from covid_project.models import logits

SIDE = 64
LABELS = np.arange(24) % 2


def noise(count: int, seed: int, *, frame: bool = False) -> Images:
    """Images of noise; those of the positive class are brighter, and framed in white if wanted."""
    labels = np.arange(count) % 2
    pixels = np.random.default_rng(seed).integers(0, 180, (count, SIDE, SIDE))
    pixels += 40 * labels[:, None, None]
    if frame:
        for edge in (slice(6), slice(-6, None)):
            pixels[labels == 1, edge] = pixels[labels == 1, :, edge] = 255
    return Images(np.uint8(pixels), labels, f"{count} {seed} {frame}")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Images of noise, and a network with random weights."""
    keras.utils.set_random_seed(0)
    settings = Settings(image_size=SIDE, weights="random", copies=1, epochs=1)
    sets = noise(24, 1, frame=True), noise(12, 2, frame=True), noise(20, 3)
    return Bench(*sets, settings, tmp_path_factory.mktemp("training"))


@pytest.fixture
def copies(monkeypatch):
    """Collects what a method would train on, instead of training."""
    found = []

    def note(what, bench, seed, copies, **options):
        found.append((copies, options))
        return iter(())

    monkeypatch.setattr(training_methods, "_fine_tuned", note)
    return found


# ---- what the network is shown ------------------------------------------------------------------


def test_mixed_labels_are_the_areas():
    labels = np.arange(50) % 2
    pixels = np.uint8(255) * labels.astype(np.uint8)[:, None, None] * np.ones((1, 40, 40), np.uint8)
    mixed, found = mix_boxes(pixels, labels, np.random.default_rng(0))
    assert np.allclose(mixed.mean((1, 2)) / 255, found)  # black has label 0, white label 1
    assert ((found > 0.02) & (found < 0.98)).mean() > 0.2
    assert np.array_equal(pixels.mean((1, 2)) / 255, labels)  # what is given stays


def test_one_template_gives_all_images_the_same_histogram(bench, copies):
    assert list(TRAINING["one template"](bench, 0)) == []
    ((train,), others) = copies[0]
    levels = np.linspace(0.1, 0.5, 5)  # below the white of the frames, which no matching divides
    wanted = np.quantile(bench.train.pixels, levels)
    for images in (train, others["val"], others["target"]):
        quantiles = np.array([np.quantile(image, levels) for image in images.pixels])
        assert np.abs(quantiles - wanted).max() < 12
    unlike = np.quantile(bench.target.pixels[0], levels) - np.quantile(
        bench.target.pixels[1], levels
    )
    assert np.abs(unlike).max() > 30


def test_a_strange_border_leaves_the_middle(bench, copies):
    list(TRAINING["border of another image"](bench, 0))
    ours, framed = bench.train.pixels, LABELS == 1
    inner = slice(SIDE // 10, -(SIDE // 10))
    for copy in copies[0][0]:
        assert np.array_equal(copy.pixels[:, inner, inner], ours[:, inner, inner])
        white = (copy.pixels[:, 0] == 255).all(axis=1)
        assert white.sum() == framed.sum()  # each border is used once
        assert 0 < white[framed].mean() < 1


def test_a_blanked_border_is_blanked_in_all_images(bench, copies):
    list(TRAINING["input: border blanked"](bench, 0))
    (train,), others = copies[0]
    for images in (train, others["val"], others["target"]):
        assert np.unique(images.pixels[:, : SIDE // 10]).tolist() == [128]


def test_copies_differ_from_each_other_and_have_names_of_their_own(bench, copies):
    for stage in ("cut-mix", "strong augmentation", "drawn styles"):
        list(TRAINING[stage](bench, 0))
    list(TRAINING["cut-mix"](bench, 1))
    found = [copy for made, _ in copies for copy in made]
    assert len({copy.fingerprint for copy in found}) == len(found)
    assert len({copy.pixels.tobytes() for copy in found}) == len(found)
    assert all(len(copy.labels) == len(LABELS) for copy in found)


# ---- the border's prediction --------------------------------------------------------------------


def test_only_a_frame_makes_the_border_predict():
    for frame, low, high in ((True, 0.95, 1.0), (False, 0.0, 0.8)):
        images = noise(80, 5, frame=frame)
        auc = roc_auc_score(images.labels, border_scores(images.pixels, images.labels))
        assert low <= auc <= high


def test_groups_count_the_same(bench, copies, monkeypatch):
    scores = np.where(np.arange(24) < 18, LABELS - 0.5, 0.5 - LABELS)  # the last six mislead
    monkeypatch.setattr(training_methods, "border_scores", lambda *_: scores)
    list(TRAINING["balanced groups"](bench, 0))
    weights = copies[0][1]["weights"]
    for label in (0, 1):
        for misleads in (False, True):
            group = (label == LABELS) & ((np.arange(24) >= 18) == misleads)
            assert weights[group].sum() == pytest.approx(24 / 4)


def test_a_reversed_gradient_has_the_other_sign():
    inputs = tf.constant([[1.0, -2.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        found = _reverse_gradient(inputs, 0.5)
        loss = tf.reduce_sum(found**2)
    assert np.allclose(found, inputs)
    assert np.allclose(tape.gradient(loss, inputs), -0.5 * 2 * inputs)


# ---- training and the other collection's images -------------------------------------------------


def test_weights_of_zero_leave_images_out(bench):
    """Images without weight may have any label."""
    found = []
    for wrong in (False, True):
        keras.utils.set_random_seed(1)
        network = bench.collection_network(lungs_only=False)
        labels = np.where(np.arange(24) < 12, LABELS, 1 - LABELS if wrong else LABELS)
        weights = np.where(np.arange(24) < 12, 1.0, 0.0)
        fit_network(network, bench.settings, 1, bench.maps(bench.train), labels, weights=weights)
        found.append(logits(network, bench.maps(bench.val)))
    assert np.allclose(*found)


def test_adapted_statistics_are_those_of_the_images(bench):
    network = bench.collection_network(lungs_only=False)
    whole = keras.Model(
        bench.parts.images,
        network.get_layer("logit")(keras.layers.GlobalAveragePooling2D()(bench.parts.deep)),
    )
    before = [weight.copy() for weight in whole.get_weights()]
    plain = logits(whole, bench.small(bench.target.pixels))
    found = training_methods._adapted_logits(bench, network, bench.target, 0)
    assert all(map(np.array_equal, before, whole.get_weights()))
    assert not np.allclose(found, plain, atol=1e-3)
    for layer in whole.layers:  # one batch: as a training step would normalise it
        layer.trainable = True
    images = np.float32(bench.small(bench.target.pixels))
    wanted = whole(images, training=True).numpy()[:, 0]
    whole.set_weights(before)
    assert np.allclose(found, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("stage", ["cut-mix", "adversary", "after training", "two sources"])
def test_methods_score_every_image(bench, stage):
    found = list(TRAINING[stage](bench, 0))
    assert len({(one.method, one.uses) for one in found}) == len(found)
    for one in found:
        assert (len(one.own), len(one.target)) == (12, 20)
        assert np.isfinite(one.own).all()
        assert np.isfinite(one.target).all()
    uses = {one.uses for one in found}
    assert (
        uses
        == {
            "cut-mix": {NONE, UNLABELLED},
            "adversary": {NONE, UNLABELLED},
            "after training": {UNLABELLED, LABELLED},
            "two sources": {LABELLED},
        }[stage]
    )


def test_the_last_layer_answers_for_the_images_that_it_was_not_retrained_on(bench):
    collection = [np.linspace(-1, 1, 12), np.linspace(1, -1, 20)]
    outcomes = {one.method: one for one in methods._labelled_outcomes(bench, 0, collection)}
    found = outcomes["last layer retrained"]
    copies, val, target = methods.lung_features(bench, 0)
    copies = [copy[:, : target.shape[1]] for copy in bench.copies(bench.target, 0)]
    own = np.zeros(12)
    for learned, held in methods.labelled_folds(bench.target.labels, 0):
        assert not set(held) & set(learned)
        part = [copy[learned] for copy in copies]
        kernel, bias, _ = linear_exit(part, bench.target.labels[learned], bench.settings.strength)
        for image in held:
            expected = sum(k * x for k, x in zip(kernel, target[image], strict=True)) + bias
            assert found.target[image] == pytest.approx(expected, rel=1e-4)
        own += [np.dot(image, kernel) + bias for image in val]
    np.testing.assert_allclose(found.own, own / methods.FOLDS, rtol=1e-4)


# ---- seeds --------------------------------------------------------------------------------------


def outcome(method: str, signal: float, bench, seed: int):
    """Scores of a method, as good as the signal is strong."""
    rng = np.random.default_rng(seed)
    own, target = (
        rng.normal(size=len(images.labels)) + signal * images.labels
        for images in (bench.val, bench.target)
    )
    yield Outcome(method, NONE, own, target)


def test_only_methods_close_to_the_best_get_all_seeds(tmp_path, monkeypatch):
    images = SimpleNamespace(labels=np.arange(200) % 2, fingerprint="images")
    bench = SimpleNamespace(
        train=images, val=images, target=images, parts=SimpleNamespace(frozen="weights"),
        settings=Settings(),
    )  # fmt: skip
    methods = {"close": partial(outcome, "close", 2.1), "far": partial(outcome, "far", 0.5)}
    for name in ("input_outcomes", "template_outcomes"):
        monkeypatch.setattr(mitigation, name, lambda bench: outcome("frozen", 0.1, bench, 0))
    monkeypatch.setattr(mitigation, "exit_outcomes", partial(outcome, REFERENCE, 2.0))
    monkeypatch.setattr(mitigation, "TRAINING", methods)
    for _ in range(2):  # nothing is done twice
        table = mitigation.compare(bench, tmp_path)
        counts = table.groupby("method").size().to_dict()
        assert counts == {"frozen": 2, REFERENCE: 3, "close": 3, "far": 1}


def test_what_is_close_depends_on_the_use_of_images(monkeypatch):
    monkeypatch.setattr(mitigation, "TRAINING", dict.fromkeys(("a", "b")))
    rows = [
        ("exits", NONE, 0.70, 0.65),
        ("exits", LABELLED, 0.90, 0.88),
        ("a", NONE, 0.66, 0.60),
        ("b", LABELLED, 0.87, 0.85),
    ]
    table = pd.DataFrame(rows, columns=["stage", "target_images", "AUC", "AUC_low"])
    assert mitigation._close_to_best(table) == ["a"]
