"""HTML pages of one look: style, skeleton, tables and figures are written only here.

A page is one file that needs neither a script nor the network: style and images are inside. Its
text is in a Jinja2 template of ``covid_lab/templates``, which extends ``page.html``. Values are
escaped, and control characters in them are written out.
"""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

PAGE = "index.html"  # of a run, of an external test
TEMPLATES = Path(__file__).parent / "templates"
LONG = 60  # characters from which a cell of a table is a sentence and needs a wide column
WIDE = 600  # pixels from which a figure would be illegible on a phone, and scrolls in its own box


def render(template: str, **values: object) -> str:
    """Write a page.

    Parameters
    ----------
    template : str
        File name in ``covid_lab/templates``.
    **values : object
        What the template names. Text is escaped unless it is ``markupsafe.Markup``.

    Returns
    -------
    str
        The whole page as HTML.

    Raises
    ------
    jinja2.TemplateNotFound
        There is no such template.
    jinja2.UndefinedError
        A value that the template names is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=cell, image=image_url, wide=_is_wide)
    environment.globals.update(LONG=LONG)
    return environment.get_template(template).render(**values)


def visible(value: object) -> object:
    r"""Write out the control characters of a text, which a browser would not show.

    Parameters
    ----------
    value : object
        Only a plain ``str`` with characters that cannot be printed is changed.

    Returns
    -------
    object

    Examples
    --------
    >>> print(visible("a\x1bb"))
    'a\x1bb'
    """
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return repr(value) if plain and not value.isprintable() else value


def cell(value: object) -> object:
    """Format a value for a cell of a table.

    Parameters
    ----------
    value : object
        A missing value becomes an empty cell, a float gets three digits, an integer commas.

    Returns
    -------
    object
        A ``str`` for numbers; text is returned as it is.

    Examples
    --------
    >>> cell(0.98765), cell(1200), cell(float("nan")), cell("border")
    ('0.988', '1,200', '', 'border')
    """
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return number_text(value) if isinstance(value, float | np.floating) else value


def interval(
    value: float, low: float = np.nan, high: float = np.nan, *, digits: int = 3, sign: str = "-"
) -> Markup:
    """Write a value with its interval, on one line.

    Parameters
    ----------
    value, low, high : float
        NaN where they are undefined.
    digits : int
        After the decimal point.
    sign : {"-", "+"}
        "+" writes the sign of positive numbers, too, for differences.

    Returns
    -------
    Markup
        "0.950 (0.910–0.973)"; with signs, "to" stands in place of the dash.

    Examples
    --------
    >>> print(interval(0.95, 0.91, 0.973).striptags(), interval(-0.1, -0.2, 0.1).striptags())
    0.950 (0.910–0.973) −0.100 (−0.200 to 0.100)
    """
    if pd.isna(value):
        return Markup("not defined")
    text = number_text(value, digits, sign)
    if not pd.isna(low):
        between = " to " if sign == "+" or low < 0 else "–"
        text += f" ({number_text(low, digits, sign)}{between}{number_text(high, digits, sign)})"
    return Markup('<span class="value">{}</span>').format(text)


def number_text(value: float, digits: int = 3, sign: str = "-") -> str:
    """Write a number with fixed digits, a true minus sign, and no sign on a rounded zero.

    Parameters
    ----------
    value : float
    digits : int
        After the decimal point.
    sign : {"-", "+"}
        "+" writes the sign of positive numbers, too.

    Returns
    -------
    str
    """
    value = round(float(value), digits) + 0.0  # the sum makes 0.0 of -0.0
    return f"{value:{sign if value else '-'}.{digits}f}".replace("-", "−")


def image_url(content: bytes | str, kind: str = "png") -> str:
    """Return an image as a data URL, so that the page needs no other file.

    Parameters
    ----------
    content : bytes or str
        The image file, or its text in base64.
    kind : {"png", "jpeg"}

    Returns
    -------
    str
    """
    text = base64.b64encode(content).decode() if isinstance(content, bytes) else content.strip()
    return f"data:image/{kind};base64,{text}"


def _is_wide(content: bytes | str) -> bool:
    """Tell whether an image, a file or base64, is too wide for a narrow screen."""
    data = content if isinstance(content, bytes) else base64.b64decode(content)
    with Image.open(io.BytesIO(data)) as image:
        return image.width > WIDE
