"""Time of the course run: the four notebooks measured, or estimated for a larger backbone.

    python -m benchmarks.course --data covid_xray.zip --results /some/folder
    python -m benchmarks.course --data covid_xray.zip --like /some/folder --backbone ResNet50V2

The first command runs the notebooks with MobileNetV2 and writes the minutes of each to
``results/course_times.csv``. The second measures the seconds per image and per epoch of another
backbone with random weights, which are as fast as pretrained ones. It multiplies them by the
copies, trials and epochs of the finished run ``--like``.
"""

import argparse
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in the notebooks
import keras
import numpy as np
import pandas as pd

from covid_lab.runs.runner import run_notebooks
from covid_lab.runs.settings import NOTEBOOKS, course_settings
from covid_project.files import read_csv, versions, write_csv, write_text
from covid_project.models import (
    BACKBONES,
    build_backbone,
    outputs,
    split_at,
    transfer_head,
    transfer_model,
    unfreeze_above,
)
from covid_project.pipeline import feature_batches
from covid_project.settings import PROJECT, Settings, as_yaml, load_settings
from covid_project.training import TrainingLog, classification_metrics, set_seed

TABLE = PROJECT / "results" / "course_times.csv"
MEASURED = 192  # images on which the seconds per image are measured


def measure(settings: Settings) -> pd.DataFrame:
    """Run the four notebooks and measure each.

    Parameters
    ----------
    settings : Settings
        Settings of the run.

    Returns
    -------
    pd.DataFrame, 4 rows
        Columns part, seconds and how ("measured").
    """
    folder = Path(settings.results)
    file = folder / "cache" / "settings.yaml"
    write_text(file, as_yaml(settings))
    values = {"DATA": settings.data, "RESULTS": str(folder), "SETTINGS": str(file)}
    rows = []
    for name in NOTEBOOKS:
        start = time.perf_counter()
        run_notebooks([name], values, folder)
        rows.append({"part": name, "seconds": time.perf_counter() - start})
    return pd.DataFrame(rows).assign(how="measured")


def estimate(settings: Settings, like: Path) -> pd.DataFrame:
    """Estimate the time of the notebooks with another backbone, by parts.

    Parameters
    ----------
    settings : Settings
        Settings with the other backbone; its weights are random here.
    like : Path
        Results folder of a finished run, whose numbers of trials and epochs are used.

    Returns
    -------
    pd.DataFrame, 3 rows
        Columns part, seconds and how ("estimated").
    """
    spec = settings.transfer
    set_seed(settings.seed)
    size, name = spec.image_size, spec.backbone
    backbone = build_backbone(name, size, width=spec.width, weights="random")
    backbone.trainable = False
    cut = BACKBONES[name].frozen_up_to
    lower, upper = split_at(backbone, cut)
    images = np.random.default_rng(0).integers(0, 256, (MEASURED, size, size, 1), dtype=np.uint8)
    labels = np.arange(MEASURED) % 2
    amounts = settings.augmentation
    per_lower, maps = _per_image(lambda: outputs(lower, images, amounts=amounts))
    maps = maps.astype(np.float16)
    per_upper, pooled = _per_image(lambda: outputs(upper, maps))
    head = transfer_head(pooled.shape[1], dropout=0.2)
    head_epoch = epoch_seconds(head, feature_batches([pooled], labels, 32, 0)) / MEASURED
    model = transfer_model(backbone, dropout=0.2)
    trained = unfreeze_above(model, cut)
    maps_in_batches = feature_batches([maps], labels, 32, 0)
    fine_epoch = epoch_seconds(split_at(model, cut)[1], maps_in_batches) / MEASURED
    counts = read_counts(like)
    complete, copies = counts["images"], 1 + spec.augmented_copies
    parts = {
        "features": complete * copies * (per_lower + per_upper),
        "new layers": head_epoch * complete * counts["head_epochs"],
        "fine-tuning": fine_epoch * complete * counts["fine_tuning_epochs"],
    }
    print(f"{name}, cut at {cut}: {trained:,} weights are fine-tuned")
    print(f"seconds per image: {per_lower:.4f} below the cut, {per_upper:.4f} above it, "
          f"{fine_epoch:.4f} per epoch of fine-tuning")  # fmt: skip
    rows = [{"part": part, "seconds": seconds} for part, seconds in parts.items()]
    return pd.DataFrame(rows).assign(how="estimated")


def read_counts(like: Path) -> dict[str, int]:
    """Count images and epochs of a finished run; a pruned trial counts as one epoch.

    Parameters
    ----------
    like : Path
        Results folder of the run.

    Returns
    -------
    dict of str to int
        images, head_epochs and fine_tuning_epochs.
    """
    sizes = read_csv(like / "image_sizes.csv").set_index("split")["images"]
    head = read_csv(like / "tuning_transfer.csv")
    spec = load_settings(like / "settings.yaml", data="unused", results="unused").transfer
    stopped = np.minimum(head["best_epoch"] + spec.patience, spec.max_epochs)
    final = len(read_csv(like / "history_transfer.csv"))
    trials = read_csv(like / "tuning_fine_tuning.csv")
    kept = int(trials["val_loss"].notna().sum())
    return {
        "images": int(sizes["train"] + sizes["val"]),
        "head_epochs": int(stopped.sum()) + spec.initial_epochs + final,
        "fine_tuning_epochs": (kept + 1) * final + len(trials) - kept,
    }


def _per_image(compute) -> tuple[float, np.ndarray]:
    """Seconds per image of the second call, as the first one traces, and its result."""
    compute()  # traces
    start = time.perf_counter()
    found = compute()
    return (time.perf_counter() - start) / MEASURED, found


def epoch_seconds(model: keras.Model, batches) -> float:
    """Measure the second epoch of a training, as the first one traces.

    Parameters
    ----------
    model : keras.Model
        Model with one logit; it is compiled and trained here.
    batches : tf.data.Dataset or keras.utils.PyDataset
        Inputs and labels.

    Returns
    -------
    float
        Seconds.
    """
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=classification_metrics())
    log = TrainingLog()
    model.fit(batches, epochs=2, callbacks=[log], verbose=0, shuffle=False)
    return float(log.history["seconds"].iloc[-1])


def main() -> None:
    """Measure or estimate, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="folder of the run that is measured")
    parser.add_argument("--like", type=Path, help="finished run whose counts are taken")
    parser.add_argument("--backbone", default="MobileNetV2")
    options = parser.parse_args()
    settings, _ = course_settings(
        data=options.data,
        results=options.results or options.like,
        changes={"transfer.backbone": options.backbone},
    )
    if options.like:
        settings = replace(settings, transfer=replace(settings.transfer, weights="random"))
        table = estimate(settings, options.like)
    else:
        table = measure(settings)
    machine = f"{platform.machine()}, {platform.system()}, two cores"
    table = table.assign(backbone=options.backbone, machine=machine, versions=versions())
    print(table[["part", "seconds"]].round(1).to_string(index=False))
    print(f"in all {table['seconds'].sum() / 60:.1f} minutes")
    earlier = read_csv(TABLE)
    if len(earlier):
        earlier = earlier[(earlier["backbone"] != options.backbone)]
    write_csv(TABLE, pd.concat([earlier, table], ignore_index=True))


if __name__ == "__main__":
    main()
