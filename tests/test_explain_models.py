"""`explain` on models as users build and save them: every map against a hand-written tape.

The oracle runs the model that the user built, by Keras itself, and records what one layer gives
there; nothing is flattened, traced back or loaded. The score is computed from the model's output.
"""

from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from PIL import Image
from user_models import (
    SIZE,
    USERS,
    any_size,
    average_of_two_networks,
    both_probabilities_side_by_side,
    compiled_network_behind_a_rescaling,
    head,
    rescaled,
    sigmoid,
    small_cnn,
    softmax_layer,
    squeezed,
    twice_nested,
    two_outputs,
    values_of_0_to_1,
    values_of_minus_1_to_1,
    vision_transformer,
)  # fmt: skip

from covid_lab.__main__ import main
from covid_lab.explain.features import spatial_layers
from covid_lab.explain.gradcam import grad_cam
from covid_lab.explain.methods import METHODS
from covid_lab.explain.network import flatten
from covid_lab.explain.outputs import remove_final_activation
from covid_lab.explain.pictures import find_pictures
from covid_lab.explain.prepare import prepare
from covid_project.data import DataError


def layer_at(model, path):
    for name in path.split("/"):
        known = getattr(model, "operations", None) or model.layers
        (model,) = [operation for operation in known if operation.name == name]
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
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found.raw, expected, atol=1e-4 * scale)
    if user.classes == 2 and prepared.network.outputs[0].shape[-1] == 1:
        np.testing.assert_allclose(found.scores, score, rtol=1e-3, atol=1e-3)
    assert user.layer in spatial_layers(prepared.network)
    assert found.layer == user.layer


def saved(tmp_path, model):
    model.save(tmp_path / "m.keras")
    return tmp_path / "m.keras"


@pytest.mark.parametrize("build", [compiled_network_behind_a_rescaling, vision_transformer])
def test_other_methods_open_nested_networks_and_transformers(pictures, tmp_path, build):
    user = build()
    classes = [str(number) for number in range(user.classes)]
    prepared = prepare(saved(tmp_path, user.model), pictures, classes)
    images = as_taken(pictures, prepared.shape)
    scores = prepared.network(images.astype(np.float32), training=False).numpy()
    column = 0 if user.classes == 2 else user.target
    for method in ("score-cam", "occlusion", "saliency"):
        found = METHODS[method](prepared.network, images, user.target)
        assert np.isfinite(found.raw).all()
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


def test_a_nested_model_with_two_inputs_is_opened(rng):
    image, age = keras.Input((8, 8, 1)), keras.Input((1,))
    inner = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten()])
    both = layers.Concatenate()([inner(image), age])
    model = keras.Model([image, age], layers.Dense(1)(both))
    values = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 8, 8, 1), (3, 1))]
    flat = flatten(model)
    assert not any(isinstance(layer, keras.Sequential) for layer in flat.layers)
    np.testing.assert_allclose(flat(values), model(values), atol=1e-6)
