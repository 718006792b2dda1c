"""The page stands alone, shows what was found, and escapes what comes from file names."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from image_files import as_folder, encoded
from PIL import Image

from covid_lab.audit import page as audit_page
from covid_lab.audit.checklists import ITEMS, answers
from covid_lab.audit.data_checks import audit_data, named_pairs
from covid_lab.audit.findings import Finding
from covid_lab.audit.labels import CONTROL_COLUMNS, TABLE_COLUMNS, LabelAudit
from covid_lab.audit.page import Report, page
from covid_lab.audit.second_reader import confusion_table
from covid_lab.datasets import open_dataset
from covid_lab.phantoms import draw_radiograph

NASTY = "<script>alert(1)</script>&\"'.png".replace("/", "∕")  # a slash cannot be in a name


class Elements(HTMLParser):
    """Tags with their attributes, the text, and whether every element is closed."""

    EMPTY = ("meta", "img", "br", "rect", "line")

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images, one of them copied across splits and labels under a nasty name."""
    folder = tmp_path_factory.mktemp("set")
    files = {}
    for k in range(8):
        place = f"{'train' if k < 6 else 'test'}/{'NORMAL' if k % 2 else 'COVID'}/{k}.png"
        files[place] = encoded(draw_radiograph(np.random.default_rng(k), 300).image)
    files[f"test/NORMAL/{NASTY}"] = files["train/COVID/0.png"]
    return audit_data(open_dataset(as_folder(files, folder), classes=None, as_found=True))


@pytest.fixture
def report(data):
    views = pd.DataFrame({"view": ["outer <border>", "file"], "kind": ["lung-free", "metadata"]})
    for name, value in {"auc": 0.9, "low": 0.8, "high": 0.95, "null_high": 0.6}.items():
        views[name] = [value, np.nan]
    findings = [
        *data.findings,
        Finding("shortcuts", "the border", "warn", "tells", 0.9, 0.8, 0.95, 9),
        Finding("protocol", "one look", "pass", "one look each"),
    ]
    nothing = [pd.DataFrame(columns=names) for names in (TABLE_COLUMNS, CONTROL_COLUMNS, [])]
    facts = {"name": "set.zip", "fingerprint": "0123", "phantoms": False}
    return Report(
        name="set.zip",
        findings=findings,
        data=data,
        pairs=named_pairs(data),
        labels=LabelAudit([], *nothing),
        shortcuts=views,
        controls=pd.DataFrame({"control": ["x <y>"], "auc": [0.5]}),
        checklists=answers(findings),
        settings={
            "seed": 0,
            "versions": "python 3.12",
            "data": {**facts, "images": {"train/COVID": 3}},
        },
    )


def test_the_page_is_whole_and_needs_nothing_else(report):
    elements = Elements(page(report))
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "link", "iframe", "object", "form", "a"}
    attributes = {name for _, some in elements.found for name in some}
    assert not any(name.startswith("on") for name in attributes)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in elements.all("img"))
    outside = re.sub(r"data:image/jpeg;base64,[^\"]*", "", page(report))
    assert "http" not in outside.replace("http-equiv", "")
    assert "url(" not in outside
    policy = elements.all("meta")[-1]
    assert policy["content"].startswith("default-src 'none'")


def test_what_comes_from_file_names_is_text(report):
    elements = Elements(page(report))
    text = " ".join(elements.text)
    assert f"test/NORMAL/{NASTY}" in text
    assert "outer <border>" in text
    assert "x <y>" in text
    assert f"test/NORMAL/{NASTY}" in {image["alt"] for image in elements.all("img")}
    named = page(dataclasses.replace(report, name="a\nb\x1b<c>"))
    assert "<h1>Audit of a" not in named
    assert r"&#39;Audit of a\nb\x1b&lt;c&gt;&#39;" in named


def test_verdicts_come_first_and_the_gravest_of_them(report):
    text = page(report)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == ["Verdicts", "Copies", "Labels", "Shortcuts", "Protocol", "Checklists"]
    first = text.split("<h2>Copies")[0]
    order = re.findall(r'class="row"><div>\s*<span class="verdict (\w+)"', first)
    assert order == sorted(order, key=["fail", "warn", "pass", "na"].index)
    assert len(order) == len(report.findings)
    for finding in report.findings:
        assert finding.check in first


def test_both_images_of_a_pair_are_shown_as_they_are(report):
    elements = Elements(page(report))
    shown = elements.all("img")
    assert len(shown) == 2 * len(report.pairs) == 2
    for image in shown:
        content = base64.b64decode(image["src"].split(",")[1])
        pixels = np.asarray(Image.open(io.BytesIO(content)), float)
        assert pixels.shape == (256, 256)
        drawn = Image.fromarray(draw_radiograph(np.random.default_rng(0), 300).image)
        assert np.abs(pixels - np.asarray(drawn.resize((256, 256)), float)).mean() < 4
    text = " ".join(elements.text)
    assert "test, NORMAL" in text
    assert "train, COVID" in text
    assert "two labels" in text


def test_of_many_pairs_and_labels_the_first_are_shown(report, monkeypatch):
    monkeypatch.setattr(audit_page, "SHOWN", 2)
    many = pd.concat([report.pairs] * 5, ignore_index=True)
    text = page(dataclasses.replace(report, pairs=many, labels=suspects(5)))
    assert len(Elements(text).all("img")) == 2 * 2 + 2
    assert "The first 2 are shown" in text
    assert "The first 2 are shown, the rest is in labels.csv" in text


def suspects(n):
    """Labels of one path, the first of which are contradicted."""
    numbers = np.arange(n + 1)
    table = pd.DataFrame(
        {"rank": numbers + 1, "path": f"test/NORMAL/{NASTY}", "split": "test", "label": "NORMAL",
         "label_probability": 0.1, "suggested": "COVID", "suggested_probability": 0.9,
         "margin": 0.8, "contradicted": numbers < n, "second_label": np.where(numbers, "", "COVID"),
         "second_contradicts": numbers == 0}
    )  # fmt: skip
    control = ("x <y>", "contradicted", 7.4, 0.8, 0.7, 0.9, 0.75, 0.6, 0.85, 5, 50)
    readers = confusion_table(np.array(["NORMAL"]), np.array(["COVID"]), ("NORMAL", "COVID"))
    return LabelAudit([], table, pd.DataFrame([control], columns=CONTROL_COLUMNS), readers)


def test_contradicted_labels_are_shown_with_their_controls_and_the_reader(report):
    finding = Finding("labels", "labels agree", "warn", "two do not", 0.2, 0.1, 0.3, 9)
    findings = [*report.findings, finding]
    report = dataclasses.replace(report, labels=suspects(2), findings=findings)
    section = page(report).split("<h2>Labels</h2>")[1].split("</section>")[0]
    elements = Elements(section)
    assert elements.open == []
    assert [image["alt"] for image in elements.all("img")] == [f"test/NORMAL/{NASTY}"] * 2
    text = " ".join("".join(elements.text).split())
    assert "2 labels are contradicted" in text
    assert "1. labelled NORMAL (probability 0.10), model: COVID (0.90)" in text
    assert text.count("second reader: COVID") == 1
    assert "0.80 (0.70–0.90)" in text
    assert "0.75 (0.60–0.85)" in text
    assert "x <y>" in text
    assert "two do not" in text
    assert "The second reader" in text


def test_a_file_that_vanished_leaves_a_black_place(report):
    lost = report.pairs.assign(path_first="train/COVID/lost.png")
    assert len(Elements(page(dataclasses.replace(report, pairs=lost))).all("img")) == 2


def test_the_drawing_of_a_view_is_to_scale(report):
    text = page(report)
    (drawing,) = re.findall(r"(?s)<svg.*?</svg>", text)  # the view without an AUC has none
    rects = re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', drawing)
    (null, interval, dot) = [(float(x), float(width)) for x, width in rects]
    assert null == pytest.approx((0, 600))
    assert interval == pytest.approx((800, 150))
    assert dot[0] + dot[1] / 2 == pytest.approx(900)
    assert "0.900 (0.800–0.950)" in text


def test_every_checklist_item_has_its_answer_and_nothing_found_is_said(report):
    text = page(report).split("<h2>Checklists")[1]
    assert text.count('<div class="row item">') == len(ITEMS)
    assert "no image twice, in two splits" in text
    findings = [finding for finding in report.findings if finding.area == "data"]
    nothing = dataclasses.replace(report, pairs=report.pairs.iloc[:0], findings=findings)
    assert "No image was found twice" in page(nothing)
    assert "No run was given" in page(nothing)
