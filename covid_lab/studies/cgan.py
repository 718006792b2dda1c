"""A conditional GAN for small grey images, and tests of the images it makes.

Generator and discriminator receive the class as a one-hot vector (Mirza & Osindero 2014) and have
the layers of DCGAN (Radford et al. 2016). The random numbers of each step follow from the seed and
the step's number, and the whole state is stored on disk. An interrupted training therefore resumes
with the same result.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_lab.progress import tracked
from covid_lab.studies.graded_metrics import Verdicts, graded_metrics
from covid_lab.studies.imbalance import NotTraining
from covid_project.files import fingerprint, whole_file
from covid_project.settings import SettingsError, within

SMOOTH = 0.9  # the discriminator's target for a real image (Salimans et al. 2016)
SAVED_EVERY = 100  # steps
HISTORY = ["step", "discriminator_loss", "generator_loss", "real_score", "synthetic_score"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a conditional GAN and of its training."""

    image_size: int = within(16, 128)  # pixels, a multiple of 8
    noise: int = within(1, 1024)  # random numbers, in addition to the class
    width: int = within(4, 256)  # filters at the largest size; twice and four times as many below
    batch_size: int = within(2, 1024)
    steps: int = within(1, 1_000_000)
    learning_rate: float = within(1e-7, 1)

    def __post_init__(self):
        if self.image_size % 8:
            raise SettingsError(f"image_size is {self.image_size}; allowed: multiples of 8")


def _generator_network(recipe: Recipe, classes: int) -> keras.Model:
    """Return a model from noise and one-hot classes (N, K) to images (N, S, S, 1), −1 to 1."""
    noise, wanted = keras.Input((recipe.noise,)), keras.Input((classes,))
    side, width = recipe.image_size // 8, recipe.width
    x = layers.Concatenate()([noise, wanted])
    x = layers.Dense(side * side * 4 * width, use_bias=False)(x)
    x = layers.Reshape((side, side, 4 * width))(x)
    for filters in (4 * width, 2 * width, width):
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        # Enlarged, then convolved: transposed convolutions leave a chequered pattern.
        x = layers.UpSampling2D()(x)
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    images = layers.Conv2D(1, 3, padding="same", activation="tanh")(x)
    return keras.Model([noise, wanted], images, name="generator")


def _discriminator_network(recipe: Recipe, classes: int) -> keras.Model:
    """Return a model from images, −1 to 1, and one-hot classes to a logit, above 0 for "real"."""
    size, width = recipe.image_size, recipe.width
    images, said = keras.Input((size, size, 1)), keras.Input((classes,))
    plane = layers.Reshape((size, size, classes))(layers.RepeatVector(size * size)(said))
    x = layers.Concatenate()([images, plane])
    for filters in (width, 2 * width, 4 * width):
        x = layers.Conv2D(filters, 4, strides=2, padding="same")(x)
        x = layers.LeakyReLU(0.2)(x)
    logit = layers.Dense(1)(layers.Flatten()(x))
    return keras.Model([images, said], logit, name="discriminator")


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained generator and the history of its training.

    Attributes
    ----------
    network : keras.Model
        From noise and one-hot classes to images.
    recipe : Recipe
    history : pd.DataFrame
        One row per step, columns `HISTORY`.
    classes : int
        Number of classes.
    """

    network: keras.Model
    recipe: Recipe
    history: pd.DataFrame
    classes: int

    def generate(self, label: int, count: int, seed: int) -> np.ndarray:
        """Generate images of a class.

        Parameters
        ----------
        label : int
            The class, from 0.
        count : int
            Number of images.
        seed : int
            The same seed gives the same images.

        Returns
        -------
        np.ndarray, uint8 (count, S, S, 1)
        """
        rng = np.random.default_rng([seed, label])
        noise = rng.normal(size=(count, self.recipe.noise)).astype(np.float32)
        told = np.tile(np.eye(self.classes, dtype=np.float32)[label], (count, 1))
        images = self.network.predict([noise, told], batch_size=64, verbose=0)
        return np.rint(127.5 * (images + 1)).astype(np.uint8)


def train(
    images: np.ndarray,
    labels: np.ndarray,
    splits: Iterable[str],
    recipe: Recipe,
    *,
    classes: int,
    seed: int,
    folder: Path,
    progress: str = "steps of the GAN",
) -> Trained:
    """Train a conditional GAN on training images, or resume an interrupted training.

    All classes are equally likely in a batch, so that the network sees as many images of a rare
    class as of a frequent one. The images are mirrored at random.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S, 1)
        S is the recipe's image size.
    labels : np.ndarray, int (N,)
        From 0 to ``classes`` − 1.
    splits : iterable of str, (N,)
        The split of each image: all must be "train".
    recipe : Recipe
    classes : int
        Number of classes.
    seed : int
        Determines weights, batches and noise.
    folder : Path
        The state is stored there every 100 steps, under a name that follows from data, recipe and
        seed.
    progress : str
        Title of the progress.

    Returns
    -------
    Trained

    Raises
    ------
    NotTraining
        An image of another split.
    ValueError
        Images of another size or type, or a class without images.
    FloatingPointError
        A loss is no longer finite.
    """
    labels, splits = np.asarray(labels, int), np.asarray(list(splits))
    if len(splits) != len(images) or (splits != "train").any():
        raise NotTraining("a GAN sees training images only: give the split of each, all 'train'")
    size = recipe.image_size
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 1):
        raise ValueError(
            f"images are {images.dtype} {images.shape}; wanted uint8 (N, {size}, {size}, 1)"
        )
    members = [np.flatnonzero(labels == label) for label in range(classes)]
    if min(map(len, members)) == 0:
        raise ValueError(f"a class has no training image: counts are {list(map(len, members))}")
    keras.utils.set_random_seed(seed)
    networks = _generator_network(recipe, classes), _discriminator_network(recipe, classes)
    optimizers = [keras.optimizers.Adam(recipe.learning_rate, beta_1=0.5) for _ in networks]
    for network, optimizer in zip(networks, optimizers, strict=True):
        optimizer.build(network.trainable_variables)
    variables = [v for owner in (*networks, *optimizers) for v in owner.variables]
    described = {key: value for key, value in asdict(recipe).items() if key != "steps"}
    state = Path(folder) / f"cgan-{fingerprint(images, labels, described, str(seed))}.npz"
    rows = _restored(state, variables, recipe.steps)
    step = _step_function(*networks, *optimizers)
    for number in tracked(range(len(rows), recipe.steps), progress):
        batch = _batch(images, members, recipe, np.random.default_rng([seed, number]))
        losses = [float(value) for value in step(*batch)]
        if not np.isfinite(losses).all():
            raise FloatingPointError(f"cGAN: a loss is not finite in step {number + 1}")
        rows.append([number + 1, *losses])
        if (number + 1) % SAVED_EVERY == 0 or number + 1 == recipe.steps:
            _save(state, variables, rows)
    history = pd.DataFrame(rows, columns=HISTORY).astype({"step": int})
    return Trained(networks[0], recipe, history, classes)


def _batch(images, members, recipe: Recipe, rng: np.random.Generator) -> list[tf.Tensor]:
    """Draw real images (−1 to 1), their one-hot classes, and noise for as many synthetic images."""
    drawn = rng.integers(0, len(members), recipe.batch_size)
    rows = [rng.choice(members[label]) for label in drawn]
    real = images[rows].astype(np.float32) / 127.5 - 1
    across, down = rng.uniform(size=(2, len(rows))) < 0.5
    real[across] = real[across, :, ::-1]
    real[down] = real[down, ::-1]
    noise = rng.normal(size=(2, len(rows), recipe.noise)).astype(np.float32)
    told = np.eye(len(members), dtype=np.float32)[drawn]
    return [tf.constant(part) for part in (real, told, noise[0], noise[1])]


def _step_function(generator, discriminator, for_generator, for_discriminator):
    """Return a function that trains both for one step: the discriminator, then the generator."""
    cross = tf.nn.sigmoid_cross_entropy_with_logits

    @tf.function
    def step(real, told, noise, other_noise):
        synthetic = generator([noise, told], training=True)
        with tf.GradientTape() as tape:
            on_real = discriminator([real, told], training=True)
            on_synthetic = discriminator([synthetic, told], training=True)
            loss = tf.reduce_mean(
                cross(labels=SMOOTH * tf.ones_like(on_real), logits=on_real)
                + cross(labels=tf.zeros_like(on_synthetic), logits=on_synthetic)
            )
        weights = discriminator.trainable_variables
        for_discriminator.apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            made = generator([other_noise, told], training=True)
            fooled = discriminator([made, told], training=True)
            generator_loss = tf.reduce_mean(cross(labels=tf.ones_like(fooled), logits=fooled))
        weights = generator.trainable_variables
        for_generator.apply(tape.gradient(generator_loss, weights), weights)
        return loss, generator_loss, tf.reduce_mean(on_real), tf.reduce_mean(on_synthetic)

    return step


def _save(path: Path, variables, rows: list) -> None:
    arrays = {f"v{number}": variable.numpy() for number, variable in enumerate(variables)}
    with whole_file(path) as part:
        np.savez(part, rows=np.array(rows), **arrays)


def _restored(path: Path, variables, steps: int) -> list:
    """Set the variables to the stored state and return its history.

    A state with more steps than wanted is not used.
    """
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as kept:
        rows = kept["rows"].tolist()
        if len(rows) > steps:
            return []
        for number, variable in enumerate(variables):
            variable.assign(kept[f"v{number}"])
    return rows


# ---- tests of the images ------------------------------------------------------------------------

Set = tuple[np.ndarray, np.ndarray]  # features (N, D) and labels (N,)


def pixels(images: np.ndarray, side: int = 16) -> np.ndarray:
    """Compute the means of side × side blocks of images, as inputs of `cross_tests`.

    Parameters
    ----------
    images : np.ndarray, uint8 (N, S, S, 1)
        S is a multiple of ``side``.
    side : int
        Blocks down and across.

    Returns
    -------
    np.ndarray, float64 (N, side²), [0, 1]
    """
    step = images.shape[1] // side
    blocks = images.reshape(len(images), side, step, side, step)
    return blocks.mean(axis=(2, 4)).reshape(len(images), -1) / 255


def cross_tests(real: Set, synthetic: Set, held_out: Set, seed: int = 0) -> pd.DataFrame:
    """Train classifiers on real or synthetic images, and test them on the other kind.

    A classifier that was trained on synthetic images and is tested on real (held-out) images shows
    whether the synthetic classes are realistic and varied. The reverse shows whether a synthetic
    image shows its class. Compare both with real on real, and with chance. (Esteban et al. 2017,
    for time series.) The classifier is a logistic regression on standardised features with balanced
    class weights.

    Parameters
    ----------
    real, synthetic, held_out : tuple of np.ndarray
        Features (N, D) and labels int (N,) of training images, of generated images, and of real
        images of another split.
    seed : int
        Seed of the classifiers.

    Returns
    -------
    pd.DataFrame
        One row per pair: trained, tested, macro_F1, balanced_accuracy, AUC, kappa, n.
    """
    classes = 1 + max(int(np.max(labels)) for _, labels in (real, synthetic, held_out))
    cases = {
        ("real", "real"): (real, held_out),
        ("synthetic", "real"): (synthetic, held_out),
        ("real", "synthetic"): (real, synthetic),
    }
    rows = []
    for (trained, tested), ((features, labels), (others, truth)) in cases.items():
        classifier = LogisticRegression(
            C=0.01, max_iter=2000, class_weight="balanced", random_state=seed
        )
        model = make_pipeline(StandardScaler(), classifier).fit(features, labels)
        scores = np.zeros((len(others), classes))
        scores[:, model.classes_] = model.predict_proba(others)
        found = graded_metrics(truth, Verdicts(scores, scores.argmax(axis=1)))
        names = ("macro_F1", "balanced_accuracy", "AUC", "kappa")
        rows.append((trained, tested, *(found[name] for name in names), len(truth)))
    return pd.DataFrame(rows, columns=["trained", "tested", *names, "n"])


def _nearest_distances(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return the root mean square difference (N,) of each image to the nearest training image."""
    # Mirrored training images count as well: the GAN has seen them.
    variants = [training, training[:, :, ::-1], training[:, ::-1], training[:, ::-1, ::-1]]
    known = np.concatenate(variants).reshape(4 * len(training), -1).astype(np.float32)
    asked = images.reshape(len(images), -1).astype(np.float32)
    squares = (asked**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None] - 2 * asked @ known.T
    return np.sqrt(np.maximum(squares.min(axis=1), 0) / asked.shape[1])


def memorisation(synthetic: np.ndarray, training: np.ndarray, held_out: np.ndarray) -> pd.DataFrame:
    """Test whether synthetic images copy training images.

    Parameters
    ----------
    synthetic, training, held_out : np.ndarray, uint8 (N, H, W, 1)
        Generated images, training images, and real images that were not used in training.

    Returns
    -------
    pd.DataFrame
        One row for synthetic and one for held-out images: images, median and nearest (of the
        distances to the nearest training image, mirrored ones included, in grey levels), copies
        and n. ``copies`` is the fraction of images that are nearer to
        a training image than 99 % of the held-out images. Independent images have about 0.01; much
        more means memorisation.
    """
    distances = {
        "synthetic": _nearest_distances(synthetic, training),
        "held out": _nearest_distances(held_out, training),
    }
    limit = np.percentile(distances["held out"], 1)
    rows = [
        (name, np.median(found), found.min(), (found < limit).mean(), len(found))
        for name, found in distances.items()
    ]
    return pd.DataFrame(rows, columns=["images", "median", "nearest", "copies", "n"])
