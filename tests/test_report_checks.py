"""What the checks of the report find, and what they let pass."""

import pytest

from covid_lab.report import checks
from covid_lab.report.evidence import Evidence

HEAD = "\\documentclass[10pt]{article}\n\\begin{document}\n"
TAIL = (
    "\n\\begin{thebibliography}{99}\\bibitem{a} Vol. 8, 2020.\\end{thebibliography}\n"
    "\\end{document}"
)


def document(text):
    return HEAD + text + TAIL


@pytest.mark.parametrize(
    "text",
    [
        "The accuracy is 0.95.",
        "We used 3 layers.",
        "In formulas too: $p < 0.05$.",
        "$x = 12$",
        "\\section{Task 2}",
        "COVID-19 had 7 waves.",
        "\\val{key} and 4.",
    ],
)
def test_a_typed_number_is_found_with_its_line(text):
    (complaint,) = checks.typed_numbers(document("First line.\n" + text))
    assert "line 4" in complaint


@pytest.mark.parametrize(
    "text",
    [
        "The accuracy is \\val{test.baseline2.accuracy}. % 0.95",
        "COVID-19, ResNet50V2 and $F_1$.",
        "$\\frac{1}{HW}\\sum_{i=0}^{2} x_i$",
        "\\begin{equation}\\frac{1}{2}\\end{equation}",
        "Fig.~\\ref{fig:history2}, \\cite{holm1979}.",
        "\\begin{minipage}[b]{0.5\\linewidth}x\\end{minipage}",
        "\\choice{a1}{same}{more}{less}\\ifyes{b2}{yes}{no}",
    ],
)
def test_macros_names_layout_and_notation_are_no_typed_numbers(text):
    assert checks.typed_numbers(document(text)) == []


def test_numbers_inside_the_sentences_of_a_choice_are_typed_too():
    assert checks.typed_numbers(document("\\choice{a}{by 5}{more}{less}"))


def test_macros_must_be_made_and_used():
    evidence = Evidence({"made": "1", "spare": "2"}, {"made": "", "spare": ""}, {})
    text = document("\\val{made}\\ifyes{lost}{x}{y}\\input{table_made}\\input{table_lost}")
    assert checks.macros(text, evidence) == [
        "Report.tex uses the value lost, which nothing makes",
        "the value spare is made, and Report.tex does not use it",
        "Report.tex uses the table lost, which nothing makes",
        "the table spare is made, and Report.tex does not use it",
    ]


def test_references_must_resolve_and_floats_be_referred_to():
    text = document("\\ref{q:lost}\\cite{a,b}\\label{q:x}\\label{q:x}\\narrowfigure{f}{caption}")
    found = checks.references(text)
    assert "\\ref to q:lost, which is nowhere" in found
    assert "\\cite of b, which is not among the references" in found
    assert "the label q:x is there twice" in found
    assert "fig:f is never referred to" in found
    assert "0 questions are answered, the sheet asks 24" in found


def test_definitions_of_commands_are_no_references():
    text = "\\newcommand{\\x}[1]{\\label{fig:#1}\\ref{#1}\\val{#1}}" + document("\\cite{a}")
    assert checks.references(text) == ["0 questions are answered, the sheet asks 24"]


def test_places_of_the_team_are_found_in_the_head_too():
    text = "\\newcommand{\\teamplace}[1]{#1}\\author{\\teamplace{names}}" + document(
        "\\teamplace{who did what}"
    )
    assert [line.rpartition(": ")[2] for line in checks.marked_places(text)] == [
        "names",
        "who did what",
    ]


@pytest.mark.parametrize(("pages", "fine"), [(9, False), (10, True), (15, True), (16, False)])
def test_pages(pages, fine):
    assert (checks.page_count(pages) == []) == fine


def test_what_latex_left_unresolved_is_read_from_its_broken_lines():
    log = "LaTeX Warning: Reference `fig:lo\nst' on page 3 undefined on input line 7.\n"
    log = log.replace("lo\nst", "lost")
    log += "LaTeX Warning: Citation `x' on page 1 \nundefined on input line 9.\n"
    assert checks.unresolved(log) == [
        "LaTeX: fig:lost is undefined",
        "LaTeX: x is undefined",
    ]


def test_a_group_without_images_misses_no_figure(tmp_path):
    names = [f"images_gradcam_{name}" for name in ("covid_correct", "normal_misclassified")]
    text = document("".join(f"\\widefigure{{{name}}}{{caption}}" for name in names))
    (tmp_path / "gradcam.csv").write_text("label,predicted\n0,0\n1,1\n1,0\n")
    (missing,) = checks.missing_figures(text, tmp_path)
    assert "images_gradcam_covid_correct.pdf is missing" in missing
    checks.figure_path(tmp_path, names[0]).parent.mkdir()
    checks.figure_path(tmp_path, names[0]).touch()
    assert checks.missing_figures(text, tmp_path) == []


def test_an_edited_file_is_told_from_one_whose_source_changed(tmp_path):
    (tmp_path / "values.tex").write_text("% from a.csv 11\n\\definevalue{x}{2}\n")
    (edited,) = checks.stale_files(
        {"values.tex": "% from a.csv 11\n\\definevalue{x}{1}\n"}, tmp_path
    )
    assert "edited by hand" in edited
    (changed,) = checks.stale_files({"values.tex": "% from a.csv 22\n"}, tmp_path)
    assert "a.csv changed since" in changed
    (missing,) = checks.stale_files({"table_x.tex": ""}, tmp_path)
    assert "is missing" in missing
