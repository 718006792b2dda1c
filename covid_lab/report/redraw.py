"""Draw the figures that show images of the data set again, from the stored models."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from covid_lab.runs.runner import EXECUTED, run_notebooks
from covid_lab.verify import TESTED, NotKept, load_kept
from covid_project import figures
from covid_project.data import CLASSES
from covid_project.files import read_csv, whole_file, write_text
from covid_project.models import logits
from covid_project.results import Run, open_run
from covid_project.settings import as_yaml, load_settings

DRAWN_BY = ("data_exploration", "gradcam")  # notebooks that train nothing


def draw_images(results: Path, data: Path) -> list[Path]:
    """Draw every ``figures/images_*.pdf`` of a finished run again; nothing is trained.

    The notebooks that train nothing run in a copy of the results folder. Only their figures are
    copied back, so that the run's tables stay as they are.

    Parameters
    ----------
    results : Path
        Folder of a finished run with its models, complete or as `verify.keep_top` stores them.
    data : Path
        The run's images.

    Returns
    -------
    list of Path
        The figures.

    Raises
    ------
    NotKept
        A model is missing, or is not the one in the ledger.
    NotebookFailed
        A cell raised an error.
    """
    ledger = read_csv(results / "test_ledger.csv")
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, results.name)
        shutil.copytree(results, copy, ignore=shutil.ignore_patterns("cache", EXECUTED, "audit"))
        for stage in TESTED:
            model, identity = load_kept(results, stage)
            if identity not in set(ledger["model"]):
                raise NotKept(f"{stage}: the model is not the one in test_ledger.csv")
            with whole_file(copy / "models" / f"{stage}.keras") as part:
                model.save(part)
        settings = load_settings(copy / "settings.yaml", data=data, results=copy)
        file = copy / "cache" / "settings.yaml"
        write_text(file, as_yaml(settings))
        values = {"DATA": settings.data, "RESULTS": str(copy), "SETTINGS": str(file)}
        run_notebooks(DRAWN_BY, values, copy)
        run = open_run(replace(settings, results=str(copy)))
        for stage in TESTED:
            _verdicts(run, stage)
        drawn = sorted((copy / "figures").glob("images_*.pdf"))
        for path in drawn:
            with whole_file(results / "figures" / path.name) as part:
                shutil.copyfile(path, part)
    return [results / "figures" / path.name for path in drawn]


def _verdicts(run: Run, stage: str) -> None:
    """Draw four correctly and four wrongly classified test images of a stage."""
    model = run.load_model(stage, f"the notebook of {stage}")
    images, labels = run.test_split(stage, model, model.input_shape[1])
    scores = logits(model, images)
    rng = np.random.default_rng(run.settings.seed)
    groups = [np.flatnonzero((scores > 0) == labels), np.flatnonzero((scores > 0) != labels)]
    shown = np.concatenate([rng.permutation(group)[:4] for group in groups])
    titles = [figures.verdict(labels[k], scores[k], CLASSES) for k in shown]
    figure = figures.image_grid(images[shown], titles)
    is_random = stage == "fine_tuned" and run.settings.transfer.weights == "random"
    note = "RANDOM weights: nothing was learned on ImageNet" if is_random else ""
    run.save_figure(figure, f"images_verdicts_{stage}", f"scores_{stage}_test.csv", note=note)
