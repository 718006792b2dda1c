"""The whole table: a perfect method, the baselines, and a small network that has learned."""

import keras
import numpy as np
import pytest
from keras import layers

from covid_lab.explain.gradcam import grad_cam
from covid_lab.explain.gradients import saliency
from covid_lab.explain.heatmaps import Heatmaps
from covid_lab.explain.quality import explanation_quality
from covid_lab.explain.quality.baselines import baseline
from covid_lab.explain.quality.localisation import energy_inside
from covid_lab.explain.quality_terms import BASELINES, COLUMNS
from covid_project.evaluation import wilson_interval

SIZE = 16


@pytest.fixture(scope="module")
def square_model():
    """The logit is the mean brightness of the square from (4, 4) to (8, 8), less a middle grey."""
    model = keras.Sequential(
        [keras.Input((SIZE, SIZE, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(1)]
    )
    model.layers[-1].set_weights([square(1).reshape(-1, 1), np.array([-8.0])])
    return model


def square(count):
    masks = np.zeros((count, SIZE, SIZE), bool)
    masks[:, 4:8, 4:8] = True
    return masks


def perfect(model, images, target):
    """Shows the square whatever the model."""
    maps = square(len(images)).astype(np.float32)
    scores = np.zeros(len(images), np.float32)
    return Heatmaps.from_raw("square", maps, scores, target, {})


def silent_on_the_first(model, images, target):
    raw = square(len(images)).astype(np.float32)
    raw[0] = 0
    return Heatmaps.from_raw("square", raw, np.zeros(len(images)), target, {})


@pytest.fixture
def images():
    images = np.random.default_rng(0).integers(0, 60, (12, SIZE, SIZE, 1), dtype=np.uint8)
    images[:, 4:8, 4:8] += 150
    return images


def mean_of(table, method, measure, setting=None):
    rows = table[
        (table["method"] == method) & (table["measure"] == measure) & table["versus"].isna()
    ]
    rows = rows if setting is None else rows[rows["setting"].str.contains(setting)]
    return rows.iloc[-1]


def versus(table, method, measure):
    rows = table[(table["method"] == method) & (table["measure"] == measure)]
    return rows.dropna(subset="versus").set_index("versus")


def test_a_perfect_method_beats_every_baseline_in_every_measure(square_model, images, capsys):
    table = explanation_quality(
        square_model,
        images,
        {"perfect": perfect},
        masks={"square": square(12)},
        target=1,
        tests=("localisation", "faithfulness"),
    )
    assert tuple(table.columns) == COLUMNS
    assert list(dict.fromkeys(table["method"])) == ["perfect", *BASELINES]
    for measure in ("energy inside", "pointing game", "IoU at Otsu's threshold"):
        row = mean_of(table, "perfect", measure)
        assert row["value"] == 1
        assert row["n"] == 12
        assert row["blank"] == 0
    assert mean_of(table, "random", "energy inside")["value"] == pytest.approx(16 / 256, abs=0.02)
    for measure in ("energy inside", "IoU at Otsu's threshold", "deletion", "insertion"):
        rows = versus(table, "perfect", measure)
        assert rows.index.tolist() == list(BASELINES)
        assert set(rows["verdict"]) == {"better"}, measure
    roads = versus(table, "perfect", "ROAD")
    assert set(roads["verdict"][roads["setting"] == "least less most"]) == {"better"}
    # A small area is good in deletion: the difference is negative, and still "better".
    assert (versus(table, "perfect", "deletion")["value"] < 0).all()
    assert not len(versus(table, "random", "deletion"))
    assert "faithfulness: 4 of 4 in" in capsys.readouterr().out


def test_values_and_differences_are_means_over_images_with_their_intervals(square_model, images):
    mask = square(12)
    mask[7] = False
    table = explanation_quality(
        square_model,
        images,
        {"saliency": saliency},
        masks={"square": mask},
        tests=("localisation",),
        seed=5,
    )
    own = np.delete(energy_inside(saliency(square_model, images, 1).maps, mask), 7)
    edges = np.delete(energy_inside(baseline("edges")(square_model, images, 1).maps, mask), 7)
    for row, values in (
        (mean_of(table, "saliency", "energy inside"), own),
        (mean_of(table, "edges", "energy inside"), edges),
        (versus(table, "saliency", "energy inside").loc["edges"], own - edges),
    ):
        assert row["n"] == 11  # without the image whose mask is empty
        assert row["value"] == pytest.approx(values.mean(), abs=1e-6)
        drawn = np.random.default_rng(5).integers(0, 11, (2000, 11))
        bounds = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
        np.testing.assert_allclose([row["low"], row["high"]], bounds, atol=1e-6)
    game = mean_of(table, "saliency", "pointing game")
    assert (game["low"], game["high"]) == pytest.approx(
        wilson_interval(round(game["value"] * 11), 11)
    )


@pytest.mark.parametrize(
    ("method", "blank"), [(silent_on_the_first, 1), (lambda *case: silent(*case), 12)]
)
def test_blank_maps_are_left_out_and_counted(square_model, images, method, blank):
    table = explanation_quality(
        square_model, images, {"it": method}, masks={"square": square(12)}, target=1,
        second_model=square_model, groups=1,
    )  # fmt: skip
    rows = table[table["method"] == "it"]
    means = rows[rows["versus"].isna()]
    assert set(means["blank"]) == {blank}
    assert set(means["n"][means["test"].isin(["localisation", "faithfulness"])]) == {12 - blank}
    assert set(table["blank"][table["method"] == "random"]) == {0}
    if blank == 12:
        assert rows[["value", "low", "high", "verdict"]].isna().all(axis=None)


def silent(model, images, target):
    return Heatmaps.from_raw("none", np.zeros((len(images), 4, 4)), np.zeros(12), target, {})


def test_one_image_has_values_but_no_intervals_and_no_pairs(square_model, images):
    table = explanation_quality(square_model, images[:1], {"perfect": perfect}, groups=1)
    means = table[table["versus"].isna()]
    assert means["value"].notna().all()
    assert means[["low", "high", "reference"]].isna().all(axis=None)


def test_the_interval_of_the_pointing_game_counts_every_hit(square_model):
    def hits_29(model, images, target):  # 29 / 50 * 50 is 28.999999999999996
        raw = np.zeros((50, SIZE, SIZE), np.float32)
        raw[:29, 0, 0], raw[29:, 1, 1] = 1, 1
        return Heatmaps.from_raw("none", raw, np.zeros(50), np.ones(50, int), {})

    images, masks = np.zeros((50, SIZE, SIZE, 1)), np.zeros((50, SIZE, SIZE), bool)
    masks[:, 0, 0] = True
    table = explanation_quality(
        square_model, images, {"29": hits_29}, masks={"corner": masks}, tests=("localisation",)
    )
    game = mean_of(table, "29", "pointing game")
    assert (game["low"], game["high"]) == pytest.approx(wilson_interval(29, 50))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tests": ("beauty",)}, r"\['beauty'\].*localisation"),
        ({"methods": {"edges": perfect}}, r"\['edges'\] have the names of baselines"),
        ({"masks": {"lungs": np.ones((3, 4, 4), bool)}}, "3 masks 'lungs' for 12 images"),
        ({"images": np.zeros((0, SIZE, SIZE, 1))}, "no images"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(square_model, images, changes, message):
    case = {"images": images, "methods": {"perfect": perfect}} | changes
    with pytest.raises(ValueError, match=message):
        explanation_quality(square_model, case.pop("images"), case.pop("methods"), **case)


# A network that has learned to find a bright blot.


def blots(count, seed):
    """Noise, every second image with a bright blot; labels, and masks of the blots."""
    rng = np.random.default_rng(seed)
    images = rng.normal(100, 15, (count, 32, 32, 1))
    masks = np.zeros((count, 32, 32), bool)
    for mask, (top, left) in zip(masks[1::2], rng.integers(2, 23, (count // 2, 2)), strict=True):
        mask[top : top + 7, left : left + 7] = True
    images[masks] += 60
    return images.clip(0, 255).astype(np.uint8), np.arange(count) % 2, masks


@pytest.fixture(scope="module")
def trained():
    """A model, images with a blot, and the masks of the blots."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 1))
    x = layers.Rescaling(1 / 50, -2)(inputs)
    for filters, strides in ((8, 2), (12, 1), (12, 1)):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling2D()(x)))
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    images, labels, _ = blots(96, 1)
    model.fit(images.astype(np.float32), labels[:, None].astype(np.float32), 16, 6, verbose=0)
    images, labels, masks = blots(24, 2)
    scores = model(images.astype(np.float32)).numpy()[:, 0]
    assert scores[labels == 1].min() > scores[labels == 0].max(), "it has not learned"
    return model, images[labels == 1], masks[labels == 1]


def reversed_layercam(model, images, target):
    found = grad_cam(model, images, target, method="layercam")
    return Heatmaps.from_raw(found.layer, 1 - found.maps, found.scores, found.target, {})


@pytest.fixture(scope="module")
def judged(trained):
    model, images, masks = trained
    methods = {
        "grad-cam": grad_cam,
        "layercam": lambda *case: grad_cam(*case, method="layercam"),
        "reversed": reversed_layercam,
    }
    return explanation_quality(
        model, images, methods, masks={"blots": masks}, target=1, groups=2, sanity_images=6
    )


def test_grad_cam_finds_what_the_network_has_learned_better_than_chance(judged):
    row = versus(judged, "grad-cam", "energy inside").loc["random"]
    assert row["n"] == 12
    assert row["value"] > row["low"] > 0.05
    assert row["verdict"] == "better"
    row = mean_of(judged, "grad-cam", "pointing game")
    assert row["low"] > mean_of(judged, "random", "pointing game")["value"]


def test_grad_cam_depends_on_the_weights_and_image_independent_maps_do_not(judged):
    row = mean_of(judged, "grad-cam", "SSIM", "cascading 2")
    assert row["high"] < row["reference"]
    assert row["verdict"] == "pass"
    for kind in BASELINES:
        row = mean_of(judged, kind, "SSIM", "cascading 2")
        assert row["value"] == pytest.approx(1)
        assert row["verdict"] == "fail"


def test_grad_cam_keeps_still_under_small_noise(judged):
    row = mean_of(judged, "grad-cam", "SSIM", "noise of 5 grey levels")
    assert row["low"] > row["reference"]
    assert row["verdict"] == "pass"


def test_maps_of_the_opposite_ranking_are_less_faithful(judged):
    right = mean_of(judged, "layercam", "ROAD", "least less most")
    wrong = mean_of(judged, "reversed", "ROAD", "least less most")
    assert right["low"] > wrong["high"]
