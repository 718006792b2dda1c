"""``python -m covid_lab.documentation.pictures FOLDER``: draw the picture of the README.

FOLDER has the results of a run on drawn images; images of patients are never drawn.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit

from covid_lab.checkpoints import load_model
from covid_lab.runs.settings import course_settings
from covid_project import figures
from covid_project.data import CLASSES, Dataset, ImageFiles, open_dataset
from covid_project.files import read_csv, whole_file
from covid_project.gradcam import grad_cam, overlay
from covid_project.models import logits
from covid_project.settings import PROJECT

PICTURE = PROJECT / "docs" / "pictures" / "demo.png"
EACH = 2  # images of each class
STAGE = "baseline"
CURVES = {
    "history_baseline_tuned": "baseline CNN",
    "history_transfer_tuned": "new layers on a frozen backbone",
}


def main(arguments: list[str] | None = None) -> int:
    """Draw the picture.

    Parameters
    ----------
    arguments : list of str, optional
        Options; None: those of the process.

    Returns
    -------
    int
        Exit status: 0, or 1 where the run is not on drawn images.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results of `make run`")
    folder = parser.parse_args(arguments).folder
    settings, _ = course_settings("demo")
    dataset = open_dataset(settings.data)
    if not dataset.is_phantom:
        print(f"error: {settings.data} holds no drawn images", file=sys.stderr)
        return 1
    with whole_file(PICTURE) as part:
        draw(folder, dataset).savefig(part, dpi=110)
    print(f"written: {PICTURE.relative_to(PROJECT)}")
    return 0


@figures.styled
def draw(folder: Path, dataset: Dataset) -> plt.Figure:
    """Draw the learning curves of a run beside Grad-CAM heatmaps of its test images.

    Parameters
    ----------
    folder : Path
        Results of the run.
    dataset : Dataset
        Its drawn images.

    Returns
    -------
    matplotlib.figure.Figure
        The picture.
    """
    figure = plt.figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.1))
    _draw_curves(left, folder)
    _draw_heatmaps(right, folder, dataset)
    return figure


def _draw_curves(figure: plt.Figure, folder: Path) -> None:
    axes = figure.subplots(2, 1, sharex=False, sharey=True)
    for axis, (name, title) in zip(axes, CURVES.items(), strict=True):
        table = read_csv(folder / f"{name}.csv")
        for number, (column, label) in enumerate(
            {"accuracy": "training", "val_accuracy": "validation"}.items()
        ):
            axis.plot(
                table["epoch"],
                table[column],
                figures.DASHES[number],
                color=figures.COLOURS[number],
                label=label,
            )
        axis.set(title=title, ylabel="accuracy", ylim=(0.4, 1.02))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(loc="lower right")
    axes[1].set_xlabel("epoch")


def _draw_heatmaps(figure: plt.Figure, folder: Path, dataset: Dataset) -> None:
    model = load_model(folder / "models" / f"{STAGE}.keras")
    rows = dataset.rows("test")
    images = ImageFiles(dataset, rows, model.input_shape[1])[:].astype(np.float32)
    labels = dataset.table["label"].to_numpy()[rows]
    scores = logits(model, images)
    margin = np.where(labels == 1, scores, -scores)  # above 0: correct
    chosen = np.concatenate(
        [
            np.flatnonzero(labels == label)[np.argsort(-margin[labels == label])[:EACH]]
            for label in (1, 0)
        ]
    )
    found = grad_cam(model, images[chosen])
    blends = overlay(images[chosen], found.maps)
    axes = figure.subplots(2, 2 * EACH)
    for axis in axes.flat:
        axis.axis("off")
    for column, number in enumerate(chosen):
        probability = expit(scores[number])
        axes[0, column].imshow(np.squeeze(images[number]), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(f"{CLASSES[labels[number]]}\np(COVID) = {probability:.2f}")
        axes[1, column].imshow(blends[column])
    heat = plt.cm.ScalarMappable(plt.Normalize(0, 1), "jet")
    figure.colorbar(heat, ax=axes, label="heat, each image on its own scale", aspect=35, pad=0.02)
    figure.suptitle(
        "drawn radiographs, and the evidence of the baseline CNN for its class", fontsize=9
    )


if __name__ == "__main__":
    sys.exit(main())
