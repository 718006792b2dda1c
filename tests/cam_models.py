"""Small networks whose heatmaps are known, or easily computed in another way."""

import keras
import numpy as np
from keras import layers

SIZE = 16


def pooled_model(classes=1, activation=None, kind="functional"):
    """Conv–ReLU–global pooling–dense, the case in which Grad-CAM has a closed form."""
    stack = [
        layers.Rescaling(1 / 255, name="rescale"),
        layers.Conv2D(6, 3, strides=2, activation="relu", name="features"),
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dropout(0.5, name="drop"),
        layers.Dense(classes, activation=activation, name="top"),
    ]
    if kind == "sequential":
        return keras.Sequential([keras.Input((SIZE, SIZE, 1)), *stack])
    inputs = x = keras.Input((SIZE, SIZE, 1))
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def flattened_model(classes=1):
    """Conv–BN–ReLU–max pooling–dense: the gradient differs from place to place."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, strides=2, name="conv")(x)
    x = layers.BatchNormalization(moving_mean_initializer="random_normal", name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.Dropout(0.5)(x)))


def residual_model():
    """A stem and two residual blocks; `branch_*` lie beside a skip connection."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="stem")(x)
    for block in ("a", "b"):
        y = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"branch_{block}")(x)
        y = layers.Conv2D(4, 3, padding="same", name=f"linear_{block}")(y)
        x = layers.ReLU(name=f"out_{block}")(layers.Add(name=f"add_{block}")([x, y]))
    x = layers.Dense(5, activation="tanh")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def features_of(model, layer, images):
    output = model.get_layer(layer).output
    return keras.Model(model.inputs[0], output)(images.astype(np.float32), training=False).numpy()


def closed_form(model, images, logit=0):
    """Σ_k w_k A_k / (h w) for global average pooling and one dense layer, in float64."""
    features = features_of(model, "features", images).astype(np.float64)
    kernel = model.get_layer("top").get_weights()[0][:, logit].astype(np.float64)
    return (features @ kernel) / (features.shape[1] * features.shape[2])
