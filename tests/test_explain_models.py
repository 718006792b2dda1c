"""`explain` on models as users build and save them: every map against a hand-written tape.

The oracle runs the model that the user built, by Keras itself, and records what one layer gives
there; nothing is flattened, traced back or loaded. The score is computed from the model's output.
"""

from dataclasses import dataclass, field
from unittest import mock

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers, ops
from keras.src.applications import convnext, densenet, efficientnet, inception_resnet_v2
from PIL import Image

from covid_lab.__main__ import main
from covid_lab.explain.features import last_spatial_layer, spatial_layers
from covid_lab.explain.gradcam import grad_cam
from covid_lab.explain.methods import METHODS
from covid_lab.explain.outputs import remove_final_activation
from covid_lab.explain.pictures import find_pictures
from covid_lab.explain.prepare import prepare
from covid_project.data import DataError

SIZE = 32
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


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


def flatten_after_the_sigmoid():
    inputs, x = rescaled()
    return User(keras.Model(inputs, layers.Flatten()(head(small_cnn(x)))), "last", score=log_odds)


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


def preprocess_input_and_backbone():
    inputs = keras.Input((64, 64, 3))
    backbone = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, include_top=False, weights=None, name="backbone"
    )
    x = backbone(keras.applications.mobilenet_v2.preprocess_input(inputs), training=False)
    return User(keras.Model(inputs, head(x)), "backbone/out_relu", score=log_odds)


def conv_next():
    backbone = convnext.ConvNeXt(
        (1, 1, 1, 1), (4, 6, 8, 12), drop_path_rate=0.1, include_top=False, weights=None,
        input_shape=(64, 64, 3), name="next",
    )  # fmt: skip
    last = backbone.operations[-2].name  # the sum at the end of the last block
    inputs = keras.Input((64, 64, 3))
    x = head(backbone(inputs), 3, "softmax", name="top")
    return User(
        keras.Model(inputs, x), f"next/{last}", score=logit(0), top="top", target=0, classes=3
    )


def mobile_net_v3():
    backbone = keras.applications.MobileNetV3Small(
        (64, 64, 3), alpha=0.35, minimalistic=True, include_top=False, weights=None
    )
    last = backbone.layers[-1].name  # a ReLU
    return User(keras.Model(backbone.inputs, head(backbone.output, 1, None)), last)


def efficient_net():
    backbone = efficientnet.EfficientNet(
        0.2, 0.2, 64, include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    x = layers.Dense(4, activation="softmax", name="top")(backbone.output)
    return User(
        keras.Model(backbone.inputs, x), "top_activation", score=logit(3), top="top", target=3,
        classes=4,
    )  # fmt: skip


def dense_net():
    backbone = densenet.DenseNet(
        (1, 1, 1, 1), include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    inputs, x = rescaled(3, 64)
    return User(keras.Model(inputs, layers.Dense(1)(backbone(x))), f"{backbone.name}/relu")


def inception_resnet_block():
    inputs, x = rescaled()
    x = small_cnn(x)
    y = layers.Conv2D(5, 1)(x)
    x = inception_resnet_v2.CustomScaleLayer(0.2)([x, y])
    x = layers.Activation("relu", name="block")(x)
    return User(keras.Model(inputs, head(x)), "block", score=log_odds)


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


def softmax_of_two_and_a_reshape():
    inputs, x = rescaled()
    x = layers.Reshape((2,))(head(small_cnn(x), 2, "softmax", name="top"))
    return User(keras.Model(inputs, x), "last", score=logit(1), top="top")


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


def imagenet_values():
    inputs = keras.Input((SIZE, SIZE, 3))
    return User(
        keras.Model(inputs, head(small_cnn(inputs), 3, None)), "last",
        {"input_range": "imagenet"}, values=lambda x: (x / 255 - MEAN) / DEVIATION,
        score=lambda out: out[:, 1], classes=3,
    )  # fmt: skip


def caffe_values():
    inputs = keras.Input((SIZE, SIZE, 3))
    return User(
        keras.Model(inputs, head(small_cnn(inputs), 1, None)), "last", {"input_range": "caffe"},
        values=lambda x: keras.applications.vgg16.preprocess_input(x.copy()),
    )  # fmt: skip


def normalization_of_0_to_1():
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Normalization(axis=None, mean=0.5, variance=0.07)(inputs)
    return User(
        keras.Model(inputs, head(small_cnn(x))), "last", values=lambda x: x / 255, score=log_odds
    )


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
    sigmoid, flatten_after_the_sigmoid, linear_activation_after_the_sigmoid,
    average_of_two_networks, average_of_softmaxes, operations, squeezed,
    preprocess_input_and_backbone, conv_next, mobile_net_v3, efficient_net, dense_net,
    inception_resnet_block, compiled_network_behind_a_rescaling, pooled_backbone_inside,
    twice_nested, two_outputs, any_size, softmax_layer, softmax_of_two_and_a_reshape,
    both_probabilities_side_by_side, probability_of_every_place, values_of_0_to_1,
    values_of_minus_1_to_1, imagenet_values, caffe_values, normalization_of_0_to_1, integers,
    mapping_of_inputs_and_outputs, batches_of_one_image, sequence_without_an_input,
    vision_transformer, vision_transformer_with_a_class_token, squeeze_and_excite,
    leaky_and_normalised,
]  # fmt: skip


def layer_at(model, path):
    for name in path.split("/"):
        operations = getattr(model, "operations", None) or model.layers
        (model,) = [operation for operation in operations if operation.name == name]
    return model


def by_hand(user, images):
    """Grad-CAM's signed map (N, h, w), and the score, from the user's own model."""
    if user.model.inputs[0].shape[0] == 1 < len(images):
        parts = [by_hand(user, images[number : number + 1]) for number in range(len(images))]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    layer, seen, logits = layer_at(user.model, user.layer), [], []
    call = layer.call
    top = layer_at(user.model, user.top) if user.top else layers.Dense(1)
    top_call = top.call

    def watched(*arguments, **options):
        seen.append(call(*arguments, **options))
        return seen[-1]

    def watched_top(inputs, *arguments, **options):
        logits.append(inputs @ top.kernel + top.bias)
        return top_call(inputs, *arguments, **options)

    dtype = user.model.inputs[0].dtype
    values = tf.cast(user.values(images.astype(np.float64)), dtype)
    watching = mock.patch.object(layer, "call", watched)
    with watching, mock.patch.object(top, "call", watched_top), tf.GradientTape() as tape:
        if dtype != "uint8":
            tape.watch(values)
        fed = {"image": values} if isinstance(getattr(user.model, "input", 0), dict) else values
        output = user.model(fed, training=False)
        score = user.score(logits[-1] if user.top else output)
    features, gradient = seen[-1].numpy(), tape.gradient(score, seen[-1]).numpy()
    if features.ndim == 3:  # tokens: 4 by 4 patches, the last ones
        features, gradient = (
            x[:, -16:].reshape(-1, 4, 4, x.shape[-1]) for x in (features, gradient)
        )
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return (weights * features).sum(axis=-1), score.numpy()


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two coloured images of smooth blobs, 96 by 96."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(5)
    for number in range(2):
        coarse = random.integers(0, 256, (6, 6, 3), np.uint8)
        image = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
    return find_pictures([folder], "AB")[0]


def as_taken(pictures, shape):
    """The images as Pillow makes them for a network, uint8 (N, H, W, C)."""
    mode = "RGB" if shape[2] == 3 else "L"
    small = [
        np.asarray(Image.open(p.path).convert(mode).resize(shape[1::-1], Image.Resampling.BILINEAR))
        for p in pictures
    ]
    return np.reshape(small, (-1, *shape))


@pytest.mark.parametrize("build", USERS, ids=lambda build: build.__name__)
def test_the_map_of_a_users_model_is_that_of_a_hand_written_tape(build, pictures, tmp_path):
    keras.utils.set_random_seed(3)
    user = build()
    user.model.save(tmp_path / "m.keras")
    options = dict(user.options)
    layer = options.pop("layer", None)
    classes = [f"class {number}" for number in range(user.classes)]
    prepared = prepare(tmp_path / "m.keras", pictures, classes, **options)
    images = as_taken(pictures, prepared.shape)
    found = grad_cam(prepared.network, images, user.target, layer)
    expected, score = by_hand(user, images)
    expected_layer = layer or last_spatial_layer(prepared.network)
    assert found.layer == expected_layer
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found.raw, expected, atol=1e-4 * scale)
    positive = np.maximum(expected, 0)
    tops = positive.max(axis=(1, 2), keepdims=True)
    maps = np.divide(positive, tops, out=np.zeros_like(positive), where=tops > 0)
    np.testing.assert_allclose(found.maps, maps, atol=1e-4)
    if user.classes == 2 and prepared.network.outputs[0].shape[-1] == 1:
        np.testing.assert_allclose(found.scores, score, rtol=1e-3, atol=1e-3)
    assert user.layer in spatial_layers(prepared.network)
    assert found.layer == user.layer


def saved(tmp_path, model):
    model.save(tmp_path / "m.keras")
    return tmp_path / "m.keras"


def test_every_target_of_several_classes_has_a_map(pictures, tmp_path):
    path, out = saved(tmp_path, softmax_layer().model), tmp_path / "out"
    options = ["--classes", "A,B,C,D", "--target", "B", "--target", "D", "--target", "predicted"]
    images = str(pictures[0].path.parent)
    assert main(["explain", str(path), images, "--out", str(out), *options]) == 0
    table = pd.read_csv(out / "explanations.csv")
    assert len(table) == 6
    assert table["target"].tolist()[:2] == ["B", "D"]
    for _, rows in table.groupby("image"):
        best = rows["target"].iloc[-1]
        assert set(rows["predicted"]) == {best}
        assert rows["score"].iloc[-1] >= rows["score"].max() - 1e-6


@pytest.mark.parametrize("method", ["score-cam", "occlusion", "saliency", "layercam", "eigen-cam"])
def test_other_methods_open_nested_networks_and_transformers(pictures, tmp_path, method):
    for build in (compiled_network_behind_a_rescaling, vision_transformer, operations):
        user = build()
        path = saved(tmp_path, user.model)
        prepared = prepare(path, pictures, [str(number) for number in range(user.classes)])
        images = as_taken(pictures, prepared.shape)
        found = METHODS[method](prepared.network, images, user.target)
        assert np.isfinite(found.raw).all()
        blank = ~found.raw.any(axis=(1, 2))
        assert (found.status[blank] != "ok").all()  # random weights may speak for no place
        scores = prepared.network(images.astype(np.float32), training=False).numpy()
        column = 0 if user.classes == 2 else user.target
        np.testing.assert_allclose(found.scores, scores[:, column], rtol=1e-3, atol=1e-4)


def test_a_layer_may_be_named_in_full_or_in_short(pictures, tmp_path):
    prepared = prepare(saved(tmp_path, twice_nested().model), pictures, "AB")
    images = as_taken(pictures, prepared.shape)
    full = grad_cam(prepared.network, images, 1, "outer/inner/conv").raw
    for name in ("conv", "outer/inner"):
        np.testing.assert_array_equal(grad_cam(prepared.network, images, 1, name).raw, full)
    ensemble = prepare(saved(tmp_path, average_of_two_networks().model), pictures, "AB")
    with pytest.raises(ValueError, match=r"'conv'.*'b/conv'.*'a/conv'"):
        grad_cam(ensemble.network, images, 1, "conv")


def test_a_saturated_average_still_has_a_gradient(pictures, tmp_path):
    user = average_of_two_networks()
    for branch in "ab":
        top = layer_at(user.model, f"{branch}/top")
        top.set_weights([top.get_weights()[0], np.array([60.0])])
    prepared = prepare(saved(tmp_path, user.model), pictures, "AB")
    images = as_taken(pictures, prepared.shape)
    assert (user.model(images / np.float32(1)).numpy() == 1).all()
    found = grad_cam(prepared.network, images, 1, "b/conv")
    assert np.abs(found.raw).max() > 0
    assert 50 < found.scores.min() < np.inf


def test_removing_an_activation_twice_changes_nothing(pictures, tmp_path):
    for build in (average_of_two_networks, both_probabilities_side_by_side, squeezed, sigmoid):
        network = remove_final_activation(build().model)
        assert remove_final_activation(network) is network


def test_a_probability_stays_one_where_a_logit_happens_to_be_small():
    """An untrained linear layer gives small values, too: it is told by what it is."""
    inputs, x = rescaled()
    x = head(small_cnn(x), 1, None)
    assert remove_final_activation(keras.Model(inputs, x)).outputs[0] is x
    inputs, x = rescaled()
    x = head(small_cnn(x), 1, None)
    clipped = keras.Model(inputs, ops.clip(x + 0.5, 0, 1))  # a probability by its values
    images = np.random.default_rng(0).uniform(0, 255, (3, SIZE, SIZE, 1)).astype(np.float32)
    p = np.clip(clipped(images).numpy().astype(float), 1e-7, 1 - 1e-7)
    found = remove_final_activation(clipped)(images)
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (any_size, {}, r"m\.keras takes inputs of the shape \(None, None, None, 1\).*--size 224"),
        (sigmoid, {"size": (64, 64)}, r"--size is 64x64.*m\.keras takes images of 32x32"),
        (two_outputs, {}, r"2 outputs: age \(None, 1\), diagnosis \(None, 1\).*--output"),
        (two_outputs, {"output": "sex"}, r"no output 'sex'; its outputs are age"),
        (softmax_layer, {}, r"distinguishes 4 classes, but 2 are named \(A, B\).*--classes"),
        (values_of_0_to_1, {}, r"m\.keras: the range of values .* cannot be determined"),
        (sigmoid, {"input_range": "imagenet"}, r"3 colours.*1 channel"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(pictures, tmp_path, build, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        prepare(saved(tmp_path, build().model), pictures, "AB", **options)
    assert "input_range" in options or isinstance(caught.value, DataError)


def test_a_range_against_the_networks_own_preprocessing_is_warned_of(pictures, tmp_path):
    path = saved(tmp_path, sigmoid().model)
    prepared = prepare(path, pictures, "AB", input_range="0..1")
    assert "which points to 0..255" in prepared.warnings[0]
    assert prepare(path, pictures, "AB", input_range="0..255").warnings == []


def test_the_printed_lines_name_layer_score_and_range(pictures, tmp_path, capsys):
    path = saved(tmp_path, average_of_two_networks().model)
    images = str(pictures[0].path.parent)
    assert main(["explain", str(path), images, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "layer: a/conv" in said.out
    assert "score: log-odds: average" in said.out
    assert "input range: 0..255 (rescaling" in said.out
    assert "layer a/conv is not the only path from the image to the score" in said.err


def test_weights_that_are_not_numbers_are_refused_with_their_file(pictures, tmp_path):
    model = sigmoid().model
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel * np.nan, bias])
    with pytest.raises(DataError, match=r"m\.keras: .*NaN.*last/kernel"):
        prepare(saved(tmp_path, model), pictures, "AB")


def test_options_are_taken_as_people_write_them(pictures, tmp_path, capsys):
    images = str(pictures[0].path.parent)
    path = str(saved(tmp_path, values_of_minus_1_to_1().model))
    options = ["--input-range", "-1..1", "--output", "0", "--size", "32x32"]
    assert main(["explain", path, images, "--out", str(tmp_path / "out"), *options]) == 0
    assert "input range: -1..1 (given by --input-range)" in capsys.readouterr().out
    for wrong in (["--size", "big"], ["--size", "0"], ["--input-range", "0-1"]):
        with pytest.raises(SystemExit):
            main(["explain", path, images, "--out", str(tmp_path / "no"), *wrong])
        assert wrong[1] in capsys.readouterr().err
