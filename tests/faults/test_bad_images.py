"""Damaged, lying and unusual images through load, audit and explain.

Each is read correctly or listed by name with its reason; the process neither dies nor hangs.
"""

import json
import os
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from covid_lab.datasets import each_image, load_images, open_dataset, without
from covid_lab.explain.command import Request, explain_files
from covid_lab.explain.pictures import find_pictures
from covid_project.data import CLASSES, DataError
from covid_project.images import IMAGE_SUFFIXES
from faults.children import call
from faults.images import (
    LISTED,
    READ,
    WHOLE,
    cases,
    dead_links,
    devices,
    encoded,
    every_name,
    giants,
)

SEED = 20
PLAIN = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("COVID", "NORMAL")]


@pytest.fixture
def bad_images(tmp_path):
    """Write cases into a set that is whole otherwise; return its folder and the cases by path."""

    def make(number: int):
        rng = np.random.default_rng(SEED)
        folder = tmp_path / "set"
        for place in PLAIN:
            (folder / place).mkdir(parents=True)
            image = encoded(rng.integers(0, 256, (16, 16), np.uint8))
            (folder / place / "plain.png").write_bytes(image)
        made = {}
        known = [*dead_links(), *giants(), *every_name()]
        for index, case in enumerate([*known, *cases(number, SEED)]):
            name = f"train/COVID/{index:04d}{case.stem}.{case.suffix}"
            case.make(folder / name)
            made[name] = case
        (folder / "train/COVID/folder.png").mkdir()  # passed over: it is no file
        return folder, made

    return make


# ---- what the children do -----------------------------------------------------------------------


def load(folder: str, out: str) -> dict:
    """Read all images one by one and at once; small ones' pixels go to a file."""
    dataset = open_dataset(folder)
    pixels, unreadable = each_image(
        dataset, lambda grey: grey if grey.size < 1e6 else grey[:1, :1].copy()
    )
    readable = [path for path in dataset.table["path"] if path not in unreadable]
    images = load_images(without(dataset, unreadable), 32)
    assert images.shape == (len(readable), 32, 32, 1)
    np.savez(out, **{str(number): grey for number, grey in enumerate(pixels)})
    return {"readable": readable, "unreadable": unreadable}


def audit(folder: str, out: str) -> dict:
    """Run the audit of the data as the command does."""
    from covid_lab.audit import command

    command.run(command.Request(data=Path(folder), out=Path(out)))
    return {"unreadable": json.loads(Path(out, "audit.json").read_text("utf-8"))["unreadable"]}


def explain(model: str, folder: str, out: str) -> dict:
    """Explain a small network on every file."""
    table = explain_files(Path(model), [Path(folder)], Path(out))
    pictures, _ = find_pictures([Path(folder)], CLASSES)
    assert sorted(table["image"]) == sorted(str(picture.path) for picture in pictures)
    listed = table["status"].str.startswith("unreadable: ")
    return {
        "unreadable": dict(zip(table["image"][listed], table["status"][listed], strict=True)),
        "readable": table["image"][~listed].tolist(),
    }


# ---- what must come out -------------------------------------------------------------------------


def judge(case, grey: np.ndarray | None) -> str:
    """What came of a case, or ``wrong: …``."""
    if grey is None:
        return "wrong: refused" if case.allowed == READ else "listed by name with its reason"
    if case.allowed == LISTED:
        return "wrong: read"
    if case.expected is None:
        return "read" if case.allowed == READ else "read (its format has no check sum that tells)"
    same = grey.shape == case.expected.shape and np.allclose(
        grey, case.expected, rtol=0, atol=case.tolerance + 0.5
    )
    if not same:
        return "wrong: read with other pixels"
    return "read, as it was" if case.allowed == WHOLE else "read correctly"


def check(made: dict, found: dict, record, step: str, pixels: dict | None = None) -> None:
    readable, unreadable = set(found["readable"]), found["unreadable"]
    assert not readable & set(unreadable)
    wrong = []
    for name, case in made.items():
        if name not in readable and not unreadable.get(name):
            outcome = "wrong: neither read nor listed"
        elif pixels is None:
            fits = case.allowed not in ((LISTED,) if name in readable else (READ,))
            said = "read" if name in readable else "listed by name with its reason"
            outcome = said if fits else f"wrong: {said}"
        else:
            outcome = judge(case, pixels.get(name))
        record("bad image", f"{step}: {case.kind}", outcome, SEED)
        if outcome.startswith("wrong"):
            wrong.append(f"{name!r} ({case.kind}): {outcome}")
    assert not wrong, "\n".join(wrong[:20])


def small_network(path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="features")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, keras.layers.Dense(1)(x)).save(path)


@pytest.mark.parametrize(
    ("number", "seconds"), [(120, 300), pytest.param(2400, 1200, marks=pytest.mark.long)]
)
def test_bad_images_of_every_kind(bad_images, record, tmp_path, number, seconds, python):
    folder, made = bad_images(number)
    call_warm = partial(call, seconds=seconds, python=python)
    found = call_warm("faults.test_bad_images:load", folder, tmp_path / "pixels.npz")
    with np.load(tmp_path / "pixels.npz") as arrays:
        pixels = {name: arrays[str(at)] for at, name in enumerate(found["readable"])}
    check(made, found, record, "load", pixels)

    audited = call_warm("faults.test_bad_images:audit", folder, tmp_path / "audit")
    assert audited["unreadable"] == found["unreadable"]
    check(made, audited | {"readable": found["readable"]}, record, "audit")

    small_network(tmp_path / "model.keras")
    explained = call_warm(
        "faults.test_bad_images:explain", tmp_path / "model.keras", folder, tmp_path / "out"
    )
    root = f"{folder}{os.sep}"
    explained["readable"] = [name.removeprefix(root) for name in explained["readable"]]
    explained["unreadable"] = {
        name.removeprefix(root): why for name, why in explained["unreadable"].items()
    }
    check(made, explained, record, "explain")
    assert set(explained["readable"]) == set(found["readable"])


def test_devices_and_pipes_are_refused_and_not_read(bad_images, record, tmp_path):
    folder, _ = bad_images(0)
    small_network(tmp_path / "model.keras")
    (tmp_path / "files").mkdir()
    for number, case in enumerate(devices()):
        for place in (folder / "train" / "COVID", tmp_path / "files"):
            case.make(place / f"device{number}.png")
        with pytest.raises(DataError, match=f"device{number}.png"):
            open_dataset(folder)
        (folder / "train" / "COVID" / f"device{number}.png").unlink()
        record("bad image", f"data set: {case.kind}", "refused by name", SEED)
    for path in [tmp_path / "files", *sorted((tmp_path / "files").iterdir())]:
        with pytest.raises(DataError, match=r"devices or pipes|no regular file"):
            explain_files(tmp_path / "model.keras", [path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record("bad image", "explain: devices and pipes", "refused by name", SEED)


def test_unusual_names_on_sheets_of_several_methods(tmp_path, record):
    (tmp_path / "set").mkdir()
    cases = every_name()
    for index, case in enumerate(cases):
        case.make(tmp_path / "set" / f"{case.stem}{index}.png")
    small_network(tmp_path / "model.keras")
    request = Request(methods=("gradcam", "saliency"))
    table = explain_files(tmp_path / "model.keras", [tmp_path / "set"], tmp_path / "out", request)
    assert table["image"].nunique() == len(list((tmp_path / "out/sheets").iterdir())) == len(cases)
    record("bad image", "unusual names on sheets", "drawn", count=len(cases))


def test_every_suffix_of_an_image_is_tried():
    assert {f".{case.suffix}" for case in cases(600, SEED)} <= IMAGE_SUFFIXES
    assert pd.Series([case.kind for case in cases(600, SEED)]).nunique() > 30
