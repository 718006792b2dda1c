"""Models as users build and save them."""

from dataclasses import dataclass, field

import keras
import tensorflow as tf
from keras import layers, ops

SIZE = 32


@dataclass
class User:
    """A user's model, the layer explained, and what the oracle must know.

    `values` takes images 0..255 to what the model was trained on; `score` takes its output to the
    score of the target, and where `top` names a dense layer with a softmax, its logits.
    """

    model: keras.Model
    layer: str
    options: dict = field(default_factory=dict)
    values: object = lambda x: x
    score: object = lambda out: out[:, 0]
    top: str | None = None
    target: int = 1
    classes: int = 2


def log_odds(out):
    p = tf.reshape(out, (len(out), -1))[:, 0]
    return tf.math.log(p) - tf.math.log1p(-p)


def logit(number):
    return lambda logits: logits[:, number]


def log_of(number):
    return lambda out: tf.math.log(tf.reshape(out, (len(out), -1))[:, number])


def small_cnn(x, name="last", filters=5):
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    return layers.Conv2D(filters, 3, activation="relu", name=name)(x)


def rescaled(channels=1, size=SIZE):
    inputs = keras.Input((size, size, channels))
    return inputs, layers.Rescaling(1 / 255)(inputs)


def head(x, classes=1, activation="sigmoid", **options):
    return layers.Dense(classes, activation=activation, **options)(
        layers.GlobalAveragePooling2D()(x)
    )


def sigmoid():
    inputs, x = rescaled()
    return User(keras.Model(inputs, head(small_cnn(x))), "last", score=log_odds)


def linear_activation_after_the_sigmoid():
    inputs, x = rescaled()
    x = layers.Activation("linear", dtype="float32")(head(small_cnn(x)))
    return User(keras.Model(inputs, x), "last", score=log_odds)


def average_of_two_networks():
    branches = []
    for name in "ab":
        inputs = keras.Input((SIZE, SIZE, 1))
        x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
        output = layers.Dense(1, activation="sigmoid", name="top")(layers.Flatten()(x))
        branches.append(keras.Model(inputs, output, name=name))
    inputs, x = rescaled()
    x = layers.Average()([branch(x) for branch in branches])
    return User(keras.Model(inputs, x), "b/conv", {"layer": "b/conv"}, score=log_odds)


def average_of_softmaxes():
    inputs, x = rescaled()
    x = small_cnn(x)
    x = layers.Average()([head(x, 3, "softmax"), head(x, 3, "softmax")])
    return User(keras.Model(inputs, x), "last", score=log_of(2), target=2, classes=3)


def operations():
    inputs = keras.Input((SIZE, SIZE, 1))
    x = small_cnn(inputs / 255.0)
    x = ops.sigmoid(layers.Dense(1)(ops.mean(x, axis=(1, 2))))
    return User(keras.Model(inputs, x), "last", score=log_odds)


def squeezed():
    inputs, x = rescaled()
    return User(keras.Model(inputs, ops.squeeze(head(small_cnn(x)), -1)), "last", score=log_odds)


def beginning(network, tensor, name="network"):
    """The first blocks of a large network, so that it is explained fast."""
    return keras.Model(network.inputs, tensor, name=name)


def preprocess_input_and_backbone():
    whole = keras.applications.MobileNetV2((64, 64, 3), 0.35, include_top=False, weights=None)
    last = "block_2_expand_relu"
    backbone = beginning(whole, whole.get_layer(last).output, "backbone")
    inputs = keras.Input((64, 64, 3))
    x = backbone(keras.applications.mobilenet_v2.preprocess_input(inputs), training=False)
    return User(keras.Model(inputs, head(x)), f"backbone/{last}", score=log_odds)


def conv_next():
    whole = keras.applications.ConvNeXtTiny(False, weights=None, input_shape=(64, 64, 3), name="n")
    network = beginning(whole, whole.get_layer("n_downsampling_block_0").input, "next")
    last = network.operations[-1].name  # the sum at the end of a block
    inputs = keras.Input((64, 64, 3))
    x = head(network(inputs), 3, "softmax", name="top")
    return User(
        keras.Model(inputs, x), f"next/{last}", score=logit(0), top="top", target=0, classes=3
    )


def efficient_net():
    whole = keras.applications.EfficientNetB0(False, weights=None, input_shape=(64, 64, 3))
    last = "block2b_expand_activation"
    network = beginning(whole, whole.get_layer(last).output)
    x = head(network.output, 4, "softmax", name="top")
    return User(
        keras.Model(network.inputs, x), last, score=logit(3), top="top", target=3, classes=4
    )


def compiled_network_behind_a_rescaling():
    inputs = keras.Input((SIZE, SIZE, 1))
    network = keras.Model(inputs, head(small_cnn(inputs)), name="network")
    network.compile("adam", "binary_crossentropy")
    model = keras.Sequential([layers.Rescaling(1 / 255), network])
    model.build((None, SIZE, SIZE, 1))
    return User(model, "network/last", score=log_odds)


def pooled_backbone_inside():
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = layers.GlobalAveragePooling2D()(small_cnn(inputs))
    backbone = keras.Model(inputs, pooled, name="backbone")
    model = keras.Sequential([
        keras.Input((SIZE, SIZE, 3)), layers.Rescaling(1 / 127.5, -1), backbone,
        layers.Dropout(0.5), layers.Dense(3, activation="softmax", name="top"),
    ])  # fmt: skip
    return User(model, "backbone/last", score=logit(1), top="top", classes=3)


def twice_nested():
    inner = keras.Sequential([
        keras.Input((SIZE, SIZE, 1)), layers.Conv2D(4, 3, activation="relu", name="conv"),
    ], name="inner")  # fmt: skip
    inputs = keras.Input((SIZE, SIZE, 1))
    middle = keras.Model(inputs, layers.MaxPooling2D()(inner(inputs)), name="outer")
    inputs, x = rescaled()
    return User(keras.Model(inputs, head(middle(x))), "outer/inner/conv", score=log_odds)


def two_outputs():
    inputs, x = rescaled()
    x = small_cnn(x)
    diagnosis, age = head(x, name="diagnosis"), head(x, 1, None, name="age")
    return User(
        keras.Model(inputs, [age, diagnosis]), "last", {"output": "diagnosis"},
        score=lambda out: log_odds(out[1]),
    )  # fmt: skip


def any_size():
    inputs = keras.Input((None, None, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    return User(
        keras.Model(inputs, head(small_cnn(x))), "last", {"size": (SIZE, SIZE)}, score=log_odds
    )


def softmax_layer():
    inputs, x = rescaled()
    x = layers.Softmax()(head(small_cnn(x), 4, None, name="top"))
    return User(keras.Model(inputs, x), "last", score=logit(2), top="top", target=2, classes=4)


def both_probabilities_side_by_side():
    inputs, x = rescaled()
    p = head(small_cnn(x))
    return User(keras.Model(inputs, ops.concatenate([1 - p, p], -1)), "last", score=log_of(1))


def probability_of_every_place():
    inputs, x = rescaled()
    x = layers.Conv2D(1, 1, activation="sigmoid")(small_cnn(x))
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return User(keras.Model(inputs, x), "last", {"layer": "last"}, score=log_odds)


def values_of_0_to_1():
    inputs = keras.Input((SIZE, SIZE, 1))
    model = keras.Model(inputs, head(small_cnn(inputs)))
    return User(model, "last", {"input_range": "0..1"}, values=lambda x: x / 255, score=log_odds)


def values_of_minus_1_to_1():
    inputs = keras.Input((SIZE, SIZE, 1))
    model = keras.Model(inputs, head(small_cnn(inputs), 1, "tanh"))
    return User(
        model, "last", {"input_range": "-1..1"}, values=lambda x: x / 127.5 - 1,
        score=lambda out: tf.math.atanh(out[:, 0]),
    )  # fmt: skip


def mapping_of_inputs_and_outputs():
    inputs, x = rescaled()
    model = keras.Model({"image": inputs}, {"covid": head(small_cnn(x))})
    return User(model, "last", score=lambda out: log_odds(out["covid"]))


def batches_of_one_image():
    inputs = keras.Input(batch_shape=(1, SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    return User(keras.Model(inputs, head(small_cnn(x))), "last", score=log_odds)


def sequence_without_an_input():
    model = keras.Sequential([
        layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu", name="last"),
        layers.Flatten(), layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip
    model.build((None, SIZE, SIZE, 1))
    return User(model, "last", score=log_odds)


def integers():
    inputs = keras.Input((SIZE, SIZE, 1), dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    return User(keras.Model(inputs, head(small_cnn(x))), "last", score=log_odds)


def transformer_blocks(x, blocks, tokens):
    for number in range(blocks):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(2, 4)(y, y)
        x = layers.Add(name=f"attended_{number}")([x, y])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(8)(layers.Dense(16, activation="gelu")(y))
        x = layers.Add(name=f"block_{number}")([x, y])
    return layers.LayerNormalization()(x)


def patches(x):
    x = layers.Conv2D(8, 8, strides=8, name="patches")(x)
    return layers.Reshape((16, 8))(x)


def vision_transformer():
    inputs, x = rescaled()
    x = transformer_blocks(patches(x), 2, 16)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(3, activation="softmax", name="top")(x)
    return User(keras.Model(inputs, x), "block_1", score=logit(2), top="top", target=2, classes=3)


def vision_transformer_with_a_class_token():
    inputs, x = rescaled()
    x = patches(x)
    token = layers.Dense(8, name="class_token")(layers.GlobalAveragePooling1D(keepdims=True)(x))
    x = layers.Concatenate(axis=1)([token, x])
    x = transformer_blocks(x, 2, 17)
    x = layers.Dense(1, activation="sigmoid")(x[:, 0])
    return User(keras.Model(inputs, x), "block_0", score=log_odds)


def squeeze_and_excite():
    inputs, x = rescaled()
    x = small_cnn(x)
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply(name="excited")([x, layers.Dense(5, activation="hard_sigmoid")(y)])
    return User(keras.Model(inputs, head(x)), "excited", score=log_odds)


def leaky_and_normalised():
    inputs, x = rescaled()
    x = layers.SeparableConv2D(6, 3)(x)
    x = layers.BatchNormalization()(x)
    x = layers.LeakyReLU(name="leaky")(x)
    x = layers.Dense(1)(layers.Flatten()(layers.AveragePooling2D(2)(x)))
    return User(keras.Model(inputs, x), "leaky")


USERS = [
    sigmoid, linear_activation_after_the_sigmoid, average_of_two_networks, average_of_softmaxes,
    operations, squeezed, preprocess_input_and_backbone, conv_next, efficient_net,
    compiled_network_behind_a_rescaling, pooled_backbone_inside, twice_nested,
    two_outputs, any_size, softmax_layer, both_probabilities_side_by_side,
    probability_of_every_place, values_of_0_to_1, values_of_minus_1_to_1, integers,
    mapping_of_inputs_and_outputs, batches_of_one_image, sequence_without_an_input,
    vision_transformer, vision_transformer_with_a_class_token, squeeze_and_excite,
    leaky_and_normalised,
]  # fmt: skip
