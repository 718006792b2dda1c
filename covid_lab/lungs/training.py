"""Train the network that segments lungs (`covid_lab.lungs`) and measure it on held-out images.

    python -m covid_lab.lungs.training --data FOLDER [--test] [--measure-only]

The folder holds the archives named in `data`. No source has both outlines of a lung, so the
training has two stages. The first learns the outline to the spine from children. Its network then
decides, wherever it is sure, which pixels between the lungs of adults belong to a lung behind the
heart. The second stage learns from adults, children and drawn chests (`phantoms`).

Writes the weights to `segmentation.WEIGHTS` and a record with settings, versions, fingerprints of
the data and Dice coefficients to `segmentation.RECORD`. The test images are read with ``--test``
only. Training takes about half an hour on two cores.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from covid_lab.lungs import segmentation
from covid_lab.lungs.augmentation import distort
from covid_lab.lungs.classical import segment_lungs_classically
from covid_lab.lungs.data import ARCHIVES, TEST_SETS, Masks, decide_heart, read_all, read_pairs
from covid_lab.lungs.network import (
    FIELD,
    HEART,
    OUTSIDE,
    SIDE,
    WIDTHS,
    build_network,
    compile_probabilities,
    write_weights,
)
from covid_lab.masks import dice
from covid_lab.statistics import mean_interval
from covid_project.files import fingerprint, versions, write_text
from covid_project.training import cosine_schedule, set_seed

SEED = 2026
BATCH, LEARNING_RATE, WEIGHT_DECAY = 32, 2e-3, 1e-4
STEPS = (1000, 4200)  # batches of the two stages
FRACTIONS = (  # of the examples, in the two stages
    {"children": 0.95, "no chest": 0.05},
    {"adults": 0.4, "children": 0.4, "phantoms": 0.15, "no chest": 0.05},
)

Sources = Mapping[str, tuple[np.ndarray, np.ndarray]]  # name → images and labels, uint8 (N, S, S)

# ---- training -----------------------------------------------------------------------------------


def marginal_loss(labels, logits):
    """Compute cross-entropy plus half the soft Dice loss for labels that allow several classes.

    The probability of a set of classes is the sum over the set. The Dice loss is that of the region
    whose extent is known: the lung field in adults, with the lung behind the heart in children.
    Shi et al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation", Medical Image Analysis 70:101979; without its exclusion loss.

    Parameters
    ----------
    labels : tf.Tensor, uint8 (N, S, S)
        Sets of classes, bit k for class k.
    logits : tf.Tensor, float32 (N, S, S, 3)

    Returns
    -------
    tf.Tensor, float32 (N,)
    """
    bits = tf.constant([1 << OUTSIDE, 1 << HEART, 1 << FIELD], tf.uint8)
    allowed = tf.bitwise.bitwise_and(tf.cast(labels, tf.uint8)[..., None], bits) > 0
    allowed = tf.cast(allowed, tf.float32)  # (N, S, S, 3)
    log_p = tf.nn.log_softmax(logits)
    entropy = -tf.reduce_logsumexp(log_p + tf.math.log(allowed + 1e-7), axis=-1)
    area = (1, 2)
    region = allowed[..., FIELD] * (1 - allowed[..., OUTSIDE])
    is_child = tf.reduce_max(region * allowed[..., HEART], area, keepdims=True)
    probability = tf.exp(log_p)
    found = probability[..., FIELD] + is_child * probability[..., HEART]
    both = tf.reduce_sum(found * region, area)
    either = tf.reduce_sum(found, area) + tf.reduce_sum(region, area)
    soft_dice = (2 * both + 1) / (either + 1)  # 1 where neither has a pixel
    return tf.reduce_mean(entropy, area) + (1 - soft_dice) / 2


def examples(sources: Sources, fractions: Mapping[str, float], seed: int) -> Iterator:
    """Yield distorted images and labels without end.

    Parameters
    ----------
    sources : mapping of str to tuple of np.ndarray
        Name → images and labels, both uint8 (N, S, S).
    fractions : mapping of str to float, 0–1
        Name → fraction of the examples.
    seed : int, from 0

    Yields
    ------
    image, labels : np.ndarray, uint8 (S, S)
    """
    rng = np.random.default_rng(seed)
    names, odds = list(fractions), list(fractions.values())
    while True:
        images, labels = sources[names[rng.choice(len(names), p=odds)]]
        row = rng.integers(len(images))
        yield distort(images[row], labels[row], rng)


def train(sources: Sources, steps: tuple[int, int] = STEPS) -> keras.Model:
    """Train the network in two stages.

    Parameters
    ----------
    sources : mapping
        As from `data.read_all`.
    steps : tuple of int
        Batches of each stage.

    Returns
    -------
    keras.Model
    """
    set_seed(SEED)
    network = build_network()
    _fit(network, examples(sources, FRACTIONS[0], SEED), steps[0])
    images, labels = sources["adults"]
    decided = decide_heart(labels, _lung_probability(network, images))
    sources = {**sources, "adults": (images, decided)}
    _fit(network, examples(sources, FRACTIONS[1], SEED + 1), steps[1])
    return network


def _fit(network: keras.Model, drawn: Iterator, steps: int) -> None:
    """Train for some batches, in which the learning rate rises and falls to 0."""
    one = tf.TensorSpec((SIDE, SIDE), tf.uint8)
    batches = tf.data.Dataset.from_generator(lambda: drawn, output_signature=(one, one))
    batches = batches.batch(BATCH).map(lambda images, labels: (images[..., None], labels))
    network.compile(
        keras.optimizers.AdamW(cosine_schedule(LEARNING_RATE, steps), weight_decay=WEIGHT_DECAY),
        loss=marginal_loss,
    )
    lines = max(1, steps // 300)  # of progress
    network.fit(
        batches.prefetch(4), epochs=lines, steps_per_epoch=steps // lines, shuffle=False, verbose=2
    )


def _lung_probability(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Probability of lung, float32 (N, S, S): the mean of the image's and its mirror image's."""
    probabilities = compile_probabilities(network)
    outside = probabilities(images)[..., OUTSIDE]
    mirrored = probabilities(images[:, :, ::-1])[:, :, ::-1, OUTSIDE]
    return 1 - (outside + mirrored) / 2


# ---- measuring ----------------------------------------------------------------------------------


def _mean_dice(values: np.ndarray) -> dict[str, float]:
    """Mean Dice coefficient with its 95 % interval (bootstrap over images), the lowest, and n."""
    mean, low, high, _ = mean_interval(values)
    return {
        "dice": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "lowest": round(float(values.min()), 4),
        "n": len(values),
    }


def measure(found: Masks, behind_heart: bool, probabilities: segmentation.Probabilities) -> dict:
    """Measure the network and the classical segmentation on the same images.

    Parameters
    ----------
    found : Masks
    behind_heart : bool
        Whether the masks reach the spine.
    probabilities : callable
        See `network.compile_probabilities`.

    Returns
    -------
    dict
        behind_heart, and three summaries of `_mean_dice`: network (in the convention of the masks),
        fields (the network's lung fields) and classical (which only knows lung fields).
    """
    convention = segmentation.masks_from(probabilities, found.images, behind_heart)
    fields = segmentation.masks_from(probabilities, found.images, behind_heart=False)
    classical = segment_lungs_classically(found.images)
    named = {"network": convention, "fields": fields, "classical": classical}
    dices = {name: _mean_dice(dice(masks, found.masks)) for name, masks in named.items()}
    return {"behind_heart": behind_heart, **dices}


def _precision_loss(network: keras.Model, stored: segmentation.Probabilities, validation) -> dict:
    """Largest change of a probability and of a Dice coefficient by half precision."""
    exact = compile_probabilities(network)
    probability, coefficient = 0.0, 0.0
    for found, behind_heart in validation.values():
        difference = np.abs(exact(found.images) - stored(found.images)).max()
        probability = max(probability, float(difference))
        both = [
            dice(segmentation.masks_from(one, found.images, behind_heart), found.masks)
            for one in (exact, stored)
        ]
        coefficient = max(coefficient, float(np.abs(both[0] - both[1]).max()))
    return {"probability": round(probability, 4), "dice": round(coefficient, 4)}


def _measure_test(data: Path) -> dict[str, dict]:
    """Result of `measure` for each of the `TEST_SETS` whose archive is in the folder."""
    probabilities = segmentation.network_probabilities()
    return {
        name: measure(read_pairs(data / archive, folder), behind_heart, probabilities)
        for name, (archive, folder, behind_heart) in TEST_SETS.items()
        if (data / archive).is_file()
    }


def main() -> None:
    """Train, write the weights, measure, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the zips")
    parser.add_argument("--test", action="store_true", help="measure on the test images, too")
    parser.add_argument("--measure-only", action="store_true", help="keep the weights as they are")
    options = parser.parse_args()
    sources, validation = read_all(options.data, SEED)
    if options.measure_only:
        record = json.loads(segmentation.RECORD.read_text("utf-8"))
        probabilities = segmentation.network_probabilities()
    else:
        start = time.monotonic()
        network = train(sources)
        minutes = (time.monotonic() - start) / 60
        write_weights(network, segmentation.WEIGHTS)
        probabilities = segmentation.network_probabilities()
        record = {
            "side": SIDE,
            "widths": WIDTHS,
            "parameters": network.count_params(),
            "bytes": segmentation.WEIGHTS.stat().st_size,
            "seed": SEED,
            "batch": BATCH,
            "steps": STEPS,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "fractions": FRACTIONS,
            "images": {name: len(images) for name, (images, _) in sources.items()},
            "minutes": round(minutes, 1),
            "versions": versions(),
            "data": {name: fingerprint((options.data / name).read_bytes()) for name in ARCHIVES},
            "half_precision": _precision_loss(network, probabilities, validation),
        }
    record["validation"] = {
        name: measure(found, behind_heart, probabilities)
        for name, (found, behind_heart) in validation.items()
    }
    if options.test:
        record["test"] = _measure_test(options.data)
    write_text(segmentation.RECORD, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
