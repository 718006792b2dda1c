"""The small U-Net that segments lungs (`covid_lab.lungs`), and the file of its weights.

Radiologists draw a lung in two ways: up to the border of the heart, or up to the spine, with the
lung behind the heart. The network gives each pixel one of three classes, from which both follow:
outside the lungs, lung behind the heart, lung field.
"""

from itertools import pairwise
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from covid_project.files import whole_file
from covid_project.normalization import SampleNormalization

SIDE = 128  # pixels of the network's images
OUTSIDE, HEART, FIELD = range(3)  # the classes of a pixel
WIDTHS = (16, 24, 48, 64, 96)  # channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the side
BATCH = 32  # images per call


def build_network() -> keras.Model:
    """Build the network with random weights.

    A U-Net (Ronneberger, Fischer & Brox 2015, MICCAI) whose first convolution has stride 2 and
    whose last step doubles the side again, which saves most of the work. Each image is standardised
    first, so that its brightness and contrast do not matter.

    Returns
    -------
    keras.Model
        Images uint8 or float32 (N, 128, 128, 1), grey values 0–255 → logits (N, 128, 128, 3) of
        `OUTSIDE`, `HEART` and `FIELD`.
    """
    images = keras.Input((SIDE, SIDE, 1), name="images")
    x = SampleNormalization(name="normalization")(images)
    x = _convolution(x, WIDTHS[0], kernel=5, stride=2)
    skipped = []
    for width, deeper in pairwise(WIDTHS):
        x = _convolution(x, width)
        skipped.append(x)
        x = _convolution(x, deeper, stride=2)
    x = _convolution(x, WIDTHS[-1])
    for width, skip in zip(WIDTHS[-2::-1], skipped[::-1], strict=True):
        x = layers.Conv2DTranspose(width, 2, 2)(x)
        x = layers.Concatenate()([x, skip])
        x = _convolution(_convolution(x, width), width)
    logits = layers.Conv2DTranspose(3, 2, 2, name="logits")(x)
    return keras.Model(images, logits, name="lung_unet")


def _convolution(x, width: int, *, kernel: int = 3, stride: int = 1):
    """Convolution, BatchNormalization and ReLU."""
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False)(x)
    return layers.Activation("relu")(layers.BatchNormalization(momentum=0.95)(x))


def write_weights(network: keras.Model, path: str | Path) -> None:
    """Write the weights into an HDF5 file: kernels in half precision, the rest in single precision.

    Parameters
    ----------
    network : keras.Model
    path : str or Path
    """
    with whole_file(path) as part, h5py.File(part, "w", libver="latest") as file:
        for index, weight in enumerate(network.get_weights()):
            kind = np.float16 if weight.ndim == 4 else np.float32
            file.create_dataset(f"{index:03d}", data=weight.astype(kind))


def load_network(path: str | Path) -> keras.Model:
    """Build the network with the weights of a file from `write_weights`.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    keras.Model

    Raises
    ------
    ValueError
        The weights are those of another network.
    """
    network = build_network()
    with h5py.File(path) as file:
        network.set_weights([np.float32(file[name][()]) for name in sorted(file)])
    return network


def compile_probabilities(network: keras.Model):
    """Return a function that computes probabilities.

    Parameters
    ----------
    network : keras.Model
        From `build_network`.

    Returns
    -------
    callable
        Images uint8 (N, 128, 128) → np.ndarray, float32 (N, 128, 128, 3), the probability of each
        class; sums to 1.
    """

    @tf.function(input_signature=[tf.TensorSpec((None, SIDE, SIDE), tf.uint8)])
    def call(images):
        logits = network(tf.cast(images[..., None], tf.float32), training=False)
        return tf.nn.softmax(logits)

    def probabilities(images: np.ndarray) -> np.ndarray:
        parts = [
            call(images[first : first + BATCH]).numpy() for first in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts) if parts else np.empty((0, SIDE, SIDE, 3), np.float32)

    return probabilities
