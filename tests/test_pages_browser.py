"""The pages in a real browser: they fit the screen and the paper, and need neither script nor net.

The driver is Playwright with an installed Chromium or Chrome, or with Playwright's own. Without
them these tests are skipped.
"""

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import HOUSE
from keras import layers
from PIL import Image, ImageOps

from covid_lab.audit import command as audit
from covid_lab.audit.controls import draw_phantoms, write_phantoms
from covid_lab.external import command as external
from covid_lab.external.models import OWN_SCORES
from covid_lab.phantoms import write_dataset
from covid_lab.runs import runner
from covid_lab.runs.page import write_page
from covid_lab.runs.settings import course_settings
from covid_project.data import PHANTOM_MARK
from covid_project.files import write_csv
from covid_project.results import open_run

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is missing: pip install -r requirements-bench.txt"
)

SIDE = 48
PAGES = ("audit", "external", "run")
WIDTHS = (1200, 400)
PAPER = 680  # CSS pixels of an A4 page between margins of 15 mm
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LONG = "a_model_with_a_name_that_is_rather_long"
TEXT = {  # that a reader without scripts must find
    "audit": ("Audit of drawn", "<again> &.png", "labelled", "second reader", "lungs only"),
    "external": ("External test on", LONG, "specificity", "Logits by class", "border only"),
    "run": ("Run on drawn", "drawn, not of patients", "accuracy", "Every trial", "evaluation"),
}
BOXES = "document.querySelectorAll('.table, .wide')"


# ---- the pages, from phantoms -------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Drawn radiographs whose border tells the label; one is copied, two have the other label."""
    folder = write_dataset(
        tmp_path_factory.mktemp("data") / "drawn", {"train": 40, "val": 12, "test": 12}, SIDE, 0
    )
    for path in folder.glob("*/COVID/*.png"):
        with Image.open(path) as image:
            ImageOps.expand(ImageOps.crop(image, 5), 5, fill=200).save(path)
    train = sorted((folder / "train" / "NORMAL").glob("*.png"))
    shutil.copy(train[0], folder / "test" / "NORMAL" / "<again> &.png")
    for image in train[1:3]:
        image.rename(folder / "train" / "COVID" / f"{image.stem}_{'moved_' * 6}.png")
    return folder


@pytest.fixture(scope="module")
def audit_page(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    images = [path.relative_to(drawn).as_posix() for path in (drawn / "train").rglob("*.png")]
    metadata = pd.DataFrame({"image": images, "second_label": "NORMAL"})
    metadata.to_csv(out / "metadata.csv", index=False)
    audit.run(audit.Request(data=drawn, out=out, metadata=out / "metadata.csv"))
    return out / "audit.html"


@pytest.fixture(scope="module")
def external_page(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("external")
    others = draw_phantoms(20, SIDE, seed=4)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_phantoms(elsewhere, list(others.images), others)
    (elsewhere / PHANTOM_MARK).write_text("{}")
    images = keras.Input((SIDE, SIDE, 1))
    maps = layers.Conv2D(2, 3, activation="relu")(images)
    model = keras.Model(images, layers.Dense(1)(layers.GlobalAveragePooling2D()(maps)))
    model.save(out / f"{LONG}.keras")
    labels = np.arange(40) % 2
    scores = np.random.default_rng(0).normal(size=40) + 2 * labels
    write_csv(
        out / OWN_SCORES / f"{LONG}.csv", pd.DataFrame({"label": labels, "score": scores - 1})
    )
    return external.run(
        external.Request(
            models=(out / f"{LONG}.keras",), data=elsewhere, own=drawn, out=out / "elsewhere"
        )
    )


@pytest.fixture(scope="module")
def run_page(drawn, tmp_path_factory):
    """A run with two short notebooks, one of which draws two figures, and a tested model."""
    project = tmp_path_factory.mktemp("project")
    results = project / "results"
    settings, _ = course_settings(data=drawn, results=results, changes={"allow_shared_files": True})
    run = open_run(settings)
    run.enter_test("baseline", "0123456789abcdef")
    scores = np.random.default_rng(0).normal(size=len(run.dataset.rows("test")))
    run.record_metrics("baseline", "test", scores)
    drawing = "save_figure = lambda figure, name: None\nimport matplotlib.pyplot as plt"
    narrow = 'figure, axis = plt.subplots(figsize=(4, 3))\nsave_figure(figure, "test_metrics")'
    wide = "figure, axes = plt.subplots(1, 4, figsize=(11, 3))"
    wide += '\nsave_figure(figure, "tuning_baseline")'
    for name, sources in {
        "baseline": (drawing, narrow, wide),
        "gradcam": ("print('drawn')",),
    }.items():
        cells = [nbformat.v4.new_code_cell(source) for source in ("DATA = None", *sources)]
        cells[0].metadata["tags"] = [runner.TAG]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), project / f"{name}.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "PROJECT", project)
        patch.setenv("PYTHONPATH", str(HOUSE))
        runner.run_notebooks(["baseline", "gradcam"], {"DATA": "drawn"}, results)
    return write_page(results)


@pytest.fixture(scope="module")
def paths(audit_page, external_page, run_page):
    return {"audit": audit_page, "external": external_page, "run": run_page}


# ---- the browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=found, args=arguments)
        except sync_api.Error as error:
            pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def show(browser, paths):
    """Open a page at a width; everything it asks for beside itself is listed in ``asked``."""
    contexts = []

    def open_page(name, width=1200, scripts=True):
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 900}, java_script_enabled=scripts
            )
        )
        page = contexts[-1].new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.goto(paths[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_the_screen(show, name, width):
    page = show(name, width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Hidden overflow would not count in the scroll width: no element may stick out, except what is
    # in a box that scrolls.
    outside = page.evaluate(
        "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.table, .wide') && "
        "e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 200))"
    )
    assert outside == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_every_image_is_loaded_and_legible(show, name, width):
    images = show(name, width).evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt])"
    )
    assert images
    for complete, natural, shown, alternative in images:
        assert complete
        assert natural > 0
        assert alternative
        assert shown >= 0.5 * natural or name == "audit"  # the audit's are thumbnails


@pytest.mark.parametrize("name", PAGES)
def test_nothing_else_is_loaded_and_every_link_has_its_target(show, paths, name):
    page = show(name)
    assert {urlsplit(url).scheme for url in page.asked} <= {"file", "data"}
    assert [url for url in page.asked if url.startswith("file")] == [paths[name].as_uri()]
    assert page.complaints == []
    links = page.evaluate("[...document.links].map(a => a.href)")
    assert len(links) == (2 if name == "run" else 0)
    for link in links:
        assert Path(unquote(urlsplit(link).path)).is_file()


@pytest.mark.parametrize("name", PAGES)
def test_the_text_is_there_without_scripts(show, name):
    page = show(name, scripts=False)
    text = page.inner_text("body")
    for expected in TEXT[name]:
        assert expected.casefold() in text.casefold()
    assert "{{" not in text
    assert "<span" not in text
    assert "nan" not in text.split()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_printed_whole(show, name):
    page = show(name, PAPER)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut = f"[...{BOXES}].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_what_is_wider_than_the_screen_scrolls_in_its_box(show):
    page = show("external", 400)
    box = page.locator(".table").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.focus()  # by the keyboard, too
    page.keyboard.press("ArrowRight")
    for _ in range(50):  # the browser scrolls smoothly
        if box.evaluate("e => e.scrollLeft > 0"):
            break
        page.wait_for_timeout(100)
    assert box.evaluate("e => e.scrollLeft > 0")
