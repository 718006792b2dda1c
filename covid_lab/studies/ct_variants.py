"""Model A with one thing changed: kernel, batch, image size or equalisation, over several seeds."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from covid_lab.studies.ct_lesions import Network, Settings
from covid_project.files import read_csv, write_csv

KEYS = ["variant", "training_seed", "epoch"]  # of a row of the histories
COMPARED = ("val_loss", "val_accuracy", "val_AUC", "best_epoch", "epoch_seconds")
SAME = 1e-6  # logits closer than this are the same


@dataclass(frozen=True)
class Variant:
    """A network and the images that it is trained on.

    Attributes
    ----------
    network : Network
        Its shape and training.
    image_size : int
        Pixels along each side.
    equalize : bool
        Whether the images are equalised.
    """

    network: Network
    image_size: int
    equalize: bool


def base_name(settings: Settings) -> str:
    """Return the name of the variant that all others differ from in one thing.

    Parameters
    ----------
    settings : Settings
        Settings of the study.

    Returns
    -------
    str
        Such as "kernel 3, batch 24, 128 px".
    """
    a = settings.model_a
    return f"kernel {a.kernel}, batch {a.batch_size}, {settings.image_size} px"


def variants(settings: Settings) -> dict[str, Variant]:
    """List the variants of a study.

    Parameters
    ----------
    settings : Settings
        Its model A is the base; kernel sizes, batch sizes and image sizes are changed one at a
        time.

    Returns
    -------
    dict of str to Variant
        Name → variant, first the base.
    """
    a, size = settings.model_a, settings.image_size
    base = base_name(settings)
    found = {base: Variant(a, size, True)}
    for kernel in settings.kernel_sizes:
        found[f"kernel {kernel:g}"] = Variant(replace(a, kernel=int(kernel)), size, True)
    for batch in settings.batch_sizes:
        found[f"batch {batch:g}"] = Variant(replace(a, batch_size=int(batch)), size, True)
    for side in settings.image_sizes:
        found[f"{side:g} px"] = Variant(a, int(side), True)
    found["not equalised"] = Variant(a, size, False)
    return {name: one for name, one in found.items() if name == base or one != found[base]}


def groups(settings: Settings) -> dict[str, dict[str, str]]:
    """Group the variants by what is changed; the base belongs to every group.

    Parameters
    ----------
    settings : Settings
        Settings of the study.

    Returns
    -------
    dict of str to dict of str to str
        What is changed, with its unit → value → name of the variant.
    """
    known, base, a = variants(settings), base_name(settings), settings.model_a
    asked = {
        "kernel side (pixels)": (a.kernel, settings.kernel_sizes, "kernel {:g}"),
        "batch (images)": (a.batch_size, settings.batch_sizes, "batch {:g}"),
        "image side (pixels)": (settings.image_size, settings.image_sizes, "{:g} px"),
    }
    found = {}
    for title, (usual, values, pattern) in asked.items():
        names = {value: pattern.format(value) for value in sorted({usual, *values})}
        found[title] = {
            f"{value:g}": name if name in known else base for value, name in names.items()
        }
    return found | {"grey values": {"equalised": base, "as stored": "not equalised"}}


def has_trained(scores: np.ndarray) -> bool:
    """Tell whether a network distinguishes any two images.

    A network whose rectifiers are all off gives every image the same logit, and no gradient brings
    it back. Its validation loss says nothing about a kernel or a batch size.

    Parameters
    ----------
    scores : np.ndarray, float (N,)
        Logits of the validation images.

    Returns
    -------
    bool
        False where all logits are the same.
    """
    return bool(np.ptp(scores) > SAME)


def keep_history(path: Path, history: pd.DataFrame, variant: str, seed: int) -> None:
    """Write the history of a training into a table of all, in the place of an earlier one.

    Parameters
    ----------
    path : Path
        CSV of the histories.
    history : pd.DataFrame
        One row per epoch, from `covid_lab.training.fit`.
    variant : str
        Name of the variant.
    seed : int
        Seed of the training.
    """
    found = read_csv(path)
    if len(found):
        found = found[(found["variant"] != variant) | (found["training_seed"] != seed)]
    new = history.drop(columns="seconds").assign(variant=variant, training_seed=seed)
    rows = pd.concat([found, new[[*KEYS, *new.columns.difference(KEYS, sort=False)]]])
    write_csv(path, rows.reset_index(drop=True))


def variant_summary(trials: pd.DataFrame) -> pd.DataFrame:
    """Compare the variants over the seeds whose networks trained.

    Parameters
    ----------
    trials : pd.DataFrame
        One row per variant and seed: variant, trained (bool), and the columns of `COMPARED`.

    Returns
    -------
    pd.DataFrame
        One row per variant, in the order of the trials: variant, trained (networks), untrained
        (networks that are left out), the mean of each column of `COMPARED`, and the lowest and
        highest validation loss and AUC.
    """
    rows = []
    for name, part in trials.groupby("variant", sort=False):
        alive = part[part["trained"]]
        row = {"variant": name, "trained": len(alive), "untrained": len(part) - len(alive)}
        row |= {column: alive[column].mean() for column in COMPARED}
        for column in ("val_loss", "val_AUC"):
            row |= {f"{column}_lowest": alive[column].min()}
            row |= {f"{column}_highest": alive[column].max()}
        rows.append(row)
    return pd.DataFrame(rows)
