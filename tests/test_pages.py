"""What all pages share: numbers as text, tables, images, and one style."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from conftest import HOUSE
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from covid_lab import pages
from covid_lab.pages import _is_wide, cell, image_url, interval, render, visible


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Render a template of our own, with the parts of the real ones."""

    def rendered(source, **values):
        for path in (HOUSE / "covid_lab" / "templates").iterdir():
            (tmp_path / path.name).write_text(path.read_text("utf-8"), "utf-8")
        (tmp_path / "own.html").write_text('{% import "parts.html" as parts %}' + source)
        monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
        return render("own.html", **values)

    return rendered


@pytest.mark.parametrize(
    ("numbers", "options", "expected"),
    [
        ((0.95, 0.91, 0.973), {}, "0.950 (0.910–0.973)"),
        ((0.95,), {}, "0.950"),
        ((0.95, np.nan, np.nan), {"digits": 2}, "0.95"),
        ((np.nan, 0.1, 0.2), {}, "not defined"),
        ((-0.01, -0.043, 0.013), {}, "−0.010 (−0.043 to 0.013)"),
        ((0.4, 0.3, 0.5), {"sign": "+"}, "+0.400 (+0.300 to +0.500)"),
        ((-0.0002, -0.0001, 0.0), {"sign": "+"}, "0.000 (0.000 to 0.000)"),
    ],
)
def test_an_interval_as_text(numbers, options, expected):
    text = interval(*numbers, **options)
    assert isinstance(text, Markup)
    assert text.striptags() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.98765), "0.988"), (-0.00001, "0.000"), (-0.5, "−0.500"),
        (np.int64(1200), "1,200"), (np.bool_(True), "yes"), (False, "no"),
        (None, ""), (np.nan, ""), (pd.NA, ""), ("a", "a"),
    ],
)  # fmt: skip
def test_a_cell_of_a_table(value, expected):
    assert cell(value) == expected


def test_what_cannot_be_printed_is_written_out():
    assert visible("a\x1b\n") == r"'a\x1b\n'"
    assert visible("é – ✓ <") == "é – ✓ <"
    assert visible(Markup("<br>\n")) == "<br>\n"
    assert visible(3) == 3


def test_a_table_has_every_value_escaped_and_groups_in_their_order(template):
    frame = pd.DataFrame(
        {
            "model": ["z <i>", "z <i>", "a"],
            "found": ["<b>", interval(0.5, 0.4, 0.6), "words " * 20],
            "n & m": [1, 2000, 3],
        }
    )
    text = template("{{ parts.table(frame, by='model') }}", frame=frame)
    assert re.findall(r"<th scope=\"col\".*?>(.*?)</th>", text) == ["found", "n &amp; m"]
    assert re.findall(r"<th scope=\"rowgroup\".*?>(.*?)</th>", text) == ["z &lt;i&gt;", "a"]
    assert re.findall(r"<td(.*?)>(.*?)</td>", text) == [
        ("", "&lt;b&gt;"),
        (' class="number"', "1"),
        ("", '<span class="value">0.500 (0.400–0.600)</span>'),
        (' class="number"', "2,000"),
        (' class="long"', "words " * 20),
        (' class="number"', "3"),
    ]
    table = ElementTree.fromstring(template("{{ parts.table(frame) }}", frame=frame))
    models = [row[0].text for row in table.iterfind(".//tbody/tr")]
    assert models == frame["model"].tolist()


def test_an_image_is_inside_the_page(template):
    pictures = []
    for width in (100, 1000):
        file = io.BytesIO()
        Image.new("L", (width, 10)).save(file, "PNG")
        pictures.append(file.getvalue())
    text = base64.b64encode(pictures[0]).decode()
    assert image_url(pictures[0]) == image_url(text + "\n") == f"data:image/png;base64,{text}"
    assert [_is_wide(picture) for picture in pictures] == [False, True]
    shown = template("{{ parts.figure(pictures, caption) }}", pictures=pictures, caption='"<b>')
    assert shown.count('class="wide"') == 1
    assert shown.count("data:image/png;base64,") == 2
    assert 'alt="&#34;&lt;b&gt;"' in shown


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError):
        render("run.html", title="a run")
