"""Several devices and mixed precision: one setting each, for all that a process trains."""

import keras
import tensorflow as tf


def use(devices: str, precision: str) -> None:
    """Train from now on with these devices and this precision; before any model is made.

    Parameters
    ----------
    devices
        "one", or "all": every GPU of the machine, or where there is none every CPU that TensorFlow
        knows, each with a part of every batch and the gradients summed up
        (``tf.distribute.MirroredStrategy``). With Keras 3.5, the oldest allowed, the training
        accuracy that is reported then comes out wrong; with the locked one it is right.
    precision
        "float32", or "mixed_bfloat16" or "mixed_float16": layers compute in half the bits, while
        weights and logits stay float32 (Micikevicius et al. 2018, "Mixed precision training").
        Worth it on GPUs; what `checkpoints.fitted` keeps computes in float32 again.
    """
    keras.config.set_dtype_policy(precision)
    if devices == "all":
        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy = tf.distribute.MirroredStrategy([device.name for device in found])
        tf.distribute.experimental_set_strategy(strategy)
        print(f"{replicas()} devices share every batch: {', '.join(d.name for d in found)}")


def replicas() -> int:
    """How many devices share a batch."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def in_single_precision(model: keras.Model) -> keras.Model:
    """The same functional model, of layers that compute in float32."""

    def copied(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy
