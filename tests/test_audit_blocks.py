"""What is computed in blocks is what is computed at once; `benchmarks.growth` measures memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_lab.audit import alignment, duplicates, lung_regions, shortcuts
from covid_lab.audit.blocks import blocks
from covid_lab.audit.controls import draw_phantoms, write_phantoms
from covid_lab.audit.predictability import RESAMPLES, macro_auc, resample
from covid_lab.audit.views import views_of
from covid_lab.datasets import UnreadableImages


def quiet(stage, done, total):
    pass


@given(st.integers(0, 60), st.integers(0, 9), st.integers(1, 40))
def test_blocks_hold_every_row_once_and_no_more_numbers_than_allowed(count, width, numbers):
    found = list(blocks(count, width, numbers))
    rows = [row for block in found for row in range(block.start, block.stop)]
    assert rows == list(range(count))
    for block in found:
        held = block.stop - block.start
        assert held == 1 or held * width <= numbers


# ---- the same as at once ------------------------------------------------------------------------


def test_resamples_drawn_in_blocks_are_those_drawn_at_once():
    labels = np.arange(900) % 3 // 2  # 600 and 300: several blocks of the larger class
    assert len(list(blocks(RESAMPLES, 600))) > 1
    rng = np.random.default_rng(5)
    expected = np.empty((RESAMPLES, 900), int)
    for label, members in ((0, 600), (1, 300)):
        drawn = rng.multinomial(members, np.full(members, 1 / members), RESAMPLES)
        expected[:, labels == label] = drawn
    rng_of_blocks = np.random.default_rng(5)
    np.testing.assert_array_equal(resample(labels, np.arange(900), rng_of_blocks), expected)
    assert rng.random() == rng_of_blocks.random()  # whatever is drawn next is the same as well


def test_weighted_auc_in_blocks_is_the_count_of_all_pairs(rng):
    labels, scores = np.arange(600) % 2, rng.integers(0, 40, 600)
    weights = resample(labels, np.arange(600), rng)
    assert len(list(blocks(*weights.shape))) > 1
    positive, negative = scores[labels == 1], scores[labels == 0]
    won = (positive[:, None] > negative) + (positive[:, None] == negative) / 2
    of_positive, of_negative = (weights[:, labels == label].astype(float) for label in (1, 0))
    expected = ((of_positive @ won) * of_negative).sum(axis=1) / 300**2
    np.testing.assert_allclose(macro_auc(labels, scores[:, None], weights), expected, rtol=1e-12)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    phantoms = draw_phantoms(20, 60, seed=4)
    folder = tmp_path_factory.mktemp("drawn")
    return phantoms, write_phantoms(folder, list(phantoms.images), phantoms)


@pytest.mark.parametrize("given", [True, False])
def test_lungs_found_in_parts_are_those_found_at_once(drawn, given):
    phantoms, dataset = drawn
    if not given:
        dataset = dataset.__class__(
            dataset.table.assign(mask=""), dataset.root, dataset.classes, dataset.fingerprint
        )
    images = phantoms.images.copy()
    images[7] = 0  # in which no lungs are found
    expected, said = lung_regions.find_lungs(dataset, [images], progress=quiet)
    parts = np.split(images, [7, 8, 30])
    found, said_of_parts = lung_regions.find_lungs(dataset, parts, progress=quiet)
    np.testing.assert_array_equal(found, expected)
    assert said == said_of_parts
    assert f", {0 if given else 1} of 40 implausible" in said
    counted, _ = lung_regions.find_lungs(dataset, parts, progress=quiet, square=3)
    by_square = expected.reshape(40, 20, 3, 20, 3).astype(int).sum((2, 4))
    np.testing.assert_array_equal(counted, by_square)


@pytest.mark.parametrize("column", ["path", "mask"])
def test_all_files_that_cannot_be_read_are_named_at_once(drawn, monkeypatch, tmp_path, column):
    phantoms, _ = drawn
    dataset = write_phantoms(tmp_path, list(phantoms.images), phantoms)
    for row in (3, 33):
        (tmp_path / dataset.table[column][row]).write_bytes(b"no image")
    monkeypatch.setattr(shortcuts, "AT_ONCE", 7)
    with pytest.raises(UnreadableImages) as refused:
        shortcuts.audit_shortcuts(dataset, progress=quiet)
    assert [name for name, _ in refused.value.unreadable] == list(dataset.table[column][[3, 33]])


def test_pairs_compared_in_blocks_are_as_similar_as_compared_at_once(drawn, monkeypatch, rng):
    images = np.repeat(np.repeat(drawn[0].images[:12], 2, 1), 2, 2)
    images = np.concatenate([images, np.clip(images[:6] * 0.9 + 9, 0, 255).astype(np.uint8)])
    views = views_of(images, np.arange(len(images)))
    first, second = np.triu_indices(len(images), 1)
    count = len(first)
    candidates = alignment.Candidates(
        first, second, alignment._identity(count), np.ones(count, np.float32)
    )
    expected = alignment.similarities(views, candidates)
    monkeypatch.setattr(alignment, "_KEPT", 6 * 128**2)  # three pairs of the finest level
    seen = []
    found = alignment.similarities(views, candidates, seen.append)
    np.testing.assert_array_equal(found, expected)
    assert (found > duplicates.NEAR).sum() >= 6
    assert len(seen) > 1
    assert seen[-1] == count
