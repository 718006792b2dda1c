"""A network with two exits: one that holds on other collections, and a bounded one that does not.

Both exits look at the lungs only: their feature maps are weighted with the probability of a lung,
from the U-Net of `covid_lab.lungs.network`, before they are averaged.

- The *robust exit* is a linear model of the features in the middle of the pretrained network, which
  stay frozen. Textures are still local there, and few directions separate collections.
- The *collection exit* is the fine-tuned end of the network. It learns what distinguishes the two
  collections of the training data and is worthless on others. A tanh bounds its contribution. It
  is nearly constant over the images of a further collection: it preserves the ranking by the robust
  exit and shifts all logits by about the same amount, which `recentre` removes.

The model takes images, so it can be used wherever a course model can. It is flat except for the
U-Net, of which only the output matters. Grad-CAM explains the layer ``evidence``, which holds the
maps of both exits.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from covid_lab.lungs.network import FIELD, load_network
from covid_lab.lungs.network import SIDE as LUNG_SIDE
from covid_lab.lungs.segmentation import WEIGHTS as LUNG_WEIGHTS
from covid_project.files import fingerprint, whole_file, write_text
from covid_project.models import build_backbone, model_fingerprint

BACKBONE = "MobileNetV2"
SHALLOW = "block_10_expand_relu"  # features of the robust exit, at 1/16 of the side
CUT = "block_12_add"  # fine-tuned above
DEEP = "out_relu"  # features of the collection exit, at 1/32 of the side
STRIDE = 16
LEAST_WEIGHT = 0.003  # of a place outside the lungs: an image without a lung is averaged as it is
STEEPNESS = 2.0  # of the tanh, in standard deviations of the collection exit's logits


@dataclass(frozen=True, eq=False)
class Parts:
    """The network before its exits are trained.

    Attributes
    ----------
    images : keras.KerasTensor, (N, S, S, 1), 0–255
        Input: grey values.
    lungs : keras.KerasTensor, (N, S/16, S/16, 1), > 0
        Weight of each place; the mean over an image is 1.
    shallow : keras.KerasTensor, (N, S/16, S/16, C)
        Feature maps of the robust exit.
    cut : keras.KerasTensor, (N, S/16, S/16, C)
        Feature maps below the fine-tuned layers.
    deep : keras.KerasTensor, (N, S/16, S/16, C)
        Feature maps of the collection exit, enlarged from S/32.
    frozen : str
        Fingerprint of the weights that are never trained.
    """

    images: keras.KerasTensor
    lungs: keras.KerasTensor
    shallow: keras.KerasTensor
    cut: keras.KerasTensor
    deep: keras.KerasTensor
    frozen: str


def build_parts(image_size: int, *, weights: str = "imagenet") -> Parts:
    """Build the pretrained network and the lung weights.

    Parameters
    ----------
    image_size : int, a multiple of 32
        Pixels along each side.
    weights : str
        Weights of the backbone, see `covid_project.models.build_backbone`.

    Returns
    -------
    Parts
        Tensors of one graph.

    Raises
    ------
    ValueError
        The image size is not a multiple of 32.
    WeightsUnavailable
        The pretrained weights are neither in the Keras cache nor downloadable.
    """
    if image_size % 32:
        raise ValueError(f"image_size is {image_size}; allowed: a multiple of 32, such as 160")
    backbone = build_backbone(BACKBONE, image_size, weights=weights)
    network = _renamed(load_network(LUNG_WEIGHTS))
    network.trainable = False
    small = layers.Resizing(LUNG_SIDE, LUNG_SIDE, antialias=True, name="lung_images")
    weigh = LungWeights(image_size // STRIDE, name="lung_weights")
    lungs = weigh(network(small(backbone.input)))
    at = {name: backbone.get_layer(name).output for name in (SHALLOW, CUT, DEEP)}
    lower = keras.Model(backbone.input, [at[SHALLOW], at[CUT], lungs])
    deep = layers.UpSampling2D(2, name="enlarged")(at[DEEP])
    frozen = fingerprint(*lower.get_weights())
    return Parts(backbone.input, lungs, at[SHALLOW], at[CUT], deep, frozen)


def _renamed(network: keras.Model) -> keras.Model:
    """Copy a network with layer names that do not depend on what Keras built before."""
    numbers = itertools.count()

    def numbered(layer):
        return type(layer).from_config({**layer.get_config(), "name": f"lung_{next(numbers)}"})

    copy = keras.models.clone_model(network, clone_function=numbered)
    copy.set_weights(network.get_weights())
    return copy


@keras.saving.register_keras_serializable(package="covid_lab")
class LungWeights(layers.Layer):
    """Turn the logits of the lung network into weights of places, with mean 1 over an image.

    The weight is the probability of a lung, averaged over the place, plus 0.003. An image without a
    lung is therefore weighted evenly.

    Parameters
    ----------
    side : int, from 1
        Places along each side of the result.
    **options : object
        Options of `keras.layers.Layer`, such as ``name``.
    """

    def __init__(self, side: int, **options):
        super().__init__(trainable=False, **options)
        self.side = side

    def call(self, logits):
        """Compute the weights of places.

        Parameters
        ----------
        logits : tensor, float (N, L, L, 3)
            Output of the lung network.

        Returns
        -------
        tensor, float (N, side, side, 1), > 0
            Weights with mean 1 over each image.
        """
        field = keras.ops.softmax(logits)[..., FIELD : FIELD + 1]
        fine = (STRIDE * self.side,) * 2
        field = keras.ops.image.resize(field, fine)
        field = keras.ops.average_pool(field, STRIDE, STRIDE) + LEAST_WEIGHT
        return field / keras.ops.mean(field, axis=(1, 2), keepdims=True)

    def get_config(self):
        """Collect the arguments from which Keras rebuilds the layer.

        Returns
        -------
        dict of str to object
            The options of `keras.layers.Layer` and ``side``.
        """
        return {**super().get_config(), "side": self.side}


def pooled_features(parts: Parts) -> keras.Model:
    """Build the network of the shallow features, averaged over the lungs and over the image.

    Parameters
    ----------
    parts : Parts
        The pretrained network and the lung weights.

    Returns
    -------
    keras.Model
        Images (N, S, S, 1) → features (N, 2 C), first those averaged over the lungs.
    """
    average = layers.GlobalAveragePooling2D()
    both = [average(layers.Multiply()([parts.shallow, parts.lungs])), average(parts.shallow)]
    return keras.Model(parts.images, layers.Concatenate()(both))


def cut_features(parts: Parts) -> keras.Model:
    """Build the network of the feature maps at the cut.

    Parameters
    ----------
    parts : Parts
        The pretrained network and the lung weights.

    Returns
    -------
    keras.Model
        Images (N, S, S, 1) → maps (N, S/16, S/16, C + 1); the last channel holds the lung weights.
    """
    return keras.Model(parts.images, layers.Concatenate()([parts.cut, parts.lungs]))


def collection_network(parts: Parts, *, dropout: float, lungs_only: bool = True) -> keras.Model:
    """Build the network to fine-tune, from `cut_features` to the logit.

    Its layers are those of ``parts``: training changes them. The statistics of BatchNormalization
    stay frozen.

    Parameters
    ----------
    parts : Parts
        The pretrained network and the lung weights.
    dropout : float, in [0, 1)
        Fraction of the pooled features that dropout sets to 0.
    lungs_only : bool
        Whether features are averaged over the lungs (True) or over the whole image (False).

    Returns
    -------
    keras.Model
        Maps (N, S/16, S/16, C + 1) → logit (N, 1).
    """
    above = keras.Model(parts.cut, parts.deep)
    for layer in above.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    features = keras.Input((*parts.cut.shape[1:3], parts.cut.shape[-1] + 1))
    deep = above(features[..., :-1])
    weighted = deep * features[..., -1:] if lungs_only else deep
    pooled = layers.GlobalAveragePooling2D()(weighted)
    logit = layers.Dense(1, name="logit")(layers.Dropout(dropout)(pooled))
    return keras.Model(features, logit, name="collection_network")


@dataclass(frozen=True, eq=False)
class Exits:
    """The trained exits: linear models of pooled features, and how they are added.

    Attributes
    ----------
    robust : tuple of np.ndarray, float (C,), and float
        Kernel and bias of the robust exit, whose logits have standard deviation 1 on the own
        validation images.
    collection : tuple of np.ndarray, float (C,), and float
        The same of the collection exit.
    share : float, in [0, 1]
        Weight of the collection exit; that of the robust one is ``1 - share``.
    slope : float
        Factor of the weighted sum; the logit is ``slope * (weighted sum) + bias``.
    bias : float
        Added to the scaled sum.
    """

    robust: tuple[np.ndarray, float]
    collection: tuple[np.ndarray, float]
    share: float
    slope: float = 1.0
    bias: float = 0.0


def added(robust: np.ndarray, collection: np.ndarray, share: float) -> np.ndarray:
    """Add the logits of both exits, each of standard deviation 1 on the own validation images.

    Parameters
    ----------
    robust : np.ndarray, float (N,)
        Logits of the robust exit.
    collection : np.ndarray, float (N,)
        Logits of the collection exit.
    share : float, in [0, 1]
        Weight of the collection exit.

    Returns
    -------
    np.ndarray, float (N,)
        ``(1 - share) * robust + share * tanh(2 * collection)``.
    """
    return (1 - share) * robust + share * np.tanh(STEEPNESS * collection)


def join(parts: Parts, exits: Exits) -> keras.Model:
    """Build the whole model from the network and the trained exits.

    Parameters
    ----------
    parts : Parts
        The network; the model uses its layers.
    exits : Exits
        Kernels and biases.

    Returns
    -------
    keras.Model
        Images (N, S, S, 1) → logit (N, 1), flat and not compiled.
    """
    maps = layers.Concatenate(name="maps")([parts.shallow, parts.deep])
    inside = layers.Multiply(name="maps_in_lungs")([maps, parts.lungs])
    evidence = layers.ReLU(name="evidence")(inside)  # nothing in it is negative
    pooled = layers.GlobalAveragePooling2D(name="features")(evidence)
    robust = layers.Dense(1, name="robust_exit")
    collection = layers.Dense(1, activation="tanh", name="collection_exit")
    logit = layers.Dense(1, name="logit")
    both = layers.Concatenate(name="exits")([robust(pooled), collection(pooled)])
    model = keras.Model(parts.images, logit(both), name="two_exits")
    kernel, bias = exits.robust
    _set(robust, np.pad(kernel, (0, parts.deep.shape[-1])), bias)  # sees its own maps only
    kernel, bias = exits.collection
    kernel = np.pad(kernel, (parts.shallow.shape[-1], 0))
    _set(collection, STEEPNESS * kernel, STEEPNESS * bias)
    shares = np.array([1 - exits.share, exits.share])
    _set(logit, exits.slope * shares, exits.bias)
    return model


def _set(layer: layers.Dense, kernel: np.ndarray, bias: float) -> None:
    layer.set_weights([np.float32(kernel).reshape(-1, 1), np.float32([bias])])


def recentre(model: keras.Model, logits: np.ndarray) -> float:
    """Move a model's logits so that their mean over some unlabelled images is 0.

    No label is needed, but an assumption is made: about half of the images show the disease, as in
    the training data. Where it is wrong, the threshold is wrong; the AUC does not change.

    Parameters
    ----------
    model : keras.Model
        A model that ends in the layer ``logit``; changed in place.
    logits : np.ndarray, float (N,)
        The model's logits of unlabelled images of the other collection.

    Returns
    -------
    float
        The change of the bias.
    """
    shift = -float(np.mean(logits))
    move(model, shift)
    return shift


def move(model: keras.Model, shift: float) -> None:
    """Add a number to all logits of a model, in place.

    Parameters
    ----------
    model : keras.Model
        A model that ends in the layer ``logit``.
    shift : float
        The number to add.
    """
    kernel, bias = model.get_layer("logit").get_weights()
    model.get_layer("logit").set_weights([kernel, bias + np.float32(shift)])


# ---- keeping ------------------------------------------------------------------------------------


def round_kernels(network: keras.Model) -> None:
    """Round the kernels of all convolutions to half precision, as `keep` stores them.

    Parameters
    ----------
    network : keras.Model
        Changed in place.
    """
    halved = [np.float32(np.float16(w)) if w.ndim == 4 else w for w in network.get_weights()]
    network.set_weights(halved)


def keep(folder: Path, name: str, model: keras.Model, parts: Parts, **record: object) -> Path:
    """Store the trained weights of a model, ``<name>.npz``, and its record, ``<name>.json``.

    Pretrained weights that training did not change are left out, as they are others' work.

    Parameters
    ----------
    folder : Path
        Folder for both files.
    name : str
        Name of the model.
    model : keras.Model
        From `join`, with rounded kernels; its layers become untrainable.
    parts : Parts
        The parts that it was joined from.
    **record : object
        Further entries of the record, such as the settings of the training.

    Returns
    -------
    Path
        Path of the record, for `load`.
    """
    model.trainable = False  # which layers were trained is part of a model's fingerprint
    trained = {
        f"{layer.name}/{index}": np.float16(weight) if weight.ndim == 4 else weight
        for layer in _trained(model, parts)
        for index, weight in enumerate(layer.get_weights())
    }
    with whole_file(Path(folder) / f"{name}.npz") as part:
        np.savez_compressed(part, **trained)
    whole = {
        "trained": f"{name}.npz",
        "shift": 0.0,
        "model": model_fingerprint(model),
        "image_size": model.input_shape[1],
        "weights": "imagenet",
        "frozen": parts.frozen,
    }
    path = Path(folder) / f"{name}.json"
    write_text(path, json.dumps(whole | record, indent=2) + "\n")
    return path


def keep_moved(path: Path, name: str, model: keras.Model, shift: float) -> Path:
    """Store a model that differs from a stored one only in the bias of its last layer.

    The new record refers to the weights of the stored model.

    Parameters
    ----------
    path : Path
        Record of the stored model.
    name : str
        Name of the new model.
    model : keras.Model
        The stored model, moved by ``shift``.
    shift : float
        Difference of the biases.

    Returns
    -------
    Path
        Path of the new record, in the folder of the stored one.
    """
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    record |= {"shift": shift, "model": model_fingerprint(model)}
    moved = Path(path).with_name(f"{name}.json")
    write_text(moved, json.dumps(record, indent=2) + "\n")
    return moved


def load(path: Path) -> keras.Model:
    """Load a model that `keep` or `keep_moved` stored.

    Parameters
    ----------
    path : Path
        The record, ``<name>.json``.

    Returns
    -------
    keras.Model
        Images (N, S, S, 1) → logit (N, 1).

    Raises
    ------
    ValueError
        The pretrained weights or the lung network are not those that the exits were trained on, or
        the record does not belong to the stored weights.
    WeightsUnavailable
        The pretrained weights are neither in the Keras cache nor downloadable.
    """
    path = Path(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    parts = build_parts(record["image_size"], weights=record["weights"])
    if parts.frozen != record["frozen"]:
        raise ValueError(
            f"{path.name} was trained on other frozen weights ({record['frozen']}) than those here "
            f"({parts.frozen}): the ImageNet weights of {BACKBONE} or the lung network differ"
        )
    empty = np.zeros(parts.shallow.shape[-1]), 0.0
    model = join(parts, Exits(empty, (np.zeros(parts.deep.shape[-1]), 0.0), 0.5))
    with np.load(path.with_name(record["trained"]), allow_pickle=False) as trained:
        for layer in _trained(model, parts):
            count = len(layer.get_weights())
            layer.set_weights([np.float32(trained[f"{layer.name}/{k}"]) for k in range(count)])
    move(model, record["shift"])
    model.trainable = False
    if model_fingerprint(model) != record["model"]:
        raise ValueError(f"{path.name} does not describe the weights in {record['trained']}")
    return model


def _trained(model: keras.Model, parts: Parts) -> list[layers.Layer]:
    """The trained layers of the model: between the cut and the deep features, and the exits."""
    above = [
        layer
        for layer in keras.Model(parts.cut, parts.deep).layers
        if layer.weights and not isinstance(layer, layers.BatchNormalization)
    ]
    return above + [model.get_layer(name) for name in ("robust_exit", "collection_exit", "logit")]
