import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.methods import LAYERED, METHODS, method_named


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((24, 24, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu", name="features"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )


@pytest.mark.parametrize("name", METHODS)
def test_all_methods_are_called_in_one_manner(network, rng, name):
    images = rng.integers(0, 256, (3, 24, 24, 1)).astype(np.uint8)
    found = METHODS[name](network, images, "predicted")
    assert found.layer == ("features" if name in LAYERED else "pixels")
    assert found.maps.shape == found.raw.shape == (3, *((22, 22) if name in LAYERED else (24, 24)))
    assert found.maps.min() >= 0
    assert found.maps.max() <= 1
    assert (found.scores >= 0).all()  # of the predicted class
    assert found.target.shape == found.status.shape == (3,)


def test_methods_are_found_in_any_spelling():
    assert method_named("GradCAM") == "grad-cam"
    assert method_named("grad_cam++") == "grad-cam++"
    assert method_named("Integrated Gradients") == "integrated-gradients"
    with pytest.raises(ValueError, match="Unknown method 'cam'"):
        method_named("cam")
