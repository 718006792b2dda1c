"""The backbone of the demo is pretrained on drawings of other seeds, with other questions."""

import json

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import RidgeClassifier

from covid_lab import pretraining
from covid_lab.__main__ import _with_available_weights
from covid_lab.phantoms import QUESTIONS, draw_examination
from covid_lab.runs.settings import course_settings
from covid_project.models import build_backbone, outputs
from covid_project.settings import PROJECT

SHIPPED = PROJECT / pretraining.WEIGHTS


def examine(seed, size=64):
    return draw_examination(np.random.default_rng(seed), size)


def test_an_examination_follows_from_its_seed_and_each_answer_is_yes_half_of_the_time():
    drawn = [examine(seed, 32) for seed in range(400)]
    answers = np.array([answers for _, answers in drawn])
    assert answers.shape == (400, len(QUESTIONS))
    np.testing.assert_allclose(answers.mean(axis=0), 0.5, atol=0.12)  # 4.8 standard errors
    grey, dark = np.array([image.mean() for image, _ in drawn]), answers[:, QUESTIONS.index("dark")]
    assert grey[dark].mean() < grey[~dark].mean() - 20
    image, said = examine(5)
    assert (image.shape, image.dtype) == ((64, 64), np.uint8)
    np.testing.assert_array_equal(image, examine(5)[0])
    np.testing.assert_array_equal(said, examine(5)[1])


def test_the_weights_are_read_as_those_of_keras_are(tmp_path):
    images, answers = (np.array(drawn) for drawn in zip(*map(examine, range(4)), strict=True))
    tf.config.run_functions_eagerly(True)  # faster than tracing for a single step
    try:
        _, backbone = pretraining.pretrain(images[..., None], np.float32(answers), epochs=1)
    finally:
        tf.config.run_functions_eagerly(False)
    path = tmp_path / "own.weights.h5"
    pretraining.write_weights(backbone, path)
    name, width = pretraining.BACKBONE, pretraining.WIDTH
    again = build_backbone(name, 64, width=width, weights=str(path))
    for one, other in zip(again.get_weights(), backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_shipped_weights_fit_the_demo_are_small_and_have_learned():
    assert SHIPPED.stat().st_size < 2**20
    settings = course_settings("demo")[0].transfer
    backbone = build_backbone(
        settings.backbone, settings.image_size, width=settings.width, weights=pretraining.WEIGHTS
    )
    images, answers = pretraining.draw(200, pretraining.SEED)  # held out when it was pretrained
    features, wire = outputs(backbone, images), answers[:, QUESTIONS.index("wire")]
    ridge = RidgeClassifier().fit(features[:100], wire[:100])
    assert ridge.score(features[100:], wire[100:]) > 0.8
    record = json.loads(SHIPPED.with_suffix("").with_suffix(".json").read_text())
    assert set(record["accuracy"]) == set(QUESTIONS)


@pytest.mark.parametrize(
    ("otherwise", "weights"), [("drawn", pretraining.WEIGHTS), ("random",) * 2]
)
def test_without_imagenets_weights_the_demo_says_what_it_takes(
    tmp_path, monkeypatch, capsys, otherwise, weights
):
    def unavailable(*_, **__):
        raise WeightsUnavailable("no network")

    from covid_project import models
    from covid_project.models import WeightsUnavailable

    monkeypatch.setattr(models, "build_backbone", unavailable)
    settings = course_settings("demo", results=tmp_path)[0]
    assert _with_available_weights(settings, otherwise).transfer.weights == weights
    said = capsys.readouterr().out
    assert ("pretrained on drawn images" in said) == (otherwise == "drawn")
