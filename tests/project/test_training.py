import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

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


def train(data, epochs=6, schedule_epochs=None, learning_rate=0.01, callbacks=(), held_out=True):
    """Train as the notebooks do; return model and history."""
    (images, labels), val = data
    set_seed(0)
    model = baseline_cnn(32, normalization_layer("fixed", images), filters=4, dropout=0.2)
    batches = training_batches(images, labels, 16, SOME, seed=1)
    schedule = cosine_schedule(learning_rate, len(batches) * (schedule_epochs or epochs))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=classification_metrics())
    log = TrainingLog()
    validation = evaluation_batches(*val) if held_out else None
    options = {"validation_data": validation, "callbacks": [log, *callbacks]}
    model.fit(batches, epochs=epochs, verbose=0, shuffle=False, **options)
    return model, log.history


def test_two_runs_from_one_seed_are_equal_bit_by_bit(data):
    (first, history), (second, again) = train(data, 2), train(data, 2)
    assert model_fingerprint(first) == model_fingerprint(second)
    assert history["val_loss"].tolist() == again["val_loss"].tolist()
    assert history.attrs["initial_model"] == again.attrs["initial_model"]


def test_it_learns_what_can_be_learned(data):
    model, history = train(data)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert ((logits(model, data[1][0]) > 0) == data[1][1]).mean() > 0.9


def test_early_stopping_leaves_the_weights_of_the_best_epoch(data):
    stop = keras.callbacks.EarlyStopping("val_loss", patience=8, restore_best_weights=True)
    model, history = train(data, epochs=8, learning_rate=0.03, callbacks=[stop])
    z = logits(model, data[1][0]).astype(np.float64)
    y = data[1][1]
    loss = np.mean(np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y))
    assert loss == pytest.approx(history["val_loss"].min(), rel=1e-4)
    assert history["val_loss"].iloc[best_epoch(history) - 1] == history["val_loss"].min()


def test_a_refit_on_the_same_schedule_takes_the_same_steps(data):
    _, long = train(data, epochs=4)
    _, short = train(data, epochs=2, schedule_epochs=4)
    assert short["loss"].tolist() == long["loss"].tolist()[:2]


def test_the_history_has_a_row_per_epoch_and_the_metrics_of_the_predictions(data):
    model, history = train(data, epochs=3)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert {"loss", "accuracy", "auc", "learning_rate", "seconds"} <= set(history)
    scores = logits(model, data[1][0])
    accuracy = ((scores > 0) == data[1][1]).mean()
    assert history["val_accuracy"].iloc[-1] == pytest.approx(accuracy)
    # Keras' AUC is a sum over 200 thresholds.
    expected = roc_auc_score(data[1][1], scores)
    assert history["val_auc"].iloc[-1] == pytest.approx(expected, abs=0.02)
    _, plain = train(data, epochs=1, held_out=False)
    assert not any(name.startswith("val_") for name in plain)


def test_the_schedule_rises_to_its_rate_and_falls_along_a_cosine_to_zero():
    schedule = cosine_schedule(0.1, 100)
    assert float(schedule(5)) == pytest.approx(0.1)
    assert float(schedule(0)) == pytest.approx(0.01)
    halfway = 5 + 95 / 2
    assert float(schedule(halfway)) == pytest.approx(0.05)
    assert float(schedule(100)) == pytest.approx(0, abs=1e-8)
    assert np.isfinite(float(cosine_schedule(0.1, 1)(0)))  # a single step


def test_a_loss_or_a_weight_that_is_not_finite_is_an_error(data):
    def spoil_loss(epoch, logs):
        logs["loss"] = np.nan

    spoiled = keras.callbacks.LambdaCallback(on_epoch_end=spoil_loss)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1"):
        train_with_first(data, spoiled)

    class SpoilWeights(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.get_layer("logit").bias.assign([np.nan])

    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        train(data, epochs=1, callbacks=[SpoilWeights()])


def train_with_first(data, callback):
    """Train with a callback that is asked before the log."""
    (images, labels), _ = data
    model = baseline_cnn(32, normalization_layer("fixed", images), filters=4, dropout=0.2)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=classification_metrics())
    batches = evaluation_batches(images, labels)
    model.fit(batches, epochs=2, callbacks=[callback, TrainingLog()], verbose=0)


def test_a_sudden_drop_stops_the_training_and_says_so(data):
    drop = SuddenDrop(least_accuracy=1.1)
    _, history = train(data, epochs=3, callbacks=[drop])
    assert len(history) == 1
    assert "in epoch 1 is below 1.100" in drop.message
    none = SuddenDrop(least_accuracy=0.0)
    _, history = train(data, epochs=2, callbacks=[none])
    assert (len(history), none.message) == (2, "")


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


def test_measuring_the_accuracy_leaves_batch_normalisation_alone(data):
    model, _ = train(data, epochs=1)
    before = model_fingerprint(model)
    training_accuracy(model, evaluation_batches(*data[0]))
    assert model_fingerprint(model) == before
