import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from covid_project.augmentation import NONE, augment
from covid_project.models import baseline_cnn, model_fingerprint
from covid_project.normalization import normalization_layer
from covid_project.pipeline import evaluation_batches, feature_batches, training_batches
from covid_project.settings import Augmentation
from covid_project.training import (
    PLATEAU_FACTOR,
    best_epoch,
    class_weights,
    copied_features,
    cosine_schedule,
    fine_tune,
    fit,
    logits,
    outputs,
    set_seed,
)

SOME = Augmentation(flip=True, rotation=5, zoom=0.1, shift=0.1, brightness=0.1, contrast=0.1)


@pytest.fixture(scope="module")
def data():
    """Bright discs for label 1, dark ones for 0, in noise: (images, labels) for train and val."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 15.5
    disc = (x**2 + y**2 < 64)[..., None]

    def draw(count):
        labels = np.arange(count) % 2
        images = 128 + rng.normal(0, 30, (count, 32, 32, 1))
        images += 40 * disc * (2 * labels - 1)[:, None, None, None]
        return np.clip(images, 0, 255).astype(np.uint8), labels

    return draw(64), draw(32)


def new_model(seed=0):
    set_seed(seed)
    return baseline_cnn(
        32, normalization_layer("fixed", np.zeros((1, 1, 1, 1))), filters=4, dropout=0.2
    )


def train(data, **how):
    model = new_model()
    batches = training_batches(*data[0], 16, SOME, seed=1)
    arguments = {"learning_rate": 0.01, "epochs": 6, "validation": evaluation_batches(*data[1])}
    return model, fit(model, batches, **(arguments | how))


def test_two_runs_from_one_seed_are_equal_bit_by_bit(data):
    (first, history), (second, again) = train(data), train(data)
    assert model_fingerprint(first) == model_fingerprint(second)
    assert history["val_loss"].tolist() == again["val_loss"].tolist()


def test_it_learns_what_can_be_learned(data):
    model, history = train(data)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert ((logits(model, data[1][0]) > 0) == data[1][1]).mean() > 0.9


def test_early_stopping_leaves_the_weights_of_the_best_epoch(data):
    model, history = train(data, epochs=8, patience=8, learning_rate=0.03)
    z = logits(model, data[1][0]).astype(np.float64)
    y = data[1][1]
    loss = np.mean(np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y))
    assert loss == pytest.approx(history["val_loss"].min(), rel=1e-4)
    assert history["val_loss"].iloc[best_epoch(history) - 1] == history["val_loss"].min()


def test_a_refit_takes_the_same_steps_as_the_training_it_repeats(data):
    _, long = train(data, epochs=6)
    _, short = train(data, epochs=4, schedule_epochs=6)
    assert short["loss"].tolist() == long["loss"].tolist()[:4]


def test_history_has_a_row_per_epoch(data):
    _, history = train(data, epochs=3, validation=None)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert {"loss", "accuracy", "auc", "learning_rate", "seconds"} == set(history) - {"epoch"}


def test_nothing_of_a_training_is_held_once_its_model_is_gone(data):
    def graphs_after_a_training():
        train(data, epochs=1)
        keras.backend.clear_session()
        gc.collect()
        return sum(issubclass(type(held), tf.Graph) for held in gc.get_objects())

    before = graphs_after_a_training()  # what is held once, for good
    assert graphs_after_a_training() <= before


def test_the_schedule_rises_to_its_rate_and_falls_along_a_cosine_to_zero():
    schedule = cosine_schedule(0.1, 100)
    assert float(schedule(5)) == pytest.approx(0.1)
    assert float(schedule(0)) == pytest.approx(0.01)
    halfway = 5 + 95 / 2
    assert float(schedule(halfway)) == pytest.approx(0.05)
    assert float(schedule(100)) == pytest.approx(0, abs=1e-8)


def test_a_training_of_a_single_step_has_a_schedule():
    assert np.isfinite(float(cosine_schedule(0.1, 1)(0)))


def test_a_loss_that_is_not_finite_is_an_error(data):
    model = new_model()
    model.get_layer("logit").bias.assign([np.nan])
    with pytest.raises(FloatingPointError, match="no longer finite"):
        fit(model, training_batches(*data[0], 16, NONE, 1), learning_rate=0.1, epochs=2)


def test_outputs_are_those_of_the_model_in_inference_mode(data):
    model = new_model()
    expected = np.concatenate(
        [model(image[None].astype(np.float32), training=False) for image in data[0][0]]
    )
    np.testing.assert_allclose(outputs(model, data[0][0]), expected, atol=1e-5)


def test_copied_features_are_the_models_outputs_and_are_not_computed_again(data, tmp_path):
    model = new_model()
    below = keras.Model(model.input, model.get_layer("features").output)
    arguments = {"copies": 2, "amounts": SOME, "seed": 5, "progress": "t"}
    first = copied_features(tmp_path, below, data[0][0], **arguments)
    assert len(first) == 3
    np.testing.assert_array_equal(first[0], outputs(below, data[0][0]))
    changed = augment(data[0][0], SOME, np.array([5 + 2, 0])).numpy()
    np.testing.assert_allclose(first[2], outputs(below, changed), atol=1e-5)
    assert not np.allclose(first[1], first[2])
    below.get_layer("stem_convolution").kernel.assign(
        below.get_layer("stem_convolution").kernel * 0
    )
    again = copied_features(tmp_path, below, data[0][0], **arguments)
    np.testing.assert_array_equal(again[1], first[1])


def tune(data, model, rate, **how):
    rules = {"sudden_drop": 0.2, "shrink": 0.1, "attempts": 3} | how
    batches = feature_batches([data[0][0]], data[0][1], 16, seed=1)
    return fine_tune(model, batches, learning_rate=rate, epochs=2, **rules)


def test_a_sudden_drop_reloads_the_model_and_takes_a_smaller_rate(data):
    model, _ = train(data, epochs=10)
    history, log = tune(data, model, 30.0, attempts=6)
    assert len(log) > 1
    assert log["outcome"].iloc[-1] == "kept"
    assert log["outcome"].iloc[0] != "kept"
    np.testing.assert_allclose(log["learning_rate"], 30.0 * 0.1 ** np.arange(len(log)))
    assert history["accuracy"].min() >= log["accuracy_before"].iloc[0] - 0.2
    assert history["accuracy"].min() > 0.7


def test_dropout_alone_is_no_sudden_drop(data):
    # Without learning, an epoch reports less than the model can do, because dropout is at work.
    set_seed(0)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(inputs / 127.5 - 1))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.9)(x)))
    kernel = np.zeros((16, 1), np.float32)
    kernel[[5, 6, 9, 10]] = 1  # the four middle blocks hold the disc
    model.layers[-1].set_weights([kernel, np.zeros(1, np.float32)])
    assert ((logits(model, data[0][0]) > 0) == data[0][1]).mean() > 0.95
    _, log = tune(data, model, 1e-9, sudden_drop=0.15)
    assert log["accuracy_before"][0] < 0.9
    assert log["outcome"].tolist() == ["kept"]


def test_when_every_attempt_drops_the_model_is_as_it_was(data):
    model, _ = train(data, epochs=10)
    before = model_fingerprint(model)
    history, log = tune(data, model, 1e4, attempts=2, shrink=0.9)
    assert model_fingerprint(model) == before
    assert history.empty
    assert (log["outcome"] != "kept").all()


def test_class_weights_are_those_of_scikit_learn(rng):
    labels = rng.permutation(np.repeat([0, 1], [30, 90]))
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    np.testing.assert_allclose(list(class_weights(labels).values()), expected)
    with pytest.raises(ValueError, match="both 0 and 1"):
        class_weights(np.ones(5))


def test_on_a_plateau_the_learning_rate_falls_and_else_it_is_constant(data):
    # Labels without any relation to the images: validation soon no longer improves.
    (images, labels), val = data[0], (data[1][0], np.roll(data[1][1], 1))
    history = fit(
        new_model(),
        evaluation_batches(images, labels),
        learning_rate=0.01,
        epochs=8,
        validation=evaluation_batches(*val),
        plateau=1,
    )
    rates = history["learning_rate"].to_numpy()
    assert rates[0] == pytest.approx(0.01)
    best, expected = np.inf, 0.01
    for rate, loss in zip(rates, history["val_loss"], strict=True):
        # The clock reads the rate of the epoch before the callback that lowers it has its turn.
        assert rate == pytest.approx(expected, rel=1e-5)
        expected *= 1 if loss < best else PLATEAU_FACTOR
        best = min(best, loss)
    assert rates[-1] < 0.01


def test_class_weights_move_the_predictions_towards_the_rarer_class(data):
    images, labels = data[0]
    noise = np.random.default_rng(1).integers(0, 256, images.shape, np.uint8)
    labels = (np.arange(len(labels)) % 4 > 0).astype(int)  # three to one, and nothing to learn
    means = {}
    for weights in (None, class_weights(labels)):
        model = new_model()
        batches = evaluation_batches(noise, labels)
        fit(model, batches, learning_rate=0.003, epochs=8, class_weight=weights)
        means[weights is None] = logits(model, noise).mean()
    assert means[False] < means[True]
