import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.network import FoldedConvolution, fold_normalization, graph_nodes


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(19)


@pytest.fixture
def images():
    return np.random.default_rng(2).uniform(-1, 1, (3, 9, 10, 4)).astype(np.float32)


def lively(model):
    """Give every weight, the moving statistics among them, a value of its own."""
    generator = np.random.default_rng(4)
    for layer in model.layers:
        layer.set_weights([generator.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def network(convolution, normalization=None):
    inputs = keras.Input((9, 10, 4))
    x = convolution(inputs)
    x = (normalization or layers.BatchNormalization())(x)
    return lively(keras.Model(inputs, layers.ReLU(6.0)(x)))


def folded_layers(model):
    return [node for node in graph_nodes(model) if isinstance(node.operation, FoldedConvolution)]


CONVOLUTIONS = {
    "plain": lambda: layers.Conv2D(3, 3),
    "strided": lambda: layers.Conv2D(5, (3, 2), strides=2, padding="same", use_bias=False),
    "dilated": lambda: layers.Conv2D(2, 3, dilation_rate=2, padding="same"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", use_bias=False),
    "multiplied": lambda: layers.DepthwiseConv2D(3, depth_multiplier=3, strides=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_one_convolution_gives_what_convolution_and_batchnorm_give(images, kind, scale, center):
    norm = layers.BatchNormalization(scale=scale, center=center, epsilon=0.1)
    model = network(CONVOLUTIONS[kind](), norm)
    folded = fold_normalization(model)
    assert len(folded_layers(folded)) == 1
    expected = model.predict_on_batch(images)
    assert expected.std() > 0.01
    np.testing.assert_allclose(folded.predict_on_batch(images), expected, rtol=1e-5, atol=1e-5)


def test_weights_are_read_at_each_call(images):
    model = network(layers.Conv2D(3, 3))
    folded = fold_normalization(model)
    before = folded.predict_on_batch(images)
    for weight in model.weights:
        weight.assign(weight * 0.9)
    after = folded.predict_on_batch(images)
    np.testing.assert_allclose(after, model.predict_on_batch(images), rtol=1e-5, atol=1e-5)
    assert np.abs(after - before).max() > 0.01


def test_features_that_are_asked_for_are_not_folded_away(images):
    model = network(layers.Conv2D(3, 3, name="asked"))
    both = keras.Model(model.inputs, [model.get_layer("asked").output, *model.outputs])
    assert fold_normalization(both) is both


@pytest.mark.parametrize(
    "convolution",
    [
        layers.Conv2D(4, 3, padding="same", activation="tanh"),
        layers.Conv2D(4, 3, padding="same", groups=2),
        layers.SeparableConv2D(4, 3, padding="same"),
    ],
)
def test_what_is_no_plain_convolution_stays_as_it_is(convolution):
    model = network(convolution)
    assert fold_normalization(model) is model


def test_layers_used_twice_stay_as_they_are(images):
    inputs = keras.Input((9, 10, 4))
    convolution = layers.Conv2D(4, 3, padding="same")
    x = layers.BatchNormalization()(convolution(inputs))
    twice = lively(keras.Model(inputs, layers.BatchNormalization()(convolution(x))))
    assert fold_normalization(twice) is twice
    features = layers.Conv2D(4, 3)(inputs)
    branched = layers.Add()([features, layers.BatchNormalization()(features)])
    branched = keras.Model(inputs, branched)
    assert fold_normalization(branched) is branched


def test_the_given_model_is_left_alone_and_sequential_ones_are_taken(images):
    model = keras.Sequential([keras.Input((9, 10, 4)), layers.Conv2D(3, 3)])
    model.add(layers.BatchNormalization())
    lively(model)
    names, expected = [layer.name for layer in model.layers], model.predict_on_batch(images)
    folded = fold_normalization(model)
    assert len(folded_layers(folded)) == 1
    np.testing.assert_allclose(folded.predict_on_batch(images), expected, rtol=1e-5, atol=1e-5)
    assert [layer.name for layer in model.layers] == names
    np.testing.assert_array_equal(model.predict_on_batch(images), expected)
