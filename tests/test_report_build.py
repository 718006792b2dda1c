"""The report is set from a finished run; what is planted wrong is found."""

import shutil

import pandas as pd
import pytest
from report_runs import complete_run

from covid_lab.__main__ import main
from covid_lab.report import build, checks
from covid_lab.report.build import ReportFault

needs_latex = pytest.mark.skipif(build.engine() is None, reason="neither latexmk nor tectonic here")


@pytest.fixture
def results(small_run, tmp_path):
    return shutil.copytree(complete_run(small_run[0]), tmp_path / "results")


@pytest.fixture
def source(tmp_path):
    return shutil.copy(build.SOURCE, tmp_path / "Report.tex")


def plant(source, old, new):
    text = source.read_text(encoding="utf-8")
    assert old in text
    source.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_committed_text_has_no_fault_on_a_fresh_run(results):
    assert build.write_evidence(results) == []
    text = build.SOURCE.read_text(encoding="utf-8")
    assert checks.missing_figures(text, results) == []


def test_a_planted_number_is_found(results, source):
    plant(source, "\\section{Conclusions}", "\\section{Conclusions}\nThe accuracy is 0.97.")
    (fault,) = build.write_evidence(results, source)
    assert "0.97 is typed" in fault


def test_a_planted_reference_is_found(results, source):
    plant(source, "\\section{Conclusions}", "\\section{Conclusions}\nSee \\ref{fig:nowhere}.")
    assert build.write_evidence(results, source) == ["\\ref to fig:nowhere, which is nowhere"]


def test_a_table_that_changed_makes_figures_and_values_stale(results):
    build.write_evidence(results)
    table = pd.read_csv(results / "history_baseline.csv")
    table.loc[0, "loss"] += 0.1
    table.to_csv(results / "history_baseline.csv", index=False)
    faults = build.source_faults(results, build.SOURCE, build.collect(results))
    assert any("values.tex is stale: history_baseline.csv changed" in fault for fault in faults)
    figure = "history_baseline.pdf is stale: made from another history_baseline.csv"
    assert any(figure in fault for fault in faults)
    # The command writes the values anew; the figure is for its notebook to draw.
    (fault,) = build.write_evidence(results)
    assert figure in fault


def test_a_value_edited_by_hand_is_found(results):
    build.write_evidence(results)
    path = results / "report" / "values.tex"
    path.write_text(path.read_text().replace("{n.train}{48}", "{n.train}{480}"))
    (fault,) = build.source_faults(results, build.SOURCE, build.collect(results))
    assert "values.tex is stale: it was edited by hand" in fault


def test_without_latex_one_line_says_what_to_install(results, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["report", "--results", str(results)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "install latexmk" in line
    assert "tectonic" in line
    assert (results / "report" / "values.tex").is_file()


def test_an_unfinished_run_is_named(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path)]) == 1
    assert "run all four notebooks first" in capsys.readouterr().err


def test_a_run_without_its_extras_is_told_how_to_make_them(small_run, tmp_path, capsys):
    results = shutil.copytree(small_run[0] / "made", tmp_path / "results")
    assert main(["report", "--results", str(results)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "run studies/course_extras.ipynb after the four notebooks" in line
    assert "python -m covid_lab run --study course_extras" in line


@needs_latex
def test_the_report_is_set_whole_and_marked_as_a_machinery_test(results, capsys):
    assert main(["report", "--results", str(results)]) == 0
    assert (results / "report" / "Report.pdf").read_bytes().startswith(b"%PDF")
    assert build.pdf_faults(results) == []
    assert "\\definevalue{run.phantoms}{1}" in (results / "report" / "values.tex").read_text()
    output = capsys.readouterr().out
    assert "warning: to be written by the team: names" in output
    first = (results / "report" / "Report.pdf").read_bytes()
    build.build(results)
    assert (results / "report" / "Report.pdf").read_bytes() == first


@needs_latex
def test_a_report_too_short_and_unresolved_is_said_to_be(results, source):
    build.write_evidence(results)
    plant(source, "\\section{Introduction}", "See \\ref{no:where}.\\end{document}")
    build.build(results, source)
    faults = build.pdf_faults(results, source)
    assert "LaTeX: no:where is undefined" in faults
    assert any("allowed: 10 to 15" in fault for fault in faults)


@needs_latex
def test_a_pdf_older_than_its_text_is_stale(results, source):
    build.write_evidence(results)
    build.build(results, source)
    plant(source, "\\section{Introduction}", "\\section{Introduction} More.")
    assert "Report.pdf is stale: Report.tex changed since" in build.pdf_faults(results, source)[0]


@needs_latex
def test_an_error_of_latex_is_shown_and_leaves_no_pdf(results, source):
    build.write_evidence(results)
    plant(source, "\\section{Introduction}", "\\nosuchcommand")
    with pytest.raises(ReportFault, match="Undefined control sequence"):
        build.build(results, source)
    assert not (results / "report" / "Report.pdf").exists()
