"""Does the map depend on what the model has learned? Randomise its weights and compare.

Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: cascading randomisation
re-initialises the layers from the logit downwards, independent randomisation one group of layers at
a time. Arun et al., "Assessing the Trustworthiness of Saliency Maps for Localizing Abnormalities in
Medical Imaging", Radiology: Artificial Intelligence 2021, give the criterion: the similarity to the
trained model's map has to fall below the mean similarity of 50 random pairs of the trained model's
maps of different images.
"""

import random
from collections.abc import Collection, Iterator, Sequence

import keras
import numpy as np

CASCADING, INDEPENDENT = "cascading", "independent"


def blocks(model: keras.Model, count: int = 8) -> list[list[str]]:
    """Divide the layers with weights into groups, from the logit down.

    The last layer is a group of its own, and the others are divided evenly. A normalisation by
    training statistics (`keras.layers.Normalization`) has learned nothing and is left out.

    Parameters
    ----------
    model : keras.Model
        Flat model.
    count : int, 1 or more
        Largest number of groups; a model with several layers has at least two.

    Returns
    -------
    list of list of str
        Names of the layers of each group.
    """
    names = [
        layer.name
        for layer in reversed(model.layers)
        if layer.weights and not isinstance(layer, keras.layers.Normalization)
    ]
    below = np.array_split(names[1:], max(min(count, len(names)) - 1, 1))
    return [names[:1], *(part.tolist() for part in below if len(part))]


def randomisations(
    model: keras.Model, groups: Sequence[Sequence[str]], seed: int = 0
) -> Iterator[tuple[str, str, keras.Model]]:
    """Yield models with randomised groups of layers: cascading, then independent.

    First the groups are randomised one after the other and stay randomised; then each group is
    randomised by itself. Kernels, biases, and BatchNorm's scale, offset and moving statistics
    return to their values before training; all other layers keep their weights exactly. It is the
    same model each time with other weights, so that what has been compiled for it is used again.

    Parameters
    ----------
    model : keras.Model
        Flat model; it is not changed.
    groups : sequence of sequence of str
        Names of layers, from `blocks`.
    seed : int
        Seed of the layers' own initialisers. The new weights of a layer depend only on the seed. An
        initialiser with a seed of its own ignores this one.

    Yields
    ------
    order : str
        "cascading" or "independent".
    group : str
        Number of the group and name of its last layer.
    model : keras.Model
        Randomised model, valid until the next step.
    """
    fresh, copy = _cloned(model, seed), _cloned(model, seed)
    copy.set_weights(model.get_weights())
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


def _cloned(model: keras.Model, seed: int) -> keras.Model:
    """The same network before training."""
    state = random.getstate()
    random.seed(seed)  # Keras' initialisers draw their seeds from it
    try:
        return keras.models.clone_model(model)
    finally:
        random.setstate(state)


def _give_weights(source: keras.Model, receiver: keras.Model, layers: Collection[str]) -> None:
    for name in layers:
        receiver.get_layer(name).set_weights(source.get_layer(name).get_weights())
