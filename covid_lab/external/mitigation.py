"""Compare methods that narrow the gap between collections, choose one, and train it.

`mitigate` does the whole task, with the two functions below.

- `compare` trains every method of `covid_lab.external.methods` and
  `covid_lab.external.training_methods` on the training split of one collection. It scores them on
  the validation split of the same collection and on images of another one. Choices are made on
  these two sets; no test split is read.
- `choose` names the method with the best AUC on the other collection among those that lose little
  on the own one.

The network with two exits is then trained and stored.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from covid_lab.datasets import open_dataset
from covid_lab.external.bench import Bench, Settings, read_images
from covid_lab.external.methods import (
    LABELLED,
    REFERENCE,
    ROBUST,
    UNLABELLED,
    Outcome,
    exit_outcomes,
    input_outcomes,
    intercept,
    linear_exit,
    lung_features,
    together,
    train_collection_exit,
    two_exits_name,
)
from covid_lab.external.score import BALANCED, external_metrics
from covid_lab.external.training_methods import TRAINING, template_outcomes
from covid_lab.external.two_exits import Exits, join, keep, keep_moved, move, recentre
from covid_project.data import CLASSES, DataError
from covid_project.evaluation import percentile_interval
from covid_project.files import fingerprint, read_csv, versions, write_csv
from covid_project.models import logits

TABLE, RECENTRING = "mitigation.csv", "recentring.csv"
SEEDS = (0, 1, 2)  # of styles and fine-tuning; the final models are trained with the first
PREVALENCES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
SAMPLES = (20, 50, 100)  # numbers of unlabelled images
LOSS = 0.02  # of the reference's accuracy on the own validation images that a choice may cost


# ---- the comparison -----------------------------------------------------------------------------


def mitigate(own: Path, target: Path, out: Path, target_split: str = "val") -> dict[str, Path]:
    """Compare the methods, choose one without and one with labels, and store the chosen models.

    Parameters
    ----------
    own : Path
        Data with the classes of the course and the splits train and val.
    target : Path
        Data of another collection with the same classes.
    out : Path
        Folder for the tables, the cache and the models.
    target_split : str
        Split of the target; "" for data without splits. The test split is refused.

    Returns
    -------
    dict of str to Path
        Name of each model → its record, for `two_exits.load`. Empty where the fine-tuned reference
        does best, since no other model is needed then.

    Raises
    ------
    DataError
        The split is a test split, or a split lacks a class.
    ValueError
        No method qualifies, see `choose`.
    """
    bench = _open_bench(own, target, target_split, out / "cache")
    table = compare(bench, out)
    shares = {two_exits_name(share): share for share in bench.settings.shares} | {ROBUST: 0.0}
    eligible = table[table["method"].isin([*shares, REFERENCE])]
    paths = {}
    for uses in (UNLABELLED, LABELLED):
        method = choose(eligible, uses)
        print(f"chosen with {uses} images of {Path(target).name}: {method}")
        if method in shares:
            labelled = uses == LABELLED
            paths |= _fit_final(bench, out, SEEDS[0], share=shares[method], labelled=labelled)
    return paths


def compare(bench: Bench, out: Path) -> pd.DataFrame:
    """Compare methods on the validation images of two collections; resume an interrupted run.

    The exits run with all `SEEDS`, the other methods with the first one. The methods of `TRAINING`
    run with all where the AUC of one reaches the interval of the best method.

    Parameters
    ----------
    bench : Bench
        Images, network and settings.
    out : Path
        Folder for ``mitigation.csv``.

    Returns
    -------
    pd.DataFrame
        One row per method, use of target images and seed: accuracy and AUC of the own validation
        images with their number; AUC, balanced accuracy, sensitivity and specificity of the target
        images with 95 % intervals (``_low``, ``_high``) and their number; seconds of the stage;
        settings, data, versions.
    """
    images = (bench.train, bench.val, bench.target)
    identity = {
        "settings": fingerprint(dataclasses.asdict(bench.settings)),
        "data": "+".join(some.fingerprint for some in images),
        "frozen": bench.parts.frozen,
    }
    stages = [("inputs", SEEDS[0]), ("template", SEEDS[0])]
    stages += [("exits", seed) for seed in SEEDS]
    stages += [(stage, SEEDS[0]) for stage in TRAINING]
    for stage, seed in stages:
        _run_stage(bench, out, stage, seed, identity)
    table = read_csv(Path(out) / TABLE)
    table = table[(table[list(identity)] == pd.Series(identity)).all(axis=1)]
    for stage in _close_to_best(table[table["seed"] == SEEDS[0]]):
        for seed in SEEDS[1:]:
            _run_stage(bench, out, stage, seed, identity)
    return read_csv(Path(out) / TABLE)


def _run_stage(bench: Bench, out: Path, stage: str, seed: int, identity: dict[str, str]) -> None:
    """Add the rows of a stage to the table, unless they are there already."""
    done = read_csv(Path(out) / TABLE)
    mark = {"stage": stage, "seed": seed, **identity}
    if len(done) and (done[list(mark)] == pd.Series(mark)).all(axis=1).any():
        return
    start = time.perf_counter()
    if stage == "inputs":
        found = input_outcomes(bench)
    elif stage == "template":
        found = template_outcomes(bench)
    else:
        found = TRAINING.get(stage, exit_outcomes)(bench, seed)
    rows = [_row(outcome, bench, seed) for outcome in found]
    table = pd.DataFrame(rows).assign(
        seconds=time.perf_counter() - start, **mark, versions=versions()
    )
    write_csv(Path(out) / TABLE, pd.concat([done, table], ignore_index=True))
    print(f"{stage}, seed {seed}: {len(table)} rows, {table['seconds'].iloc[0]:.0f} s")


def _close_to_best(table: pd.DataFrame) -> list[str]:
    """Name the stages of `TRAINING` that reach the interval of the best method."""
    best = table.loc[table.groupby("target_images")["AUC"].idxmax()]
    least = best.set_index("target_images")["AUC_low"]
    close = table["AUC"] >= table["target_images"].map(least)
    return [stage for stage in TRAINING if (close & (table["stage"] == stage)).any()]


def _open_bench(own: Path, target: Path, target_split: str, cache: Path) -> Bench:
    """Read the images of both collections and build the network; a test split is refused."""
    if target_split == "test":
        raise DataError("choices must not be made on a test split; give another target_split")
    ours = open_dataset(own, classes=CLASSES, as_found=True)
    theirs = open_dataset(target, classes=CLASSES, as_found=True)
    train, val = read_images(ours, "train"), read_images(ours, "val")
    return Bench(train, val, read_images(theirs, target_split), Settings(), cache)


def _row(outcome: Outcome, bench: Bench, seed: int) -> dict[str, object]:
    own = external_metrics(bench.val.labels, outcome.own, seed=seed).set_index("metric")
    target = external_metrics(bench.target.labels, outcome.target, seed=seed).set_index("metric")
    row = {"method": outcome.method, "target_images": outcome.uses}
    row |= {"own_accuracy": own.value["accuracy"], "own_AUC": own.value["AUC"]}
    row |= {"own_n": len(outcome.own)}
    for metric in ("AUC", BALANCED, "sensitivity", "specificity"):
        name = metric.replace(" ", "_")
        row |= {f"{name}{end}": target[column][metric]
                for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
    return row | {"n": len(outcome.target)}


# ---- the chosen method --------------------------------------------------------------------------


def choose(table: pd.DataFrame, uses: str) -> str:
    """Name the method with the highest target AUC among those that lose little on own images.

    Parameters
    ----------
    table : pd.DataFrame
        From `compare`; seeds are averaged.
    uses : str
        What may be used of the target: "none", "unlabelled" or "labelled".

    Returns
    -------
    str
        Name of the method. The reference always qualifies where the table has it with this use of
        images.

    Raises
    ------
    ValueError
        No method qualifies.
    """
    means = table.groupby(["method", "target_images"])[["own_accuracy", "AUC"]].mean()
    least = means.loc[(REFERENCE, "none"), "own_accuracy"] - LOSS
    allowed = means.xs(uses, level="target_images")
    allowed = allowed[allowed["own_accuracy"] >= least]
    if allowed.empty:
        raise ValueError(
            f"no method that uses {uses} images reaches an own accuracy of {least:.3f}"
        )
    return str(allowed["AUC"].idxmax())


def _recentring(labels: np.ndarray, scores: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Measure the cost of moving the mean logit of unlabelled images to 0 at other prevalences.

    Moving the mean assumes that about half of the images show the disease. Samples of other
    prevalences and sizes are drawn with replacement. The threshold is the mean logit of a sample;
    it is applied to all images.
    """
    rng = np.random.default_rng(seed)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    rows = []
    for images, prevalence in [(200, p) for p in PREVALENCES] + [(n, 0.5) for n in SAMPLES]:
        count = round(prevalence * images)
        drawn = [rng.choice(positives, (500, count)), rng.choice(negatives, (500, images - count))]
        means = np.hstack(drawn).mean(axis=1)
        sensitivity = (positives > means[:, None]).mean(axis=1)
        specificity = (negatives <= means[:, None]).mean(axis=1)
        low, high = percentile_interval((sensitivity + specificity) / 2)
        row = {"prevalence": prevalence, "images": images}
        row |= {"sensitivity": sensitivity.mean(), "specificity": specificity.mean()}
        row[BALANCED.replace(" ", "_")] = (row["sensitivity"] + row["specificity"]) / 2
        rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)


def _fit_final(
    bench: Bench, out: Path, seed: int, *, share: float, labelled: bool
) -> dict[str, Path]:
    """Train the network with two exits, and store it for its own and for the other collection.

    The two stored models differ only in the bias of the last layer. The slope of the logit is
    fitted to the labels of the own validation images (temperature scaling, Guo et al. 2017, ICML).
    """
    copies, val, target = lung_features(bench, seed)
    theirs = None
    if labelled:
        halves = [half[:, : target.shape[1]] for half in bench.copies(bench.target, seed)]
        theirs = halves, bench.target.labels, bench.settings.labelled_weight
    kernel, bias, _ = linear_exit(copies, bench.train.labels, bench.settings.strength, theirs)
    network = train_collection_exit(bench, seed)
    collection = [logits(network, bench.maps(images)) for images in (bench.val, bench.target)]
    robust = val @ kernel + bias, target @ kernel + bias
    summed = together(robust, collection, share)
    slope = LogisticRegression(C=1e6, fit_intercept=False).fit(summed[0][:, None], bench.val.labels)
    weights, offset = network.get_layer("logit").get_weights()
    scale = robust[0].std(), collection[0].std()
    exits = Exits(
        (kernel / scale[0], bias / scale[0]),
        (weights[:, 0] / scale[1], float(offset[0]) / scale[1]),
        share,
        slope=float(slope.coef_[0, 0]),
    )
    model = join(bench.parts, exits)
    name = "two_exits_labelled" if labelled else "two_exits"
    record = {
        "seed": seed,
        "labelled": labelled,
        "share": share,
        "settings": dataclasses.asdict(bench.settings),
        "weights": bench.settings.weights,
        "data": [bench.train.fingerprint, bench.val.fingerprint, bench.target.fingerprint],
        "versions": versions(),
    }
    paths = {name: keep(out, name, model, bench.parts, **record)}
    found = logits(model, bench.small(bench.target.pixels))
    if labelled:
        shift = intercept(found, bench.target.labels)
        move(model, shift)
    else:
        shift = recentre(model, found)
        write_csv(Path(out) / RECENTRING, _recentring(bench.target.labels, found, seed))
    elsewhere = f"{name}_elsewhere"
    paths[elsewhere] = keep_moved(paths[name], elsewhere, model, shift)
    return paths
