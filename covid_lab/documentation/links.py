"""Check the links of Markdown files to files, folders and headings; web pages are not checked."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

PLACES = ("*.md", "docs/*.md", "results/HISTORY.md")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.M | re.S)  # blocks of code hold no links
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.M)


def documents(folder: Path) -> list[Path]:
    """List the Markdown files of the project.

    Parameters
    ----------
    folder : Path
        Folder of the project.

    Returns
    -------
    list of Path
        README, ``docs/`` and the history of the results.
    """
    return [path for place in PLACES for path in sorted(folder.glob(place))]


def broken_links(paths: Iterable[Path], folder: Path) -> list[str]:
    """Find the links of Markdown files whose file, folder or heading does not exist.

    Parameters
    ----------
    paths : iterable of Path
        Markdown files.
    folder : Path
        Folder of the project; a link that leaves it is also broken.

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
    """Say what is wrong with a link; "" for nothing."""
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
    r"""Return the anchors of a Markdown text's headings, as forges make them.

    An anchor is in lower case without punctuation, with hyphens for spaces. The second heading with
    the same text gets ``-1`` at its end, the third ``-2``.

    Parameters
    ----------
    text : str
        Markdown.

    Returns
    -------
    set of str
        Anchors.

    Examples
    --------
    >>> sorted(headings("# The course run\n## Results\n## Results\n"))
    ['results', 'results-1', 'the-course-run']
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
