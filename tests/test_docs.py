"""The generated pages are what the tables give, and a broken link is found."""

from covid_lab.documentation.links import broken_links
from covid_lab.documentation.pages import PAGES, page
from covid_project.settings import PROJECT


def test_generation_changes_nothing():
    for name in PAGES:
        committed = (PROJECT / "docs" / name).read_text(encoding="utf-8")
        assert page(name, PROJECT / "results") == committed, f"run make docs-tables: docs/{name}"


def test_planted_broken_links_are_found_and_no_others(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "data.csv").touch()
    other = "# Title\n\n## What is *read*?\n\n## Twice\n\n## Twice\n"
    (tmp_path / "docs" / "other.md").write_text(other, encoding="utf-8")
    text = """# Page
[file](../data.csv) [page](other.md) [heading](other.md#what-is-read) [second](other.md#twice-1)
[here](#page) [web](https://example.org/nothing) ![picture](../data.csv "title")

```
[code](nowhere.md)
```

[one](missing.md) [two](other.md#nothing) [three](#other) [four](../../outside.md)
"""
    page = tmp_path / "docs" / "page.md"
    page.write_text(text, encoding="utf-8")
    assert broken_links([page], tmp_path) == [
        "docs/page.md: no file missing.md",
        "docs/page.md: no heading #nothing in other.md",
        "docs/page.md: no heading #other in page.md",
        "docs/page.md: no file ../../outside.md",
    ]
