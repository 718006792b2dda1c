import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from covid_project.augmentation import NONE, affine, augment, only, recolour
from covid_project.settings import Augmentation

ALL = Augmentation(flip=True, rotation=10, zoom=0.2, shift=0.1, brightness=0.1, contrast=0.3)
SEED = np.array([3, 4])


@pytest.fixture
def images(rng):
    smooth = ndimage.gaussian_filter(rng.normal(size=(4, 24, 30)), (0, 3, 3))
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    return smooth[..., None].astype(np.uint8)


def transform(images, **arguments):
    """Our matrices through TensorFlow's operation, for one set of arguments."""
    count, height, width = images.shape[:3]
    defaults = {"angle": 0.0, "scale": 1.0, "mirrored": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    values = {k: tf.fill([count], float(v)) for k, v in (defaults | arguments).items()}
    matrices = affine(**values, height=float(height), width=float(width))
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images.astype(np.float32), transforms=matrices, output_shape=(height, width),
        fill_value=0.0, fill_mode="REFLECT", interpolation="BILINEAR",
    ).numpy()  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [{"angle": 0.3}, {"scale": 1.2}, {"shift_x": 2.0}, {"shift_y": -3.0}, {"mirrored": -1.0},
     {"angle": -0.2, "scale": 0.9, "shift_x": 1.5, "shift_y": 2.5, "mirrored": -1.0}],
)  # fmt: skip
def test_the_matrix_equals_scipys_affine_transform_built_step_by_step(images, arguments):
    # Result = shift(rotate(magnify(mirror(image)))), each about the centre, inverted for SciPy,
    # which like TensorFlow maps each pixel of the result to its source, but in (row, column).
    g = {"angle": 0.0, "scale": 1.0, "mirrored": 1.0, "shift_x": 0.0, "shift_y": 0.0} | arguments
    turn = np.array(
        [[np.cos(g["angle"]), np.sin(g["angle"])], [-np.sin(g["angle"]), np.cos(g["angle"])]]
    )
    forward = turn @ np.diag([g["scale"], g["scale"]]) @ np.diag([g["mirrored"], 1])
    inverse = np.linalg.inv(forward)  # in (x, y)
    swap = np.array([[0, 1], [1, 0]])
    matrix = swap @ inverse @ swap  # in (row, column)
    centre = (np.array(images.shape[1:3]) - 1) / 2
    moved = centre + np.array([g["shift_y"], g["shift_x"]])
    expected = np.stack(
        [
            ndimage.affine_transform(
                image[..., 0].astype(float), matrix, centre - matrix @ moved, order=1,
                mode="reflect",
            )
            for image in images
        ]
    )  # fmt: skip
    np.testing.assert_allclose(transform(images, **arguments)[..., 0], expected, atol=0.6)


def test_nothing_switched_on_changes_nothing(images):
    np.testing.assert_allclose(augment(images, NONE, SEED), images, atol=1e-3)


def test_the_same_seed_gives_the_same_images_and_another_one_others(images):
    first = augment(images, ALL, SEED).numpy()
    np.testing.assert_array_equal(first, augment(images, ALL, SEED))
    assert not np.allclose(first, augment(images, ALL, SEED + 1))


def test_the_images_of_a_batch_are_transformed_differently(images):
    same = np.repeat(images[:1], 8, axis=0)
    changed = augment(same, ALL, SEED).numpy()
    assert len({image.tobytes() for image in changed}) == 8


def test_flips_are_mirror_images_and_come_half_of_the_time(images):
    many = np.repeat(images[:1], 400, axis=0)
    flipped = augment(many, only(ALL, "flip"), SEED).numpy()
    mirrored = np.isclose(flipped, many[:, :, ::-1], atol=1e-2).all(axis=(1, 2, 3))
    kept = np.isclose(flipped, many, atol=1e-2).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations about 200


def test_recolour_is_linear_about_middle_grey_and_clipped():
    images = np.array([0.0, 100.0, 127.5, 250.0], np.float32).reshape(1, 4, 1, 1)
    changed = recolour(images, tf.constant([1.2]), tf.constant([10.0])).numpy().ravel()
    np.testing.assert_allclose(changed, [0.0, 104.5, 137.5, 255.0], atol=1e-4)


def test_amounts_are_the_limits_of_uniform_draws():
    grey = np.full((4000, 4, 4, 1), 120, np.uint8)
    brighter = augment(grey, only(ALL, "brightness"), SEED).numpy()[:, 0, 0, 0] - 120
    assert np.abs(brighter).max() <= 0.1 * 255 + 1e-3
    # A uniform draw between -b and b has the standard deviation b / √3.
    np.testing.assert_allclose(brighter.std(), 0.1 * 255 / 3**0.5, rtol=0.05)
    sharper = augment(grey, only(ALL, "contrast"), SEED).numpy()[:, 0, 0, 0] - 127.5
    factors = sharper / (120 - 127.5)
    assert np.abs(factors - 1).max() <= 0.3 + 1e-3
    np.testing.assert_allclose(factors.std(), 0.3 / 3**0.5, rtol=0.05)
