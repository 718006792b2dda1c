"""Does the map depend on what the model has learned? Randomise its weights, and see it change.

Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: cascading randomisation
re-initialises the layers from the logit downwards, independent randomisation one group of layers at
a time. Arun et al., "Assessing the Trustworthiness of Saliency Maps for Localizing Abnormalities in
Medical Imaging", Radiology: Artificial Intelligence 2021, say what is enough: the similarity to the
trained model's map has to fall below the mean of 50 random pairs of the trained model's maps of
different images.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

import keras
import numpy as np

CASCADING, INDEPENDENT = "cascading", "independent"


def blocks(model: keras.Model, count: int = 8) -> list[list[str]]:
    """The layers with weights in at most `count` groups, from the logit down.

    The last layer is a group of its own, the others are dealt out evenly. A normalisation by
    training statistics (`keras.layers.Normalization`) has learned nothing and is left out.
    """
    names = [
        layer.name
        for layer in reversed(model.layers)
        if layer.weights and not isinstance(layer, keras.layers.Normalization)
    ]
    below = np.array_split(names[1:], max(min(count, len(names)) - 1, 1))
    return [names[:1], *(part.tolist() for part in below if len(part))]


def randomised(model: keras.Model, layers: Collection[str], seed: int = 0) -> keras.Model:
    """A copy of a flat model whose named layers start anew, by their own initialisers.

    Kernels and biases, and BatchNorm's scale, offset and moving statistics, are what they were
    before any training; all other layers keep their weights byte for byte. A layer's new weights
    depend on the seed alone, not on which others are named. The given model stays as it is. (An
    initialiser that was given a seed of its own repeats itself, whatever the seed here.)

    Raises
    ------
    ValueError : for a layer that the model has not, or that has no weights.
    """
    # Those with weights alone: a clone may give an input that was never named another name.
    names = [layer.name for layer in model.layers if layer.weights]
    if unknown := sorted(set(layers) - set(names)):
        raise ValueError(
            f"Model '{model.name}' has no layers with weights {unknown}; it has {names}."
        )
    state = random.getstate()
    random.seed(seed)  # where Keras' initialisers take their seeds from
    try:
        copy = keras.models.clone_model(model)
    finally:
        random.setstate(state)
    _give_weights(model, copy, set(names) - set(layers))
    return copy


def randomisations(
    model: keras.Model, groups: Sequence[Sequence[str]], seed: int = 0
) -> Iterator[tuple[str, str, keras.Model]]:
    """Yield "cascading" or "independent", the group's number and last layer, and the model.

    First the groups are randomised one after the other, and stay so; then each alone. It is one
    model throughout, whose weights change, so that what has been compiled for it can be used again.
    """
    fresh, copy = randomised(model, [*chain(*groups)], seed), randomised(model, (), seed)
    named = [(f"{number} {group[-1]}", group) for number, group in enumerate(groups, 1)]
    for name, group in named:
        _give_weights(fresh, copy, group)
        yield CASCADING, name, copy
    for group in groups:
        _give_weights(model, copy, group)
    for name, group in named:
        _give_weights(fresh, copy, group)
        yield INDEPENDENT, name, copy
        _give_weights(model, copy, group)


def _give_weights(source: keras.Model, receiver: keras.Model, layers: Collection[str]) -> None:
    for name in layers:
        receiver.get_layer(name).set_weights(source.get_layer(name).get_weights())
