import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from covid_lab.studies.pruning import (
    Pruning,
    Schedule,
    kernels,
    magnitude_masks,
    prune,
    sparsity,
    sparsity_table,
)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="relu"),
            layers.Dense(1),
        ]
    )


def functional():
    images = keras.Input((8, 8, 1))
    x = layers.DepthwiseConv2D(3, depth_multiplier=4)(images)
    x = layers.BatchNormalization()(x)
    x = layers.SeparableConv2D(8, 3)(x)
    x = layers.add([x, layers.Conv2D(8, 1)(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(1)(x))


def nested():
    inner = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten()])
    return keras.Sequential([keras.Input((8, 8, 1)), inner, layers.Dense(1)])


MODELS = [sequential, functional, nested]


def batches(count=32):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = rng.normal(size=(count, 8, 8, 1)) + labels[:, None, None, None]
    images = images.astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, labels[:, None].astype(np.float32))).batch(8)


def compiled(build, optimizer=None):
    keras.utils.set_random_seed(0)
    model = build()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss=loss)
    return model


def zeros(model):
    return [kernel.numpy() == 0 for kernel in kernels(model)]


def test_schedule_is_equation_1():
    schedule = Schedule(initial=0.5, final=0.8, begin=10, end=110, every=10)
    assert schedule.sparsity(9) == 0
    assert schedule.sparsity(10) == pytest.approx(0.5)
    # By hand: 0.8 - 0.3 (1 - 50 / 100)^3 = 0.8 - 0.3 / 8
    assert schedule.sparsity(60) == pytest.approx(0.7625)
    assert schedule.sparsity(110) == schedule.sparsity(10_000) == 0.8
    steps = [schedule.sparsity(step) for step in range(10, 111)]
    assert all(b > a for a, b in itertools.pairwise(steps))
    assert [step for step in range(130) if schedule.prunes_at(step)] == list(range(10, 111, 10))


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": 0.9},
        {"final": 1.0},
        {"initial": -0.1},
        {"begin": 5, "end": 4},
        {"every": 0},
    ],
)
def test_schedule_refuses(wrong):
    with pytest.raises(ValueError, match="allowed"):
        Schedule(**{"initial": 0.5, "final": 0.8, "begin": 0, "end": 9, **wrong})


def naive_masks(weights, share, scope):
    """One weight after the other, the smallest first, sparing the last of a kernel."""
    masks = [np.ones(kernel.shape, bool) for kernel in weights]
    groups = [[k] for k in range(len(weights))] if scope == "layer" else [range(len(weights))]
    for group in groups:
        entries = sorted(
            (abs(value), k, place) for k in group for place, value in np.ndenumerate(weights[k])
        )
        to_prune = round(share * len(entries))
        for _, k, place in entries:
            if to_prune and masks[k].sum() > 1:
                masks[k][place] = False
                to_prune -= 1
    return masks


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("share", [0.0, 0.37, 0.8, 0.999])
def test_masks_are_those_of_a_loop(rng, scope, share):
    weights = [rng.normal(size=(3, 3, 1, 4)), 0.01 * rng.normal(size=(7, 5)), rng.normal(size=1)]
    masks = magnitude_masks(weights, share, scope)
    for mask, expected in zip(masks, naive_masks(weights, share, scope), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_equal_weights_are_pruned_in_exact_number():
    (mask,) = magnitude_masks([np.ones((10, 10))], 0.7)
    assert mask.sum() == 30


def test_unknown_scope():
    with pytest.raises(ValueError, match=r"row.*layer, global"):
        magnitude_masks([np.ones(3)], 0.5, "row")


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_prunes_any_model_to_the_sparsity_wanted(build, scope):
    model = compiled(build)
    history = prune(model, batches(), initial=0.5, final=0.8, epochs=4, scope=scope, every=2)
    table = sparsity_table(model)
    if scope == "layer":
        expected = [min(round(0.8 * n), n - 1) for n in table["weights"]]
        assert table["zeros"].tolist() == expected
    assert sparsity(model) == pytest.approx(0.8, abs=0.05)
    assert history["sparsity"].is_monotonic_increasing
    assert history["sparsity"].iloc[-1] == pytest.approx(sparsity(model))
    # Kernels alone: all that is not one counts for nothing.
    assert (
        table["weights"].sum() == sum(k.numpy().size for k in kernels(model)) < model.count_params()
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam,
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
        keras.optimizers.RMSprop,
        lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1),
    ],
)
def test_zeros_stay_zero_through_momentum(optimizer):
    """A weight that has momentum when it is pruned would go on moving without its mask."""
    model = compiled(sequential, optimizer(0.05))
    model.fit(batches(), epochs=2, verbose=0)  # momentum, and a traced step that knows no masks
    before = [kernel.numpy() for kernel in kernels(model)]
    expected = naive_masks(before, 0.6, "layer")
    steps = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found = [kernel.numpy() != 0 for kernel in kernels(self.model)]
            steps.append(all(map(np.array_equal, found, expected)))

    once = Schedule(initial=0.6, final=0.6, begin=0, end=0)
    model.fit(batches(), epochs=3, verbose=0, callbacks=[Pruning(once), Watch()])
    assert steps == [True] * 12, "after every update, not at the end alone"
    for kernel, mask, old in zip(kernels(model), expected, before, strict=True):
        np.testing.assert_array_equal(kernel.numpy() != 0, mask)
        assert not np.array_equal(kernel.numpy()[mask], old[mask]), "the others go on learning"


def test_what_is_pruned_stays_pruned():
    model = compiled(sequential)
    prune(model, batches(), final=0.5, epochs=2)
    first = zeros(model)
    prune(model, batches(), initial=0.5, final=0.8, epochs=2)
    for early, late in zip(first, zeros(model), strict=True):
        assert late[early].all()


@pytest.mark.parametrize("build", MODELS)
def test_masks_survive_saving_and_loading(build, tmp_path):
    model = compiled(build)
    prune(model, batches(), final=0.8, epochs=2)
    model.save(tmp_path / "pruned.keras")
    loaded = keras.saving.load_model(tmp_path / "pruned.keras", safe_mode=True)
    for old, new in zip(kernels(model), kernels(loaded), strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    assert sparsity(loaded) == sparsity(model)


def test_a_pruned_model_is_a_plain_one_again():
    """No constraint is left, and training without pruning fills the zeros."""
    model = compiled(sequential)
    prune(model, batches(), final=0.8, epochs=2)
    assert all(kernel.constraint is None for kernel in kernels(model))
    model.fit(batches(), epochs=2, verbose=0)
    assert sparsity(model) < 0.8


def test_frozen_kernels_are_pruned_too():
    model = compiled(sequential)
    model.layers[0].trainable = False
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    frozen = model.layers[0].kernel.numpy()
    prune(model, batches(), final=0.75, epochs=1)
    (mask,) = naive_masks([frozen], 0.75, "layer")
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), frozen * mask)


def test_a_model_without_kernels():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="no kernels"):
        sparsity(model)
