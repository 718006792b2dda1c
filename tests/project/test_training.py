import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from covid_project.models import baseline_cnn, logits, model_fingerprint
from covid_project.normalization import normalization_layer
from covid_project.pipeline import evaluation_batches, feature_batches, training_batches
from covid_project.settings import Augmentation
from covid_project.training import (
    SuddenDrop,
    TrainingLog,
    best_epoch,
    classification_metrics,
    cosine_schedule,
    set_seed,
    training_accuracy,
)

SOME = Augmentation(flip=True, rotation=5, zoom=0.1, shift=0.1, brightness=0.1, contrast=0.1)
LOSS = keras.losses.BinaryCrossentropy(from_logits=True)
EPOCHS = 8


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


def train(data, epochs, callbacks=(), validation=None):
    """Train as the notebooks do, on the schedule of `EPOCHS`; return model and history."""
    images, labels = data
    set_seed(0)
    model = baseline_cnn(32, normalization_layer("fixed", images), filters=4, dropout=0.2)
    batches = training_batches(images, labels, 16, SOME, seed=1)
    schedule = cosine_schedule(0.03, len(batches) * EPOCHS)
    model.compile(keras.optimizers.Adam(schedule), LOSS, metrics=classification_metrics())
    log = TrainingLog()
    options = {"validation_data": validation, "callbacks": [log, *callbacks]}
    model.fit(batches, epochs=epochs, verbose=0, shuffle=False, **options)
    return model, log.history


@pytest.fixture(scope="module")
def stopped(data):
    stop = keras.callbacks.EarlyStopping("val_loss", patience=8, restore_best_weights=True)
    return train(data[0], EPOCHS, [stop], evaluation_batches(*data[1]))


def test_it_learns_and_early_stopping_leaves_the_weights_of_the_best_epoch(data, stopped):
    model, history = stopped
    assert history["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert {"loss", "accuracy", "auc", "learning_rate", "seconds"} <= set(history)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    best = history.iloc[best_epoch(history) - 1]
    assert best["val_loss"] == history["val_loss"].min()
    images, labels = data[1]
    scores = logits(model, images).astype(np.float64)
    assert log_loss(labels, 1 / (1 + np.exp(-scores))) == pytest.approx(best["val_loss"], rel=1e-4)
    accuracy = ((scores > 0) == labels).mean()
    assert accuracy == pytest.approx(best["val_accuracy"])
    assert accuracy > 0.9
    # Keras' AUC is a sum over 200 thresholds.
    assert best["val_auc"] == pytest.approx(roc_auc_score(labels, scores), abs=0.02)


def test_a_refit_takes_the_same_steps_bit_by_bit(data, stopped):
    _, long = stopped
    model, short = train(data[0], epochs=2)
    assert short["loss"].tolist() == long["loss"].tolist()[:2]
    assert short.attrs["initial_model"] == long.attrs["initial_model"]
    assert not any(name.startswith("val_") for name in short)
    before = model_fingerprint(model)
    training_accuracy(model, evaluation_batches(*data[0]))
    assert model_fingerprint(model) == before  # batch normalisation is left alone


def test_the_schedule_rises_to_its_rate_and_falls_along_a_cosine_to_zero():
    schedule = cosine_schedule(0.1, 100)
    found = [float(schedule(step)) for step in (0, 5, 5 + 95 / 2, 100)]
    np.testing.assert_allclose(found, [0.01, 0.1, 0.05, 0], atol=1e-8)
    assert np.isfinite(float(cosine_schedule(0.1, 1)(0)))  # a single step


def fit_briefly(data, *callbacks, epochs=1):
    """Fit a single layer with these callbacks, in their order."""
    model = keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(1, name="logit"))
    model.compile("adam", LOSS, metrics=classification_metrics())
    model.fit(
        evaluation_batches(*data[0]),
        epochs=epochs,
        callbacks=[*callbacks],
        verbose=0,
        shuffle=False,
    )


def test_a_loss_or_a_weight_that_is_not_finite_is_an_error(data):
    def spoil_loss(epoch, logs):
        logs["loss"] = np.nan

    spoiled = keras.callbacks.LambdaCallback(on_epoch_end=spoil_loss)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1"):
        fit_briefly(data, spoiled, TrainingLog())

    class SpoilWeights(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.get_layer("logit").bias.assign([np.nan])

    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        fit_briefly(data, TrainingLog(), SpoilWeights())


@pytest.mark.parametrize(("least", "epochs"), [(1.1, 1), (0.0, 2)])
def test_a_sudden_drop_stops_the_training_and_says_so(data, least, epochs):
    drop, log = SuddenDrop(least_accuracy=least), TrainingLog()
    fit_briefly(data, log, drop, epochs=2)
    assert len(log.history) == epochs
    assert bool(drop.message) == (epochs == 1)


def test_dropout_is_at_work_in_the_accuracy_that_a_drop_is_compared_with(data):
    # Without learning, an epoch reports less than the model can do, because dropout is at work.
    set_seed(0)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(inputs / 127.5 - 1))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.9)(x)))
    kernel = np.zeros((16, 1), np.float32)
    kernel[[5, 6, 9, 10]] = 1  # the four middle blocks hold the disc
    model.layers[-1].set_weights([kernel, np.zeros(1, np.float32)])
    images, labels = data[0]
    assert ((logits(model, images) > 0) == labels).mean() > 0.95
    before = model_fingerprint(model)
    assert training_accuracy(model, feature_batches([images], labels, 16, seed=1)) < 0.9
    assert model_fingerprint(model) == before
