"""Models and weights from strangers: nothing in them runs, and the refusal says why."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from covid_lab.__main__ import main
from covid_lab.checkpoints import ModelRefused, load_model
from covid_project.files import cached_array
from covid_project.models import WeightsUnavailable, build_backbone


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def trapped_npz(mark: Path) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, weights=np.array([Trap(mark)], dtype=object))
    return stream.getvalue()


@pytest.fixture
def mark(tmp_path):
    """A file that must never come into being."""
    path = tmp_path / "code_was_run"
    yield path
    assert not path.exists()


def network(shape=(16, 16, 1)) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(2, 3, name="features")(inputs) if len(shape) == 3 else inputs
    x = keras.layers.GlobalAveragePooling2D()(x) if len(shape) == 3 else x
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x))


def changed(path: Path, change, **members: bytes) -> Path:
    """A saved network whose configuration was changed by hand."""
    network().save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    change(config)
    files["config.json"] = json.dumps(config).encode()
    if members:
        del files["model.weights.h5"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | members).items():
            archive.writestr(name, content)
    return path


def layer_instead(module, name: str, **config):
    def change(configuration: dict) -> None:
        layer = configuration["config"]["layers"][-1]
        layer |= {"module": module, "class_name": name, "registered_name": None}
        layer["config"] = {"name": "logit", **config}

    return change


def activation_instead(value):
    def change(configuration: dict) -> None:
        configuration["config"]["layers"][-1]["config"]["activation"] = value

    return change


def function(module: str, name: str) -> dict:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def strangers(tmp_path: Path, mark: Path):
    """What was done to a model, and how to make its file."""
    inputs = keras.Input((16, 16, 1))
    lambda_layer = keras.layers.Lambda(lambda x: x)(inputs)
    keras.Model(inputs, lambda_layer).save(tmp_path / "lambda.keras")
    yield "lambda layer", tmp_path / "lambda.keras"
    path = tmp_path / "m.keras"
    bytecode = {"class_name": "__lambda__", "config": {"value": "AAAA"}}
    yield "lambda as an activation", changed(path, activation_instead(bytecode))
    for module, name in [
        ("os", "system"),
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("pathlib", "Path"),
        ("keras.utils", "get_file"),
        ("keras.config", "enable_unsafe_deserialization"),
        ("keras.saving", "load_model"),
        ("covid_lab.runs.runner", "run_notebooks"),
    ]:
        yield f"function {module}.{name}", changed(path, activation_instead(function(module, name)))
        yield f"layer {module}.{name}", changed(path, layer_instead(module, name, path=str(mark)))
    for name in ("TFSMLayer", "TorchModuleWrapper", "JaxLayer"):
        change = layer_instead("keras.layers", name, filepath=str(tmp_path))
        yield f"keras.layers.{name}", changed(path, change)
    yield "custom object from outside", changed(path, layer_instead("their_package", "Attention"))
    yield "class without a module", changed(path, layer_instead(None, "Lambda"))
    npz = {"model.weights.npz": trapped_npz(mark)}
    changed(path, lambda config: None, **npz)
    yield "pickle in an npz as weights", path
    for kind, content in {
        "a pickle": pickle.dumps(Trap(mark)),
        "no file of Keras": b"not a model",
        "an empty file": b"",
        "a zip without a model": b"PK\x05\x06" + bytes(18),
    }.items():
        path.write_bytes(content)
        yield kind, path
    whole = changed(path, lambda config: None).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    yield "cut off", path
    yield "weights of another shape", changed(path, lambda c: _more_filters(c))
    network().save(tmp_path / "old.h5")
    yield "older kind, .h5", tmp_path / "old.h5"
    (tmp_path / "folder.keras").mkdir()
    yield "a folder", tmp_path / "folder.keras"
    yield "missing", tmp_path / "missing.keras"


def _more_filters(configuration: dict) -> None:
    for layer in configuration["config"]["layers"]:
        if layer["config"]["name"] == "features":
            layer["config"]["filters"] = 5
            layer["build_config"] = None


@pytest.mark.filterwarnings("ignore")
def test_strange_models_are_refused_with_the_reason(tmp_path, mark, capsys):
    picture = tmp_path / "x.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture)
    for fault, path in strangers(tmp_path, mark):
        with pytest.raises(ModelRefused, match=path.name) as caught:
            load_model(path)
        assert len(str(caught.value)) > len(str(path)) + 20
        assert main(["explain", str(path), str(picture), "--out", str(tmp_path / "out")]) == 1
        assert path.name in capsys.readouterr().err
        assert not mark.exists(), fault
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(8,), (16, 16, 2), (None, None, 1)], ids=str)
def test_a_model_of_another_input_is_refused(tmp_path, shape, capsys):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "x.png")
    network(shape).save(tmp_path / "m.keras")
    options = [str(tmp_path / "m.keras"), str(tmp_path / "x.png"), "--out", str(tmp_path / "out")]
    assert main(["explain", *options]) == 1
    assert "takes inputs of the shape" in capsys.readouterr().err


def test_what_we_and_keras_save_is_still_loaded(tmp_path):
    model = network()
    model.compile(loss=lambda y, p: p)  # somebody else's loss is not loaded
    model.save(tmp_path / "m.keras")
    same = load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(same.get_weights()[0], model.get_weights()[0])


def test_strange_weights_are_refused(tmp_path, mark):
    network().save(tmp_path / "own.keras")
    network().save_weights(tmp_path / "own.weights.h5")
    files = {
        "pickle.h5": pickle.dumps(Trap(mark)),
        "pickle.npz": trapped_npz(mark),
        "empty.h5": b"",
        "other.weights.h5": (tmp_path / "own.weights.h5").read_bytes(),
        "other.keras": (tmp_path / "own.keras").read_bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsUnavailable, match=name):
            build_backbone("MobileNet", 32, width=0.25, weights=str(tmp_path / name))


def test_a_pickle_among_cached_arrays_is_not_unpickled(tmp_path, mark):
    with open(tmp_path / "images.npy", "wb") as file:
        np.save(file, np.array([Trap(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"images\.npy"):
        cached_array(tmp_path / "images.npy", lambda: np.zeros(1))
