"""Several devices and mixed precision, each in a process of its own: both are set once for all."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from covid_project.experiment import begin
from covid_project.settings import HOUSE, SettingsError, load_settings

TRAINED = """
    import json, sys
    import keras, numpy as np, tensorflow as tf

    devices, precision = sys.argv[1:3]
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    from covid_project.devices import in_single_precision, replicas, use
    use(devices, precision)
    from covid_project.augmentation import NONE
    from covid_project.models import baseline_cnn
    from covid_project.normalization import SampleNormalization
    from covid_project.pipeline import evaluation_batches, training_batches
    from covid_project.training import fit, logits, set_seed

    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(0, 128, (64, 32, 32, 1)) + 60 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    set_seed(1)
    model = baseline_cnn(32, SampleNormalization(), filters=4, dropout=0.0)
    # In a fixed order, so that each step sees the same images whoever computes it.
    batches = evaluation_batches(images, labels, 16)
    held_out = evaluation_batches(images[:33], labels[:33], 16)  # an image too many for two
    history = fit(model, batches, learning_rate=1e-3, epochs=3, validation=held_out)
    kept = in_single_precision(model)
    shuffled = training_batches(images[:60], labels[:60], 16, NONE, 1)
    few = next(iter(training_batches(images[:11], labels[:11], 16, NONE, 1)))[0].shape
    try:
        training_batches(images, labels, 17, NONE, 1)
        refused = ""
    except ValueError as error:
        refused = str(error)
    print(json.dumps({
        "replicas": replicas(),
        "history": history.drop(columns="seconds").to_dict("list"),
        "logits": logits(model, images).tolist(),
        "kept": logits(kept, images).tolist(),
        "policies": sorted({layer.dtype_policy.name for layer in model.layers}),
        "kept policies": sorted({layer.dtype_policy.name for layer in kept.layers[1:]}),
        "weights": sorted({weight.dtype for weight in model.weights}),
        "logit": model.outputs[0].dtype,
        "steps": len(shuffled),
        "few": list(few),
        "refused": refused,
    }))
"""


def trained(devices, precision):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAINED), devices, precision],
        capture_output=True, text=True, cwd=HOUSE, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def usual():
    return trained("one", "float32")


def test_two_devices_train_as_one_does(usual):
    found = trained("all", "float32")
    assert (usual["replicas"], found["replicas"]) == (1, 2)
    assert found["history"].keys() == usual["history"].keys()
    for name, values in usual["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found["logits"], usual["logits"], atol=1e-4)
    # What is left of an epoch would be shared unevenly.
    assert (usual["steps"], found["steps"]) == (4, 3)
    assert usual["refused"] == ""
    # What has fewer images than a batch is one batch.
    assert (usual["few"][0], found["few"][0]) == (11, 10)
    assert "17, to be shared by 2 devices; allowed: multiples of 2" in found["refused"]


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_what_is_kept_is_of_single_precision(usual, precision):
    found = trained("one", precision)
    assert found["weights"] == ["float32"]
    assert found["logit"] == "float32"
    assert precision in found["policies"]
    assert found["kept policies"] == ["float32"]
    np.testing.assert_allclose(found["history"]["loss"], usual["history"]["loss"], rtol=0.03)
    np.testing.assert_allclose(found["kept"], found["logits"], atol=0.03)
    assert found["logits"] != usual["logits"]


def test_devices_and_precision_make_another_result_and_the_usual_ones_do_not():
    usual = load_settings("demo")
    other = load_settings("demo", changes={"precision": "mixed_bfloat16"})
    assert usual.hardware == {}
    assert other.hardware == {"devices": "one", "precision": "mixed_bfloat16"}
    assert other.common[: len(usual.common)] == usual.common
    assert other.common != usual.common


def test_workers_and_several_devices_are_not_asked_for_together():
    with pytest.raises(SettingsError, match=r"workers is 2 and devices is all; allowed"):
        load_settings("demo", changes={"devices": "all", "workers": 2})
    with pytest.raises(SettingsError, match=r"precision is 'half'; allowed: float32"):
        load_settings("demo", changes={"precision": "half"})


def test_a_run_begins_with_its_devices_and_precision(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr("covid_project.devices.use", lambda **how: used.append(how))
    settings = load_settings("demo", results=tmp_path, changes={"precision": "mixed_float16"})
    begin(settings)
    assert used == [{"devices": "one", "precision": "mixed_float16"}]
