"""Do the links of the Markdown files lead anywhere? Files, folders and headings, not web pages."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

PLACES = ("*.md", "docs/*.md", "results/HISTORY.md")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.M | re.S)  # blocks of code hold no links
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.M)


def documents(folder: Path) -> list[Path]:
    """Return the Markdown files of the project."""
    return [path for place in PLACES for path in sorted(folder.glob(place))]


def broken_links(paths: Iterable[Path], folder: Path) -> list[str]:
    """Find the links of Markdown files whose file, folder or heading does not exist.

    Parameters
    ----------
    paths : iterable of Path
        Markdown files.
    folder : Path
        Of the project: a link that leaves it is broken, too.

    Returns
    -------
    list of str
        One message per broken link, such as "docs/audit.md: no file page.md".
    """
    return [
        f"{path.relative_to(folder).as_posix()}: {fault}"
        for path in paths
        for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
        if (fault := _fault(path, target, folder))
    ]


def _fault(path: Path, target: str, folder: Path) -> str:
    """Return what is wrong with a link, "" for nothing."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target, re.I):  # https:, mailto:
        return ""
    name, _, anchor = unquote(target).partition("#")
    file = (path.parent / name).resolve() if name else path.resolve()
    if not file.is_relative_to(folder.resolve()) or not file.exists():
        return f"no file {name}"
    if anchor and file.suffix == ".md" and anchor not in headings(file.read_text("utf-8")):
        return f"no heading #{anchor} in {file.name}"
    return ""


def headings(text: str) -> set[str]:
    """Return the anchors of a Markdown text's headings, as forges make them.

    Lower case without punctuation, with hyphens for spaces; the second heading of the same text
    has ``-1`` at its end, the third ``-2``.
    """
    anchors: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        anchor = first = words.replace(" ", "-")
        number = 0
        while anchor in anchors:
            number += 1
            anchor = f"{first}-{number}"
        anchors.add(anchor)
    return anchors
