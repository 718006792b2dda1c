"""``python -m covid_lab.documentation``: write the generated pages of ``docs/``.

With ``--check`` nothing is written. The links and the generated pages are checked instead.
"""

import argparse
import sys

from covid_lab.documentation.links import broken_links, documents
from covid_lab.documentation.pages import PAGES, page
from covid_project.files import write_text
from covid_project.settings import PROJECT


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or check pages and links.

    Parameters
    ----------
    arguments : list of str, optional
        Options; None: those of the process.

    Returns
    -------
    int
        Exit status: 0, or 1 where a check fails.
    """
    parser = argparse.ArgumentParser(prog="python -m covid_lab.documentation", description=__doc__)
    parser.add_argument("--check", action="store_true", help="check instead of writing")
    check = parser.parse_args(arguments).check
    faults = broken_links(documents(PROJECT), PROJECT) if check else []
    for name in PAGES:
        path, text = PROJECT / "docs" / name, page(name, PROJECT / "results")
        if not check:
            write_text(path, text)
            print(f"written: docs/{name}")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            faults.append(f"docs/{name} differs from the tables in results/: run make docs-tables")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
