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


EVIDENCE = Evidence(
    {
        "test.baseline.accuracy": "0.950 (0.910--0.973)",
        "compare": "$+0.030$ [$-$0.012, $+0.070$]",
        "run.seed": "21",
        "cam.area": "64\\,\\%",
    },
    {"metrics": "AUC & 0.992 \\\\"},
    {},
)


@pytest.mark.parametrize(
    ("text", "macro"),
    [
        ("The accuracy is 0.95.", "test.baseline.accuracy"),
        ("We see 0.910 in the table.", "test.baseline.accuracy"),
        ("In 95\\,\\% of the cases.", "test.baseline.accuracy"),
        ("In 95.0 \\% of the cases.", "test.baseline.accuracy"),
        ("That is 64 \\%.", "cam.area"),
        ("A difference of $0.03$.", "compare"),
        ("\\choice{a}{by 0.950}{more}{less}", "test.baseline.accuracy"),
    ],
)
def test_a_typed_value_of_the_run_is_named_with_its_macro_and_line(text, macro):
    (warning,) = checks.typed_results(document("First line.\n" + text), EVIDENCE)
    assert "line 4" in warning
    assert f"\\val{{{macro}}}" in warning


def test_a_typed_number_beside_a_metric_that_no_value_has_is_a_contradiction():
    (warning,) = checks.typed_results(document("The AUC is 0.87, they say."), EVIDENCE)
    assert "0.87 beside 'AUC' is typed, and no value of this run" in warning


@pytest.mark.parametrize(
    "text",
    [
        "SARS-CoV-2, EfficientNetB0, ResNet50V2, F1 and Section 5.",
        "On 12 March 2026 we met 3 times, 2.5 hours each.",
        "We trained for 40 epochs with 16 filters and seed 21.",
        "An AUC of 0.992 is in the table.",
        "The threshold is 0.33.",
        "\\put(0.95\\paperwidth,0.91\\paperheight){x}\\rule{0.95cm}{0.95in} accuracy",
        "\\val{test.baseline2.accuracy} % 0.95",
        "The accuracy is \\val{test.baseline.accuracy}.",
        "\\includegraphics[width=0.95\\linewidth]{x}\\begin{minipage}[b]{0.95\\linewidth}x",
    ],
)
def test_what_a_team_writes_of_itself_and_layout_is_no_result(text):
    assert checks.typed_results(document(text), EVIDENCE) == []


def test_values_and_tables_must_be_made_but_not_used():
    evidence = Evidence({"made": "1", "spare": "2"}, {"made": "", "spare": ""}, {})
    text = document("\\val{made}\\ifyes{lost}{x}{y}\\runtable{made}\\runtable{lost}")
    assert checks.undefined(text, evidence) == [
        "Report.tex uses a value that this run has not made: lost",
        "Report.tex uses a table that this run has not made: lost",
    ]
    many = document("".join(f"\\val{{key{k}}}" for k in range(8)))
    (complaint,) = checks.undefined(many, evidence)
    assert complaint.endswith("key0, key1, key2, key3, key4 and 3 more")


def test_references_must_resolve():
    text = document("\\ref{q:lost}\\cite{a,b}\\label{q:x}\\label{q:x}\\narrowfigure{f}{caption}")
    assert checks.references(text) == [
        "\\ref to q:lost, which is nowhere",
        "\\cite of b, which is not among the references",
        "the label q:x is there twice",
    ]
    assert checks.loose_ends(text) == [
        "fig:f is never referred to",
        "0 questions are answered, the sheet asks 24",
    ]
    assert checks.loose_ends(document("")) == [
        "the reference a is never cited",
        "0 questions are answered, the sheet asks 24",
    ]


def test_definitions_of_commands_are_no_references():
    text = "\\newcommand{\\x}[1]{\\label{fig:#1}\\ref{#1}\\val{#1}\\runtable{#1}}" + document("")
    assert checks.references(text) == []
    assert checks.undefined(text, EVIDENCE) == []


def test_errors_of_latex_are_read_with_their_lines():
    log = "(./Report.aux)\n./Report.tex:12: Undefined control sequence.\nl.12 \\nosuch\n\n"
    assert checks.latex_errors(log) == [
        "Report.tex, line 12: LaTeX: Undefined control sequence. l.12 \\nosuch"
    ]


def test_what_needs_a_value_that_was_not_made_is_left_out():
    text = r"""a \ifmade{x}{one {b} \val{x}
}\ifmade{y}{two \ifmade{z}{three
} \} {c}} d"""
    found = checks.applicable(text, Evidence({"x": "1"}, {}, {}))
    assert found.split() == ["a", r"\ifmade{x}{one", "{b}", r"\val{x}", "}", "d"]
    assert found.count("\n") == text.count("\n")
    found = checks.applicable(text, Evidence({"x": "1", "y": "2"}, {}, {}))
    assert found.split()[4:] == [r"}\ifmade{y}{two", r"\}", "{c}}", "d"]


def test_observations_are_read_with_their_braces():
    text = "% about m 1\n\\observation{a}{The {\\em dip} in\nepoch 2.}\n\\observation{b}{None.}"
    assert checks.observations(text) == {"a": "The {\\em dip} in epoch 2.", "b": "None."}


def test_places_of_the_team_are_found_in_the_head_too():
    text = "\\newcommand{\\teamplace}[1]{#1}\\author{\\teamplace{names}}" + document(
        "\\teamplace{who did what}"
    )
    assert [line.rpartition(": ")[2] for line in checks.marked_places(text)] == [
        "names",
        "who did what",
    ]


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
