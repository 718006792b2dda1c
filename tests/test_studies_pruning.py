import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from covid_lab.studies import pruning
from covid_lab.studies.pruning import kernels, magnitude_masks, prune, scheduled_sparsity, sparsity


def sequential():
    shape = [keras.Input((8, 8, 1)), layers.Conv2D(6, 3, activation="relu"), layers.Flatten()]
    return keras.Sequential([*shape, layers.Dense(10, activation="relu"), layers.Dense(1)])


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


def batches(count=32):
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.float32) % 2
    images = rng.normal(size=(count, 8, 8, 1)).astype(np.float32) + labels[:, None, None, None]
    return tf.data.Dataset.from_tensor_slices((images, labels[:, None])).batch(8)


def compiled(build, optimizer=None, **options):
    keras.utils.set_random_seed(0)
    model = build()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, jit_compile=False, **options)
    return model


def values_of(model):
    return [kernel.numpy() for kernel in kernels(model)]


def test_schedule_is_equation_1():
    def wanted(step):
        return scheduled_sparsity(step, initial=0.5, final=0.8, end=100)

    # By hand: 0.8 - 0.3 (1 - 50 / 100)^3 = 0.8 - 0.3 / 8
    assert [wanted(step) for step in (0, 50, 100)] == pytest.approx([0.5, 0.7625, 0.8])
    assert wanted(100) == wanted(10_000) == scheduled_sparsity(0, initial=0, final=0.8, end=0)
    assert all(b > a for a, b in itertools.pairwise(wanted(step) for step in range(101)))


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
    weights.append(np.ones((10, 10)))  # of equal weights an exact number is pruned
    masks = magnitude_masks(weights, share, scope)
    expected = naive_masks(weights, share, scope)
    assert [mask.sum() for mask in masks] == [mask.sum() for mask in expected]
    for mask, naive in zip(masks[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(mask, naive)


@pytest.mark.parametrize(
    ("build", "scope"), [(sequential, "global"), (functional, "layer"), (nested, "layer")]
)
def test_prunes_any_model_to_the_sparsity_wanted_and_leaves_it_plain(build, scope, tmp_path):
    model = compiled(build, run_eagerly=True)  # a graph in the tests below
    prune(model, batches(), final=0.5, epochs=1)
    early = values_of(model)
    history = prune(model, batches(), initial=0.5, final=0.8, epochs=3, scope=scope)
    late = values_of(model)
    for before, after in zip(early, late, strict=True):
        assert not after[before == 0].any()  # what is pruned stays pruned
    if scope == "layer":
        assert [(one == 0).sum() for one in late] == [
            min(round(0.8 * one.size), one.size - 1) for one in late
        ]
    zeros = sum((one == 0).sum() for one in late) / sum(one.size for one in late)
    assert sparsity(model) == zeros == pytest.approx(0.8, abs=0.05)
    assert history["sparsity"].is_monotonic_increasing
    assert history["sparsity"].iloc[-1] == zeros
    model.save(tmp_path / "pruned.keras")
    loaded = keras.saving.load_model(tmp_path / "pruned.keras", safe_mode=True)
    for old, new in zip(late, values_of(loaded), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(kernel.constraint is None for kernel in kernels(model))
    model.fit(batches(), epochs=1, verbose=0)  # without pruning the zeros are filled
    assert sparsity(model) < 0.8


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
        lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1),
    ],
)
def test_zeros_stay_zero_through_momentum(optimizer, monkeypatch):
    """A weight that has momentum when it is pruned would go on moving without its mask."""
    model = compiled(sequential, optimizer(0.05))
    model.fit(batches(), epochs=1, verbose=0)  # momentum, and a traced step that knows no masks
    before = values_of(model)
    expected = naive_masks(before, 0.6, "layer")
    steps = []

    class Watch(keras.callbacks.TerminateOnNaN):
        def on_train_batch_end(self, batch, logs=None):
            found = [kernel != 0 for kernel in values_of(self.model)]
            steps.append(all(map(np.array_equal, found, expected)))

    monkeypatch.setattr(keras.callbacks, "TerminateOnNaN", Watch)
    monkeypatch.setattr(pruning, "SETTLE", 1.0)  # pruned once, before the first step
    prune(model, batches(), initial=0.6, final=0.6, epochs=3)
    assert steps == [True] * 12, "after every update, not at the end alone"
    for kernel, mask, old in zip(values_of(model), expected, before, strict=True):
        assert not np.array_equal(kernel[mask], old[mask]), "the others go on learning"


def test_frozen_kernels_are_pruned_too():
    model = compiled(sequential)
    model.layers[0].trainable = False
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    frozen = model.layers[0].kernel.numpy()
    prune(model, batches(80), final=0.75, epochs=1)  # pruned at steps 0 and 7 of 10
    (mask,) = naive_masks([frozen], 0.75, "layer")
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), frozen * mask)


def test_what_cannot_be_pruned_says_why():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="no kernels"):
        sparsity(model)
    with pytest.raises(ValueError, match=r"row.*layer, global"):
        magnitude_masks([np.ones(3)], 0.5, "row")
    for wrong in ({"initial": 0.9, "final": 0.8}, {"final": 1.0}, {"initial": -0.1, "final": 0.5}):
        with pytest.raises(ValueError, match="allowed"):
            prune(model, batches(), epochs=1, **wrong)
