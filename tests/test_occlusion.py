import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.occlusion import occlusion

SIZE = 10


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(13)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)


def linear_model(channels=1):
    inputs = keras.Input((SIZE, SIZE, channels))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, layers.Dense(1, name="top")(x))


def kernel_of(model):
    kernel = model.get_layer("top").get_weights()[0].astype(np.float64) / 255
    return kernel.reshape(model.inputs[0].shape[1:])


def curved_model(classes=1, height=SIZE):
    inputs = keras.Input((height, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.Dropout(0.5)(x)))


def naive(model, image, logit, corners, patch, fill):
    """Patch by patch, pixel by pixel: the mean fall over the patches that cover each pixel."""

    def score(picture):
        return float(model(picture[None].astype(np.float32))[0, logit])

    falls = {}
    for top, left in corners:
        covered = image.astype(np.float64)
        for i in range(top, top + patch):
            for j in range(left, left + patch):
                covered[i, j] = fill
        falls[top, left] = score(image) - score(covered)
    expected = np.empty(image.shape[:2])
    for i, j in np.ndindex(*expected.shape):
        expected[i, j] = np.mean(
            [
                fall
                for (top, left), fall in falls.items()
                if top <= i < top + patch and left <= j < left + patch
            ]
        )
    return expected


def test_equals_a_naive_loop_and_the_last_patch_ends_at_the_edge():
    model = curved_model(3, height=9)
    images = np.random.default_rng(1).integers(0, 256, (2, 9, SIZE, 1), dtype=np.uint8)
    found = occlusion(model, images, [2, 0], patch=4, stride=3, fill=20, batch_size=7)
    corners = [(top, left) for top in (0, 3, 5) for left in (0, 3, 6)]
    for raw, image, logit in zip(found.raw, images, (2, 0), strict=True):
        expected = naive(model, image, logit, corners, 4, 20)
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(raw, expected, atol=1e-5)
    assert found.layer == "pixels"
    assert found.maps.dtype == found.raw.dtype == found.scores.dtype == np.float32


@pytest.mark.parametrize(("target", "sign"), [(0, -1), (1, 1)])
def test_single_pixels_of_a_linear_model_have_a_closed_form(images, target, sign):
    model = linear_model()
    found = occlusion(model, images, target, patch=1, stride=1, fill=100)
    expected = sign * (kernel_of(model) * (images.astype(np.float64) - 100))[..., 0]
    np.testing.assert_allclose(found.raw, expected, atol=1e-5)
    for shown, signed in zip(found.maps, expected, strict=True):
        np.testing.assert_allclose(shown, np.maximum(signed, 0) / signed.max(), atol=1e-4)
    logits = model(images.astype(np.float32)).numpy()[:, 0]
    terms = np.abs(kernel_of(model) * images).sum(axis=(1, 2, 3)).max()  # their sum may cancel
    rounding = terms * np.finfo(np.float32).eps
    np.testing.assert_allclose(found.scores, sign * logits, rtol=1e-5, atol=rounding)


def test_patches_side_by_side_give_a_linear_models_sum_under_each(images):
    model = linear_model()
    found = occlusion(model, images, 1, patch=5, stride=5, fill=0)
    terms = (kernel_of(model) * images)[..., 0].reshape(3, 2, 5, 2, 5)
    expected = np.kron(terms.sum(axis=(2, 4)), np.ones((5, 5)))
    np.testing.assert_allclose(found.raw, expected, atol=1e-5)


def test_a_patch_over_the_whole_image_gives_what_the_image_adds(images):
    model = curved_model()
    found = occlusion(model, images, 1, patch=SIZE, stride=3, fill=50)
    change = model(images.astype(np.float32)) - model(np.full((1, SIZE, SIZE, 1), 50.0))
    np.testing.assert_allclose(
        found.raw, np.array(change)[..., None] * np.ones((SIZE,) * 2), atol=1e-5
    )


def test_the_default_fill_is_each_images_mean_by_channel():
    model = linear_model(channels=3)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    found = occlusion(model, images, 1, patch=1, stride=1)
    mean = images.mean(axis=(1, 2), keepdims=True)
    expected = (kernel_of(model) * (images - mean)).sum(axis=-1)
    np.testing.assert_allclose(found.raw, expected, atol=1e-5)


def test_batches_equal_single_images(images):
    model = curved_model()
    target = np.array([0, 1, 1])
    whole = occlusion(model, images, target, patch=4, stride=2)
    parts = occlusion(model, images, target, patch=4, stride=2, batch_size=2)
    np.testing.assert_allclose(parts.raw, whole.raw, atol=1e-5)
    for i, image in enumerate(images):
        alone = occlusion(model, image[None], target[i], patch=4, stride=2)
        np.testing.assert_allclose(alone.raw[0], whole.raw[i], atol=1e-5)


def test_class_0_of_a_single_logit_is_minus_class_1_and_a_sigmoid_changes_nothing(images):
    model = curved_model()
    fused = keras.Model(model.inputs, layers.Activation("sigmoid")(model.outputs[0]))
    normal, covid = (occlusion(fused, images, target, patch=3, stride=3) for target in (0, 1))
    np.testing.assert_array_equal(normal.raw, -covid.raw)
    logit = occlusion(model, images, 1, patch=3, stride=3)
    np.testing.assert_allclose(covid.raw, logit.raw, atol=1e-6)


def test_the_predicted_class_is_that_of_the_whole_image(images):
    model = curved_model(3)
    predicted = model(images.astype(np.float32)).numpy().argmax(axis=1)
    found = occlusion(model, images, "predicted", patch=5, stride=5)
    np.testing.assert_array_equal(found.target, predicted)
    np.testing.assert_array_equal(
        found.raw, occlusion(model, images, predicted, patch=5, stride=5).raw
    )


def test_given_images_are_left_as_they_were(images):
    values = images.astype(np.float32)
    occlusion(linear_model(), values, 1, patch=5, stride=5)
    np.testing.assert_array_equal(values, images)


def test_status_is_given_image_by_image(images):
    model = linear_model()
    model.get_layer("top").set_weights([np.ones((SIZE**2, 1)), np.ones(1)])
    pictures = np.stack([images[0], np.full_like(images[0], 70), 0 * images[0]])
    found = occlusion(model, pictures, 1, patch=2, stride=2)
    assert found.status.tolist() == ["ok", "no change", "no change"]
    assert not found.maps[1:].any()
    brighter = occlusion(model, pictures, 1, patch=2, stride=2, fill=255)
    assert set(brighter.status) == {"all negative"}


def test_no_images_give_empty_heatmaps(images):
    found = occlusion(linear_model(), images[:0], 1, patch=5, stride=5)
    assert found.maps.shape == found.raw.shape == (0, SIZE, SIZE)
    assert found.status.shape == (0,)


# Bad input


@pytest.mark.parametrize(("patch", "stride"), [(0, 1), (11, 1), (3, 0), (3, 4)])
def test_patches_that_do_not_fit_or_leave_pixels_uncovered_are_refused(images, patch, stride):
    with pytest.raises(ValueError, match=f"patch is {patch}, stride {stride}"):
        occlusion(linear_model(), images, 1, patch, stride)


@pytest.mark.parametrize("fill", [-1, 256, np.nan])
def test_a_fill_out_of_range_is_refused(images, fill):
    with pytest.raises(ValueError, match="fill is"):
        occlusion(linear_model(), images, 1, 5, 5, fill=fill)


def test_bad_images_and_targets_are_refused(images):
    model = linear_model()
    with pytest.raises(ValueError, match="not a class of this model"):
        occlusion(model, images, 2, 5, 5)
    with pytest.raises(ValueError, match=r"\(10, 10, 1\)"):
        occlusion(model, images[:, :4], 1, 5, 5)
    with pytest.raises(ValueError, match=r"expected 0\.\.255"):
        occlusion(model, images / 255, 1, 5, 5)
    values = images.astype(np.float32)
    values[2, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"\[2\] hold NaN"):
        occlusion(model, values, 1, 5, 5)


def test_weights_that_are_not_finite_are_reported(images):
    model = linear_model()
    model.get_layer("top").set_weights([np.full((SIZE**2, 1), np.nan), np.ones(1)])
    with pytest.raises(ValueError, match=r"NaN or infinite weights: top/kernel"):
        occlusion(model, images, 1, 5, 5)
