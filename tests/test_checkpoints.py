import importlib
import inspect
import io
import json
import subprocess
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from covid_lab.checkpoints import (
    OPERATION_MODULES,
    ModelRefused,
    _is_operation,
    fitted,
    keep_training,
    kept_training,
    load_model,
)
from covid_lab.runs.experiment import StudyRun
from covid_lab.runs.settings import RunSettings
from covid_project.data import Dataset
from covid_project.normalization import SampleNormalization
from covid_project.results import MissingInput
from covid_project.settings import PROJECT

RECIPE = {"data": "d", "epochs": 3, "learning_rate": np.float64(0.1)}


@pytest.fixture
def run(tmp_path):
    table = pd.DataFrame({"path": ["a"], "label": [0], "split": ["train"]})
    settings = RunSettings(
        data="d", results=str(tmp_path), seed=1, phantoms=None, expected_seconds={}
    )
    return StudyRun(settings, Dataset(table, Path(tmp_path), ("a", "b"), "0123"))


def train():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    return model, pd.DataFrame({"epoch": [1], "loss": [0.5]})


def never():
    pytest.fail("trained again")


def test_a_finished_stage_is_loaded_and_another_recipe_is_trained_anew(run):
    model, history = fitted(run, "s", RECIPE, train)
    again, same = fitted(run, "s", RECIPE, never)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    pd.testing.assert_frame_equal(history, same)
    other, _ = fitted(run, "s", {**RECIPE, "epochs": 4}, train)
    assert not np.array_equal(other.get_weights()[0], model.get_weights()[0])


def test_what_is_kept_is_the_model_without_its_optimizer(run):
    model = in_training(3, 1)
    again, _ = fitted(run, "s", RECIPE, lambda: (model, pd.DataFrame({"epoch": [1]})))
    assert (again.name, again.compiled) == (model.name, False)
    inputs = np.random.default_rng(0).normal(size=(8, 2))
    np.testing.assert_array_equal(again(inputs), model(inputs))
    with zipfile.ZipFile(run.model_path("s")) as file, file.open("model.weights.h5") as weights:
        assert "optimizer" not in h5py.File(io.BytesIO(weights.read()))


def test_a_training_that_is_cut_off_leaves_the_finished_stage_as_it_was(run):
    fitted(run, "s", RECIPE, train)

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(run, "s", {**RECIPE, "epochs": 4}, killed)
    assert run.has_model("s", RECIPE)
    assert not run.has_model("s", {**RECIPE, "epochs": 4})


def test_a_recipe_whose_model_is_missing_is_trained_again(run):
    # As in a fresh clone: the recipes are kept in the repository, the models are not.
    fitted(run, "s", RECIPE, train)
    run.model_path("s").unlink()
    with pytest.raises(MissingInput, match=r"run baseline\.ipynb first"):
        run.load_model("s", "baseline.ipynb")
    fitted(run, "s", RECIPE, train)
    assert run.load_model("s", "x").count_params() == 3


def test_a_model_with_a_layer_of_ours_loads_in_a_process_that_built_none(tmp_path, python):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, SampleNormalization()(inputs))
    model.save(tmp_path / "ours.keras")
    code = (
        "import sys; from covid_lab.checkpoints import load_model\n"
        "from pathlib import Path; load_model(Path(sys.argv[1]))"
    )
    command = [python, "-c", code, str(tmp_path / "ours.keras")]
    subprocess.run(command, check=True, capture_output=True, cwd=PROJECT)


def in_training(*units):
    inputs = outputs = keras.Input((2,))
    for count in units or (1,):
        outputs = keras.layers.Dense(count)(outputs)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.1), loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_training_under_way_is_kept_with_its_optimizer_and_its_best_weights(tmp_path, rng):
    inputs, targets = rng.normal(size=(8, 2)), rng.normal(size=(8, 1))
    model, best = in_training(), [np.full((2, 1), 0.1, np.float32), np.zeros(1, np.float32)]
    model.fit(inputs, targets, shuffle=False, verbose=0)
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "val_auc": float("nan")}]
    keep_training(tmp_path / "t.npz", model, rows, best)
    model.fit(inputs, targets, shuffle=False, verbose=0)

    other = in_training()
    found, weights = kept_training(tmp_path / "t.npz", other)
    assert found[0]["loss"] == rows[0]["loss"]
    assert np.isnan(found[0]["val_auc"])
    for one, kept in zip(best, weights, strict=True):
        np.testing.assert_array_equal(one, kept)
    other.fit(inputs, targets, shuffle=False, verbose=0)
    for one, again in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, again)


def test_what_is_no_training_of_this_model_is_refused_by_name(tmp_path):
    path = tmp_path / "t.npz"
    model = in_training()
    assert kept_training(path, model)[0] == []
    before = model.get_weights()
    for other in (in_training(3), in_training(1, 3)):  # the second one's first layer would fit
        keep_training(path, other, [], other.get_weights())
        with pytest.raises(
            ValueError, match=r"(?s)t\.npz holds no training of this model .*delete it"
        ):
            kept_training(path, model)
        for one, still in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, still)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"(?s)t\.npz holds no training of this model .*delete it"):
        kept_training(path, model)


# What may be loaded


def small_network(activation="sigmoid"):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(inputs / 255.0)
    return keras.Model(inputs, keras.layers.Dense(1, activation=activation, name="top")(x))


def rewritten(path, change, metadata=None):
    """The file with another configuration, and other metadata."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    if metadata:
        members["metadata.json"] = json.dumps(metadata).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


OPERATIONS = [
    (module, name)
    for module in (*OPERATION_MODULES, "keras.src.ops.core")
    for name in vars(importlib.import_module(module))
]


def test_operations_that_may_be_loaded_take_no_functions():
    allowed = [(module, name) for module, name in OPERATIONS if _is_operation(module, name)]
    assert {("keras.src.ops.numpy", "Subtract"), ("keras.src.ops.nn", "Sigmoid")} <= set(allowed)
    for module, name in allowed:
        operation = getattr(importlib.import_module(module), name)
        assert issubclass(operation, keras.Operation)
        taken = {*inspect.signature(operation.__init__).parameters}
        taken |= {*inspect.signature(operation.call).parameters}
        assert taken.isdisjoint(
            {"f", "fn", "function", "body", "body_fun", "cond", "true_fn", "false_fn", "branches"}
        ), name


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("keras.src.ops.core", name) for name in ("Map", "Cond", "WhileLoop", "VectorizedMap")),
        ("keras.src.ops.numpy", "np"),
        ("keras.src.ops.numpy", "Operation"),
        ("keras.src.ops.numpy", "any_symbolic_tensors"),
        ("keras.src.ops.image", "backend"),
        ("keras.src.utils.file_utils", "get_file"),
        ("keras.src.applications.convnext", "ConvNeXt"),
    ],
)
def test_no_other_name_of_keras_modules_is_let_through(tmp_path, module, name):
    small_network().save(tmp_path / "m.keras")

    def change(config):
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "TrueDivide":
                layer |= {"module": module, "class_name": name}

    rewritten(tmp_path / "m.keras", change)
    with pytest.raises(ModelRefused, match=rf"asks for {module}\.{name}"):
        load_model(tmp_path / "m.keras")


def test_a_function_that_is_refused_is_named(tmp_path):
    small_network(activation=tf.nn.softmax).save(tmp_path / "m.keras")  # Keras cannot load it
    with pytest.raises(ModelRefused, match=r"asks for builtins\.softmax_v2"):
        load_model(tmp_path / "m.keras")


def test_losses_and_optimizers_of_inner_models_are_not_loaded(tmp_path):
    inner = small_network()
    inner.compile("adam", loss="mse")
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, inner(inputs))
    model.save(tmp_path / "m.keras")

    def change(config):
        (layer,) = [x for x in config["config"]["layers"] if x["class_name"] == "Functional"]
        layer["compile_config"]["loss"] = {
            "module": "os", "class_name": "function", "config": "system", "registered_name": "x",
        }  # fmt: skip

    rewritten(tmp_path / "m.keras", change)
    loaded = load_model(tmp_path / "m.keras")
    assert not loaded.layers[-1].compiled
    images = np.random.default_rng(0).uniform(0, 255, (3, 4, 4, 1))
    np.testing.assert_array_equal(loaded(images).numpy(), model(images).numpy())


def test_files_of_ones_own_are_loaded_with_trust_alone(tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1, output_shape=(2,))(inputs))
    model.save(tmp_path / "lambda.keras")
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "old.h5")
    with pytest.raises(ModelRefused, match=r"old\.h5.*--trust.*save\('converted\.keras'\)"):
        load_model(tmp_path / "old.h5")
    with pytest.raises(ModelRefused, match=r"keras\.layers\.Lambda.*--trust"):
        load_model(tmp_path / "lambda.keras")
    loaded = load_model(tmp_path / "lambda.keras", trust=True)
    np.testing.assert_array_equal(loaded(np.ones((1, 2))).numpy(), [[2, 2]])
    assert load_model(tmp_path / "old.h5", trust=True).output_shape == (None, 1)


def test_a_file_of_keras_2_says_how_to_convert_it(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.save(tmp_path / "m.keras")
    metadata = {"keras_version": "2.15.0", "date_saved": "2024-01-01@00:00:00"}
    rewritten(
        tmp_path / "m.keras",
        lambda config: config.update(module="keras.src.engine.functional"),
        metadata,
    )
    with pytest.raises(ModelRefused, match=r"Keras 2 \(version 2\.15\.0\).*--trust.*model\.h5"):
        load_model(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras", trust=True)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_a_bomb_is_not_unpacked(tmp_path):
    inner = small_network()
    inner.compile("adam", loss="mse")  # a configuration that is rewritten, and copied
    inputs = keras.Input((4, 4, 1))
    keras.Model(inputs, inner(inputs)).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/x", bytes(80 * 2**20))
    with pytest.raises(ModelRefused, match=r"assets/x is packed like a bomb"):
        load_model(tmp_path / "m.keras")
