"""The steps that find near copies, each against an independent or a naive computation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from benchmarks.near_copies import KINDS
from covid_lab.audit import alignment, near_copies
from covid_lab.audit.views import Views, _content_box, views_of
from covid_lab.phantoms import draw_radiograph


def random_motions(rng, count, size=0.1):
    motions = np.tile(np.eye(2, 3), (count, 1, 1)) + rng.uniform(-size, size, (count, 2, 3))
    return motions.astype(np.float32)


def whole(count):
    return np.tile(np.array([-1, 1, -1, 1], np.float32), (count, 1))


def as_matrix(motion):
    return np.vstack([motion, [0, 0, 1]])


def phantoms(n, size):
    return np.stack([draw_radiograph(np.random.default_rng(seed), size).image for seed in range(n)])


# ---- views --------------------------------------------------------------------------------------


@given(
    st.tuples(*[st.integers(0, 9)] * 4), st.tuples(*[st.integers(0, 9)] * 4),
    st.sampled_from([0, 90, 255]),
)  # fmt: skip
def test_frames_inside_frames_are_trimmed(inner, outer, value):
    content = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    image = content
    for (top, bottom, left, right), grey in ((inner, value), (outer, 255 - value)):
        image = np.pad(image, ((top, bottom), (left, right)), constant_values=grey)
    left, upper, right, lower = _content_box(image)
    np.testing.assert_array_equal(image[upper:lower, left:right], content)


def test_what_varies_by_little_is_a_border_and_what_varies_by_more_is_not():
    image = np.random.default_rng(0).integers(0, 256, (30, 30), np.uint8)
    image[:4] = np.arange(30) % 12
    assert _content_box(image) == (0, 4, 30, 30)
    image[3] = np.arange(30)
    assert _content_box(image) == (0, 3, 30, 30)


def test_an_image_with_a_border_is_seen_with_and_without_it():
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8)
    images[1, :, :10] = 0
    images[2, 6:] = 0  # so little is left that nothing is trimmed
    views = views_of(images, np.array([0, 1, 2]))
    assert views.rows.tolist() == [0, 1, 2, 1]
    assert views.frames[3].tolist() == [10, 0, 40, 40]
    np.testing.assert_allclose(views.contents[1], [-1, 1, -0.5, 1])
    np.testing.assert_allclose(views.contents[[0, 2, 3]], whole(3))
    np.testing.assert_array_equal(views.resized(np.array([0, 1]), 40), images[:2])


# ---- candidates ---------------------------------------------------------------------------------


def test_the_candidates_hold_every_planted_copy():
    drawn, rng = phantoms(40, 256), np.random.default_rng(1)
    copies = [change(image, rng) for image, change in zip(drawn, KINDS.values(), strict=False)]
    # The comparison needs one size; Pillow's resizing is tested elsewhere.
    small = [Views(image[None], *one_view(image)) for image in [*drawn, *copies]]
    images = np.concatenate([view.resized(np.array([0]), 128) for view in small]).astype(np.uint8)
    views = views_of(images, np.arange(len(images)))
    found = near_copies._find_candidates(views, np.random.default_rng(0))
    ends = np.sort(views.rows[np.stack([found.first, found.second])], axis=0)
    assert {(k, 40 + k) for k in range(len(KINDS))} <= set(zip(*ends.tolist(), strict=True))
    inverted = list(KINDS).index("inverted")
    pair = (ends == [[inverted], [40 + inverted]]).all(axis=0)
    assert found.signs[pair].tolist() == [-1]


def one_view(image):
    height, width = image.shape
    return np.array([0]), np.array([[0, 0, width, height]]), whole(1)


def test_candidates_are_a_few_different_images_for_each_view(rng):
    # Noise without any form: the hardest case, as all descriptors are equally far apart.
    for n in (2, 5, 200):
        images = rng.integers(0, 256, (n, 16, 16), np.uint8)
        views = views_of(images, np.arange(n))
        found = near_copies._find_candidates(views, np.random.default_rng(0))
        assert len(found) <= n * near_copies.NEIGHBOURS
        pairs = np.sort(views.rows[np.stack([found.first, found.second])], axis=0)
        assert (pairs[0] < pairs[1]).all()
        assert len(np.unique(pairs, axis=1).T) == len(found)


def test_candidates_found_in_blocks_are_those_found_at_once(rng, monkeypatch):
    views = views_of(phantoms(30, 64), np.arange(30))
    expected = near_copies._find_candidates(views, np.random.default_rng(0))
    monkeypatch.setattr(near_copies, "_DISTANCES", 1)
    found = near_copies._find_candidates(views, np.random.default_rng(0))
    pairs = [set(zip(each.first, each.second, strict=True)) for each in (expected, found)]
    assert len(pairs[0] & pairs[1]) >= len(pairs[0]) - 1  # two may be equally far


# ---- motions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [1, -1])
def test_warping_equals_scipys_interpolation(rng, mirror):
    image = rng.random((3, 20, 20)).astype(np.float32)
    motions = random_motions(rng, 3)
    motions[:, :, 1] *= mirror
    seen = alignment.warped(image, motions)
    axis = np.linspace(-1, 1, 20)
    grid = np.stack([*np.meshgrid(axis, axis, indexing="ij"), np.ones((20, 20))])
    for one, motion, found in zip(image, motions, seen, strict=True):
        places = (np.einsum("ij,jyx->iyx", motion, grid) + 1) * 9.5
        inside = ((places > 0) & (places < 18.99)).all(axis=0)
        assert inside.sum() > 250
        expected = map_coordinates(one, places, order=1)
        np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


def test_joined_motions_are_the_product_of_their_matrices(rng):
    last, before = random_motions(rng, 5), random_motions(rng, 5)
    for joint, a, b in zip(alignment._joined(last, before), last, before, strict=True):
        np.testing.assert_allclose(as_matrix(joint), as_matrix(a) @ as_matrix(b), atol=1e-6)


@pytest.mark.parametrize("mirror", [1, -1])
def test_the_alignment_finds_the_inverse_of_a_known_motion(rng, mirror):
    scene = gaussian_filter(rng.normal(size=(8, 64, 64)), (0, 3, 3)).astype(np.float32)
    scene /= scene.std()
    truth = random_motions(rng, 8, 0.05)
    seen = alignment.warped(scene[:, :, ::mirror], truth)
    start = alignment._identity(8) * np.array([[1], [mirror]], np.float32)
    found = alignment._aligned(scene, seen, (whole(8), whole(8)), start, 12)
    for motion, moved in zip(truth, found, strict=True):
        both = as_matrix(motion) @ as_matrix(moved)
        np.testing.assert_allclose(both, np.diag([1, mirror, 1]), atol=0.01)


def test_only_what_both_images_show_is_compared(rng):
    motions = random_motions(rng, 2, 0.2)
    contents = whole(2), np.array([[-1, 1, -1, 1], [-0.5, 1, -1, 0.25]], np.float32)
    found = alignment._overlap(contents, motions, 16)
    axis = np.linspace(-1, 1, 16)
    inner = 1 - alignment.MARGIN
    for k in range(2):
        top, bottom, left, right = contents[1][k] + alignment.MARGIN * np.array([1, -1, 1, -1])
        for row, y in enumerate(axis):
            for column, x in enumerate(axis):
                moved_y, moved_x = motions[k] @ [y, x, 1]
                shown = max(abs(y), abs(x)) <= inner
                shown = shown and top <= moved_y <= bottom and left <= moved_x <= right
                assert found[k, row, column] == shown


def test_the_correlation_is_pearsons_over_what_both_show(rng):
    a, b = rng.normal(size=(2, 1, 32, 32)).astype(np.float32)
    contents, still = (whole(1), whole(1)), alignment._identity(1)
    inside = alignment._overlap(contents, still, 32)[0]
    expected = np.corrcoef(a[0][inside], b[0][inside])[0, 1]
    found = alignment._correlation(a, b, contents, still)
    assert found[0] == pytest.approx(expected, abs=1e-4)


def test_inverted_grey_values_invert_the_details(rng):
    image = rng.integers(0, 256, (2, 32, 32)).astype(np.float32)
    for level in alignment.LEVELS:
        shown = alignment._details(image, level)
        np.testing.assert_allclose(alignment._details(255 - image, level), -shown, atol=1e-3)
