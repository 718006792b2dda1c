"""Benchmarks of explanations, against tf-keras-vis, plain prediction and the published loop.

Ratios are the peer's time over ours. A method that may cost 1.05 predictions is thus promised at
1 / 1.05. The images are drawn; a network's time does not depend on their content.
"""

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from lime.lime_image import LimeImageExplainer
from tf_keras_vis.gradcam import Gradcam

from benchmarks.runner import Benchmark
from covid_lab.explain.gradcam import heatmap_function, last_spatial_layer
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.lime import lime, segment
from covid_lab.explain.occlusion import occlusion
from covid_lab.models import available_backbone
from covid_project.gradcam import normalize_heatmaps
from covid_project.models import baseline_cnn, transfer_model
from covid_project.normalization import normalization_layer

SAME_MAP = 1e-3  # of maps in [0, 1]: a quarter of a grey level
# ReLUs within rounding of 0 flip, and each changes the gradient of all layers below. In float32, a
# trained network's maps of early layers differ from those in float64 by at most 3e-4 (MobileNetV2,
# median over 16 images; worst image: 0.01). Those of a random network differ more.
SAME_RANDOM_MAP = 0.1
# Relative to the scores' scale; absolute below 1, where a random network's logit is a small
# difference of large terms and inherits their rounding.
SAME_SCORE = 1e-5
GREY = 127.5  # of the published patch
SEED = 21  # of random weights
# The last features of MobileNetV2 at a quarter, an eighth, … of the image's side.
STAGES = ["block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu", "out_relu"]


@dataclass(frozen=True)
class Scale:
    """Scale of the benchmarks: the promised one by default, or tiny to test them."""

    image_size: int = 224
    baseline_size: int = 128
    batch: int = 16
    patch: int = 20
    stride: int = 10
    samples: int = 500  # of LIME
    superpixels: int = 50
    repeats: int = 9
    long_repeats: int = 3  # of the loops that take half a minute


def benchmarks(scale: Scale | None = None) -> Iterator[Benchmark]:
    """Measure all explanations, one network at a time.

    Each part starts when the one before is finished, so that no two networks share the memory.

    Parameters
    ----------
    scale : Scale, optional
        Scale of the benchmarks; None: as promised.

    Yields
    ------
    Benchmark
        One comparison.
    """
    scale = scale or Scale()
    for part in (_mobilenet, _resnet, _baseline, _pneumonia, _lime_samples):
        yield from part(scale)
        keras.backend.clear_session()


def _mobilenet(scale: Scale) -> Iterator[Benchmark]:
    """Measure Grad-CAM with the network of the committed run, at one layer and at four."""
    keras.utils.set_random_seed(SEED)
    images = _images(scale.batch, scale.image_size)
    backbone, weights = _quietly(available_backbone, "MobileNetV2", images)
    model = transfer_model(backbone, dropout=0.5)
    yield from _grad_cam("MobileNetV2", 6, model, weights, images, scale)
    yield from _several_layers("MobileNetV2", STAGES, 12, model, weights, images, scale)


def _resnet(scale: Scale) -> Iterator[Benchmark]:
    """Measure Grad-CAM and occlusion with ResNet50V2; its receptive fields soon cover the image."""
    keras.utils.set_random_seed(SEED)
    images = _images(scale.batch, scale.image_size)
    backbone, weights = _quietly(available_backbone, "ResNet50V2", images, weights="random")
    model = transfer_model(backbone, dropout=0.5)
    yield from _grad_cam("ResNet50V2", 6, model, weights, images, scale)
    yield from _occlusion("ResNet50V2", 5, model, weights, images[:1], scale)


def _baseline(scale: Scale) -> Iterator[Benchmark]:
    """Measure Grad-CAM with the network that is trained from scratch."""
    keras.utils.set_random_seed(SEED)
    images = _images(scale.batch, scale.baseline_size)
    normalization = normalization_layer("fixed", images)
    model = baseline_cnn(scale.baseline_size, normalization, filters=16, dropout=0.5)
    # Of the five milliseconds of a pass one is for the maps: nothing is promised against it.
    yield from _grad_cam("baseline CNN", 8, model, "random", images, scale, prediction=np.nan)


def _pneumonia(scale: Scale) -> Iterator[Benchmark]:
    """Measure occlusion with the network, patch and stride of the published pneumonia notebook."""
    keras.utils.set_random_seed(SEED)
    images = _images(1, scale.image_size, channels=3)
    model = keras.Sequential([keras.Input(images.shape[1:]), layers.Rescaling(1 / 255)])
    for filters in (32, 64, 128, 256):
        model.add(layers.Conv2D(filters, 3, activation="relu", padding="same"))
        model.add(layers.MaxPooling2D())
        model.add(layers.BatchNormalization())
    model.add(layers.Flatten())
    for units in (512, 256):
        model.add(layers.Dense(units, activation="relu"))
        model.add(layers.Dropout(0.5))
    model.add(layers.Dense(1))
    yield from _occlusion("pneumonia CNN", 20, model, "random", images, scale)


def _lime_samples(scale: Scale) -> Iterator[Benchmark]:
    """Measure LIME on one image, against its forward passes and against the library."""
    keras.utils.set_random_seed(SEED)
    images = _images(1, scale.image_size)
    backbone, weights = _quietly(available_backbone, "MobileNetV2", images)
    model = transfer_model(backbone, dropout=0.5)
    image = images[0].astype(np.float32)
    segments = segment(image, scale.superpixels)
    forward = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((None, *image.shape), tf.float32)],
    )
    samples = []  # of the library, filled while it runs

    def two_columns(pictures: np.ndarray) -> np.ndarray:
        samples.append(pictures[..., :1].astype(np.float32))
        logits = forward(samples[-1]).numpy()
        return np.concatenate([-logits, logits], axis=1)

    def library() -> np.ndarray:
        samples.clear()
        found = LimeImageExplainer(random_state=0).explain_instance(
            np.repeat(image, 3, axis=-1),
            two_columns,
            labels=(1,),
            top_labels=None,
            num_samples=scale.samples,
            batch_size=32,
            segmentation_fn=lambda _: segments,
            random_seed=0,
        )
        return np.array([weight for _, weight in sorted(found.local_exp[1])])[segments]

    def ours() -> np.ndarray:
        found = lime(model, images, 1, scale.superpixels, scale.samples, runs=1)
        return found.raw[0]

    library()
    facts = {
        "name": f"LIME, {scale.samples} samples, MobileNetV2, {scale.image_size} px, 1 image",
        "ours": ours,
        "weights": weights,
        "repeats": scale.long_repeats,
    }
    batches = list(samples)
    yield Benchmark(
        against="the forward passes alone, compiled",
        peer=lambda: [forward(batch).numpy() for batch in batches],
        promised=1 / 1.25,
        **facts,
    )
    yield Benchmark(
        against="the lime library, with the compiled forward pass",
        peer=library,
        agreement=lambda found, expected: np.abs(found - expected).max() / np.abs(expected).max(),
        tolerance=1e-3,  # least squares passes the networks' rounding on
        **facts,
    )


def _grad_cam(
    network: str,
    promised: float,
    model: keras.Model,
    weights: str,
    images: np.ndarray,
    scale: Scale,
    prediction: float = 1 / 1.05,
) -> Iterator[Benchmark]:
    """Compare one layer with tf-keras-vis, the compiled prediction alone, and `predict`."""
    layer = last_spatial_layer(model)
    explain = heatmap_function(model, [layer])
    facts = {
        "name": f"Grad-CAM, {network}, {images.shape[1]} px, batch {len(images)}",
        "ours": lambda: explain(images, 1)[layer],
        "weights": weights,
        "repeats": scale.repeats,
    }
    yield Benchmark(
        against="tf-keras-vis",
        peer=lambda: _library_maps(model, images, layer),
        promised=promised,
        agreement=lambda ours, theirs: np.abs(ours.maps - theirs).max(),
        tolerance=SAME_MAP,
        **facts,
    )
    forward = tf.function(lambda images: model(images, training=False))
    for against, peer, least in (
        ("compiled prediction", lambda: forward(images.astype(np.float32)).numpy(), prediction),
        ("predict", lambda: model.predict(images, batch_size=len(images), verbose=0), np.nan),
    ):
        yield Benchmark(
            against=against,
            peer=peer,
            promised=least,
            agreement=lambda ours, logits: _relative(ours.scores, logits[:, 0]),
            tolerance=10 * SAME_SCORE,  # roundings of 50 layers
            **facts,
        )


def _several_layers(
    network: str,
    chosen: list[str],
    promised: float,
    model: keras.Model,
    weights: str,
    images: np.ndarray,
    scale: Scale,
) -> Iterator[Benchmark]:
    """Compare all layers in one pass with tf-keras-vis layer by layer."""
    explain = heatmap_function(model, chosen)
    yield Benchmark(
        name=f"Grad-CAM at {len(chosen)} layers, {network}, {images.shape[1]} px, "
        f"batch {len(images)}",
        against="tf-keras-vis, layer by layer",
        ours=lambda: [heatmaps.maps for heatmaps in explain(images, 1).values()],
        peer=lambda: [_library_maps(model, images, layer) for layer in chosen],
        promised=promised,
        agreement=lambda ours, theirs: max(
            np.median(np.abs(maps - others).max(axis=(1, 2)))
            for maps, others in zip(ours, theirs, strict=True)
        ),
        tolerance=SAME_RANDOM_MAP if weights == "random" else SAME_MAP,
        weights=weights,
        repeats=scale.repeats,
    )


def _occlusion(
    network: str,
    promised: float,
    model: keras.Model,
    weights: str,
    image: np.ndarray,
    scale: Scale,
) -> Iterator[Benchmark]:
    """Compare one image (1, H, W, C) with the published loop and with patches in batches.

    The published loop reads the probability and leaves out the last rows and columns. Here it reads
    the logit, which is compared, and both sides use the same patches.
    """
    forward = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((None, *image.shape[1:]), tf.float32)],
    )
    picture = image[0].astype(np.float32)
    starts = sorted(
        {*range(0, len(picture) - scale.patch, scale.stride), len(picture) - scale.patch}
    )
    squares = [
        (slice(y, y + scale.patch), slice(x, x + scale.patch)) for y in starts for x in starts
    ]

    def patch_by_patch() -> np.ndarray:
        logits = [model.predict(picture[None], verbose=0)[0, 0]]
        for square in squares:
            occluded = picture.copy()
            occluded[square] = GREY
            logits.append(model.predict(occluded[None], verbose=0)[0, 0])
        return np.array(logits)

    def whole_batches() -> np.ndarray:
        logits = [forward(picture[None]).numpy()[:, 0]]
        for first in range(0, len(squares), 32):
            batch = np.stack([picture] * len(squares[first : first + 32]))
            for occluded, square in zip(batch, squares[first : first + 32], strict=True):
                occluded[square] = GREY
            logits.append(forward(batch).numpy()[:, 0])
        return np.concatenate(logits)

    def agreement(ours: Heatmaps, logits: np.ndarray) -> float:
        total, coverage = np.zeros((2, *picture.shape[:2]))
        for square, covered in zip(squares, logits[1:], strict=True):
            total[square] += logits[0] - covered
            coverage[square] += 1
        return np.abs(ours.raw[0] - total / coverage).max() / max(np.abs(logits).max(), 1)

    for against, peer, least, repeats in (
        ("predict, patch by patch, as published", patch_by_patch, promised, scale.long_repeats),
        ("compiled prediction of whole batches", whole_batches, np.nan, scale.repeats),
    ):
        yield Benchmark(
            name=f"occlusion {scale.patch}/{scale.stride}, {network}, {len(picture)} px, 1 image",
            against=against,
            ours=lambda: occlusion(model, image, 1, scale.patch, scale.stride, fill=GREY),
            peer=peer,
            promised=least,
            agreement=agreement,
            tolerance=SAME_SCORE,
            weights=weights,
            repeats=min(repeats, scale.long_repeats),
        )


def _library_maps(model: keras.Model, images: np.ndarray, layer: str) -> np.ndarray:
    """Return maps of tf-keras-vis at the layer's size, normalised like ours."""
    maps = Gradcam(model, model_modifier=None)(
        lambda logits: logits[:, 0],
        images.astype(np.float32),
        penultimate_layer=layer,
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    return normalize_heatmaps(np.asarray(maps))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(found - expected).max() / np.abs(expected).max()


def _images(count: int, size: int, channels: int = 1) -> np.ndarray:
    """Draw grey values (count, size, size, channels), uint8, with structure at two scales."""
    generator = np.random.default_rng(0)
    side = -(-size // 8)
    coarse = generator.uniform(40, 215, (count, 8, 8, channels)).repeat(side, 1).repeat(side, 2)
    fine = generator.normal(0, 20, (count, size, size, channels))
    return np.clip(coarse[:, :size, :size] + fine, 0, 255).astype(np.uint8)


def _quietly(build: Callable, *arguments, **options):
    """Build a backbone with the weights that are available; the row names them."""
    with redirect_stdout(StringIO()):
        return build(*arguments, without_weights="random", **options)
