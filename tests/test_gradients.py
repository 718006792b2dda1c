import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from covid_lab.explain.gradients import integrated_gradients, saliency, smooth_grad

SIZE = 8
METHODS = (saliency, smooth_grad, integrated_gradients)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(11)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (5, SIZE, SIZE, 1), dtype=np.uint8)


def power_model(power, classes=1, channels=1):
    """S = Σ w (I / 255)^power + b: every gradient and integral has a closed form."""
    inputs = keras.Input((SIZE, SIZE, channels))
    x = scaled = layers.Rescaling(1 / 255)(inputs)
    for _ in range(power - 1):
        x = layers.Multiply()([x, scaled])
    return keras.Model(inputs, layers.Dense(classes, name="top")(layers.Flatten()(x)))


def kernel_of(model, logit=0):
    """The weights w of `power_model` for one logit, (H, W, C) float64."""
    kernel = model.get_layer("top").get_weights()[0][:, logit].astype(np.float64)
    return kernel.reshape(model.inputs[0].shape[1:])


def curved_model(classes=1):
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = layers.BatchNormalization(moving_mean_initializer="random_normal")(x)
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.Dropout(0.5)(x)))


def gradient_at(model, image, logit=0):
    """∂ logit / ∂ image of one image (H, W, C), on its own."""
    image = tf.constant(image[None], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(image)
        score = model(image, training=False)[0, logit]
    return tape.gradient(score, image).numpy()[0].astype(np.float64)


# Saliency


@pytest.mark.parametrize(("target", "sign"), [(0, -1), (1, 1)])
def test_saliency_of_a_linear_model_is_its_weights(images, target, sign):
    model = power_model(1)
    kernel = kernel_of(model)[..., 0]
    found = saliency(model, images, target)
    assert found.layer == "pixels"
    assert found.maps.dtype == found.raw.dtype == found.scores.dtype == np.float32
    for raw, shown in zip(found.raw, found.maps, strict=True):
        np.testing.assert_allclose(raw, sign * kernel / 255, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(shown, np.abs(kernel) / np.abs(kernel).max(), rtol=1e-4)
    logits = model(images.astype(np.float32)).numpy()[:, 0]
    np.testing.assert_allclose(found.scores, sign * logits, rtol=1e-5)
    np.testing.assert_array_equal(found.target, target)


def test_saliency_of_a_colour_image_is_that_of_the_strongest_channel():
    model = power_model(1, classes=3, channels=3)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    found = saliency(model, images, [2, 0])
    for raw, logit in zip(found.raw, (2, 0), strict=True):
        kernel = kernel_of(model, logit) / 255
        for i in range(SIZE):
            for j in range(SIZE):
                expected = max(kernel[i, j], key=abs)
                np.testing.assert_allclose(raw[i, j], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("classes", [1, 3])
def test_another_librarys_saliency_agrees(images, classes):
    from tf_keras_vis.saliency import Saliency

    model, logit = curved_model(classes), classes - 1
    theirs = Saliency(model, model_modifier=None)(
        lambda logits: logits[:, logit], images.astype(np.float32), normalize_map=False
    )
    found = saliency(model, images, max(logit, 1))
    np.testing.assert_allclose(np.abs(found.raw), theirs, rtol=1e-4, atol=1e-9)


# SmoothGrad


def test_smooth_grad_of_a_linear_model_is_its_saliency(images):
    model = power_model(1)
    np.testing.assert_allclose(
        smooth_grad(model, images, 1, samples=3).raw, saliency(model, images, 1).raw, atol=1e-8
    )


def test_smooth_grad_of_a_square_is_the_gradient_at_the_mean_point(images):
    model = power_model(2)
    found = smooth_grad(model, images, 1, samples=6, noise=0.2, seed=4)
    deviates = np.random.default_rng(4).standard_normal((6, SIZE, SIZE, 1), dtype=np.float32)
    for raw, image in zip(found.raw, images.astype(np.float64), strict=True):
        sigma = 0.2 * (image.max() - image.min())
        point = image + sigma * deviates.mean(axis=0)
        expected = 2 * kernel_of(model) * point / 255**2
        np.testing.assert_allclose(raw, expected[..., 0], rtol=1e-3, atol=1e-8)


def test_smooth_grad_equals_a_naive_loop(images):
    model = curved_model()
    found = smooth_grad(model, images[:2], 0, samples=5, noise=0.1, seed=9, batch_size=4)
    deviates = np.random.default_rng(9).standard_normal((5, SIZE, SIZE, 1), dtype=np.float32)
    for raw, image in zip(found.raw, images[:2].astype(np.float64), strict=True):
        sigma = 0.1 * (image.max() - image.min())
        gradients = [-gradient_at(model, image + sigma * noise) for noise in deviates]
        expected = np.mean(gradients, axis=0)[..., 0]
        np.testing.assert_allclose(raw, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_the_seed_decides_the_noise_and_no_noise_is_saliency(images):
    model = curved_model()
    first, again, other = (
        smooth_grad(model, images, 1, samples=4, seed=seed).raw for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 * np.abs(first).max()
    still = smooth_grad(model, images, 1, samples=2, noise=0)
    np.testing.assert_allclose(still.raw, saliency(model, images, 1).raw, atol=1e-8)


# Integrated Gradients


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(("target", "sign"), [(0, -1), (1, 1)])
def test_integrated_gradients_of_a_linear_model_are_exact(images, steps, target, sign):
    model = power_model(1)
    found = integrated_gradients(model, images, target, baseline=30, steps=steps)
    expected = sign * kernel_of(model) * (images.astype(np.float64) - 30) / 255
    np.testing.assert_allclose(found.raw, expected[..., 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5)
    baseline = model(np.full((1, SIZE, SIZE, 1), 30, np.float32)).numpy()[0, 0]
    np.testing.assert_allclose(found.baseline_scores, sign * baseline, rtol=1e-5)
    assert found.layer == "pixels"


def test_integrated_gradients_of_a_square_are_exact_for_any_baseline_image(images):
    model = power_model(2)
    baseline = images[0]
    found = integrated_gradients(model, images[1:], 1, baseline=baseline, steps=3)
    square = (images[1:] / 255) ** 2 - (baseline / 255) ** 2
    expected = (kernel_of(model) * square)[..., 0]
    np.testing.assert_allclose(found.raw, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5)


def test_the_residual_of_a_cube_is_that_of_the_midpoint_rule(images):
    """The mean of α² over m midpoints is 1/3 − 1/(12 m²), so a share 1/(4 m²) is left open."""
    model = power_model(3)
    for steps in (1, 2, 4):
        found = integrated_gradients(model, images, 1, steps=steps)
        cube = kernel_of(model) * (images / 255) ** 3
        expected = cube[..., 0] * (1 - 1 / (4 * steps**2))
        np.testing.assert_allclose(found.raw, expected, rtol=1e-3, atol=1e-6)
        left_open = -cube.sum(axis=(1, 2, 3)) / (4 * steps**2)
        np.testing.assert_allclose(found.residual, left_open, rtol=1e-2, atol=1e-5)


def test_integrated_gradients_equal_a_naive_loop_and_are_complete(images):
    model = curved_model(3)
    found = integrated_gradients(model, images[:2], [2, 0], steps=40, batch_size=16)
    for raw, image, logit in zip(found.raw, images[:2].astype(np.float64), (2, 0), strict=True):
        points = [(step + 0.5) / 40 * image for step in range(40)]
        mean = np.mean([gradient_at(model, point, logit) for point in points], axis=0)
        expected = (image * mean)[..., 0]
        np.testing.assert_allclose(raw, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    change = np.abs(found.scores - found.baseline_scores)
    assert (np.abs(found.residual) < 0.02 * change + 0.01).all()


def test_colour_channels_are_summed():
    model = power_model(1, channels=3)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    found = integrated_gradients(model, images, 1, steps=1)
    expected = (kernel_of(model) * images / 255).sum(axis=-1)
    np.testing.assert_allclose(found.raw, expected, rtol=1e-4, atol=1e-6)


def test_the_predicted_class_is_that_of_the_image_all_the_way(images):
    model = curved_model(3)
    predicted = model(images.astype(np.float32)).numpy().argmax(axis=1)
    for method in (smooth_grad, integrated_gradients):
        found, expected = method(model, images, "predicted"), method(model, images, predicted)
        np.testing.assert_array_equal(found.target, predicted)
        np.testing.assert_array_equal(found.raw, expected.raw)


# What holds for all three


@pytest.mark.parametrize("method", METHODS)
def test_batches_equal_single_images(images, method):
    model = curved_model()
    target = np.arange(len(images)) % 2
    whole, parts = method(model, images, target), method(model, images, target, batch_size=3)
    tolerance = 1e-5 * np.abs(whole.raw).max()
    np.testing.assert_allclose(parts.raw, whole.raw, atol=tolerance)
    alone = method(model, images[3:4], target[3])
    np.testing.assert_allclose(alone.raw[0], whole.raw[3], atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_class_0_of_a_single_logit_is_minus_class_1(images, method):
    model = curved_model()
    normal, covid = method(model, images, 0), method(model, images, 1)
    assert np.abs(covid.raw).max() > 0
    np.testing.assert_array_equal(normal.raw, -covid.raw)
    np.testing.assert_array_equal(normal.scores, -covid.scores)


@pytest.mark.parametrize("method", METHODS)
def test_a_final_sigmoid_is_taken_off_even_where_it_saturates(images, method):
    model = power_model(1)
    fused = keras.Model(model.inputs, layers.Activation("sigmoid")(model.outputs[0]))
    model.get_layer("top").bias.assign([200.0])
    assert (fused(images.astype(np.float32)).numpy() == 1).all()
    found, expected = method(fused, images, 1), method(model, images, 1)
    np.testing.assert_allclose(found.raw, expected.raw, rtol=1e-6)
    assert set(found.status) == {"ok"}


@pytest.mark.parametrize("method", METHODS)
def test_a_blank_map_says_that_the_score_does_not_react(images, method):
    model = power_model(1)
    model.get_layer("top").set_weights([np.zeros((SIZE**2, 1)), np.ones(1)])
    found = method(model, images, 1)
    assert set(found.status) == {"zero gradient"}
    assert not found.maps.any()


def test_a_blank_map_of_integrated_gradients_has_its_own_reasons(images):
    model = power_model(1)
    model.get_layer("top").set_weights([-np.ones((SIZE**2, 1)), np.zeros(1)])
    pictures = np.stack([0 * images[0], images[1]])
    found = integrated_gradients(model, pictures, 1)
    assert found.status.tolist() == ["equals baseline", "all negative"]
    assert set(saliency(model, pictures, 1).status) == {"ok"}  # magnitudes


@pytest.mark.parametrize("method", METHODS)
def test_no_images_give_empty_heatmaps(images, method):
    found = method(power_model(1), images[:0], 1)
    assert found.maps.shape == found.raw.shape == (0, SIZE, SIZE)
    assert found.scores.shape == found.target.shape == found.status.shape == (0,)


# Bad input


@pytest.mark.parametrize("method", METHODS)
def test_bad_images_and_targets_are_refused(images, method):
    model = power_model(1)
    with pytest.raises(ValueError, match="not a class of this model"):
        method(model, images, 2)
    with pytest.raises(ValueError, match=r"\(8, 8, 1\)"):
        method(model, images[:, :4], 1)
    with pytest.raises(ValueError, match=r"expected 0\.\.255"):
        method(model, images / 255, 1)
    values = images.astype(np.float32)
    values[2, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"\[2\] hold NaN"):
        method(model, values, 1)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_are_reported(images, method):
    model = power_model(1)
    model.get_layer("top").set_weights([np.full((SIZE**2, 1), np.nan), np.ones(1)])
    with pytest.raises(ValueError, match=r"NaN or infinite weights: top/kernel"):
        method(model, images, 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_integer_input_has_no_gradient(images, method):
    inputs = keras.Input((SIZE, SIZE, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    with pytest.raises(ValueError, match="of type uint8"):
        method(keras.Model(inputs, layers.Dense(1)(x)), images, 1)


def test_samples_noise_steps_and_baselines_out_of_range_are_refused(images):
    model = power_model(1)
    with pytest.raises(ValueError, match="samples is 0"):
        smooth_grad(model, images, 1, samples=0)
    with pytest.raises(ValueError, match=r"noise -0\.1"):
        smooth_grad(model, images, 1, noise=-0.1)
    with pytest.raises(ValueError, match="steps is 0"):
        integrated_gradients(model, images, 1, steps=0)
    with pytest.raises(ValueError, match=r"shape \(8, 8\)"):
        integrated_gradients(model, images, 1, baseline=images[0, ..., 0])
