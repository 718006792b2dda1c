"""The report is set from a finished run; what is planted wrong is found."""

import json
import shutil
import subprocess

import pandas as pd
import pytest

from covid_lab.__main__ import main
from covid_lab.report import build

needs_latex = pytest.mark.skipif(build.engine() is None, reason="neither latexmk nor tectonic here")


FEWER = {"SEEDS = 3": "SEEDS = 2", "TESTED_EXPLANATIONS = 40": "TESTED_EXPLANATIONS = 4"}


@pytest.fixture(scope="module")
def complete(small_run):
    """Results of ``small_run`` in a copy, with the tables of ``studies/course_extras.ipynb``."""
    project, command, _ = small_run
    results = shutil.copytree(project / "made", project / "complete")
    notebook = project / "studies" / "course_extras.ipynb"
    text = notebook.read_text(encoding="utf-8")
    for many, few in FEWER.items():
        assert many in text
        text = text.replace(many, few)
    notebook.write_text(text, encoding="utf-8")
    command = [*command, "--study", "course_extras", "--results", results.name]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return results


@pytest.fixture
def results(complete, tmp_path):
    return shutil.copytree(complete, tmp_path / "results")


@pytest.fixture
def source(tmp_path):
    return shutil.copy(build.SOURCE, tmp_path / "Report.tex")


def written(results, source=build.SOURCE):
    build.write_evidence(results)
    return build.Report(results, source)


def plant(source, old, new):
    text = source.read_text(encoding="utf-8")
    assert old in text
    source.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_committed_text_has_no_fault_on_a_fresh_run(results):
    report = written(results)
    assert report.source_faults() == report.missing_figures() == report.warnings() == []


PARAGRAPH = """\\section{Conclusions}
On 12 March we compared EfficientNetB0 with our network, for SARS-CoV-2 only, see Section 5.
\\subsection{What we tried, too} Three of 4 members read 25 images each. \\begin{figure}[tb]
\\centering\\rule{2cm}{1cm}\\caption{A sketch of ours.}\\label{fig:ours}\\end{figure}
Figure~\\ref{fig:ours} is ours."""


def test_a_team_writes_deletes_and_adds_without_a_fault(results, source):
    report = written(results, source)
    plant(source, "\\section{Conclusions}", PARAGRAPH)
    plant(source, "Table~\\ref{tab:exploration} the statistics of their grey values", "no table")
    assert report.source_faults() == []
    assert report.warnings() == ["tab:exploration is never referred to"]


def test_a_typed_result_is_a_warning_and_a_lost_reference_a_fault(results, source):
    report = written(results, source)
    accuracy = report.evidence.values["test.baseline.accuracy.value"]
    more = f"\\section{{Conclusions}}\nThe accuracy is {accuracy}. See \\ref{{fig:nowhere}}."
    plant(source, "\\section{Conclusions}", more)
    (warning,) = report.warnings()
    assert f"{accuracy} is typed; it is a value of the run" in warning
    faults = report.source_faults()
    assert faults == ["\\ref to fig:nowhere, which is nowhere"]


def test_a_table_that_changed_makes_figures_and_values_stale(results):
    build.write_evidence(results)
    table = pd.read_csv(results / "history_baseline.csv")
    table.loc[0, "loss"] += 0.1
    table.to_csv(results / "history_baseline.csv", index=False)
    faults = build.Report(results).source_faults()
    assert any("values.tex is stale: history_baseline.csv changed" in fault for fault in faults)
    figure = "history_baseline.pdf is stale: made from another history_baseline.csv"
    assert any(figure in fault for fault in faults)
    # The command writes the values again; the figure is for its notebook to draw.
    (fault,) = written(results).source_faults()
    assert figure in fault


def test_without_latex_one_line_says_what_to_install(results, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["report", "--results", str(results)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "install latexmk" in line
    assert "tectonic" in line
    assert (results / "report" / "values.tex").is_file()


@needs_latex
def test_of_an_empty_folder_a_pdf_is_set_that_says_what_is_missing(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "run all four notebooks first" in output
    assert "uses a value that this run has not made: " in output
    assert (tmp_path / "report" / "Report.pdf").is_file()


@needs_latex
def test_a_run_without_its_extras_has_a_report_without_them(small_run, tmp_path, capsys):
    results = shutil.copytree(small_run[0] / "made", tmp_path / "results")
    report = written(results)
    assert report.source_faults() == report.missing_figures() == []
    assert main(["report", "--results", str(results)]) == 0
    output = capsys.readouterr().out
    assert "run studies/course_extras.ipynb after the four notebooks" in output
    assert "python -m covid_lab run --study course_extras" in output
    # Short it may be, without figures that need more; but nothing is unresolved.
    record = json.loads((results / "report" / "built.json").read_text())
    assert record["errors"] == record["unresolved"] == []


def test_observations_fill_their_places_until_the_models_change(results, source):
    report = written(results)
    ledger = pd.read_csv(results / "test_ledger.csv").query("model != 'none'")
    about = ", ".join(f"{row.stage} {row.model}" for row in ledger.itertuples())
    path = results / "report" / "observations.tex"
    text = "\\observation{q8}{It falls from \\val{initial.loss.first} to {\\em very} little.}\n"
    path.write_text(f"% about {about}\n{text}")
    places = report.unfilled_places()
    assert not [
        place for place in places if "history_baseline_initial}" in place and "noisy" in place
    ]
    assert any("Fig.~\\ref{fig:history_fine_tuned}" in place for place in places)
    assert report.source_faults() == []
    assert "{\\em very} little." in report.text

    path.write_text(f"% about {about}\n{text}\\observation{{q9}}{{\\val{{lost}}}}\n")
    (fault,) = report.source_faults()
    assert "a value that this run has not made: lost" in fault

    path.write_text(f"% about baseline 12, fine_tuned 34\n{text}")
    (fault,) = report.source_faults()
    assert "not about the models of this run" in fault


@needs_latex
def test_the_report_is_set_whole_and_marked_as_a_machinery_test(results, capsys):
    assert main(["report", "--results", str(results)]) == 0
    assert (results / "report" / "Report.pdf").read_bytes().startswith(b"%PDF")
    report = build.Report(results)
    assert report.pdf_faults() == []
    assert "\\definevalue{run.phantoms}{1}" in (results / "report" / "values.tex").read_text()
    output = capsys.readouterr().out
    assert "before you hand in: to be written by the team: names" in output
    first = (results / "report" / "Report.pdf").read_bytes()
    report.typeset()
    assert (results / "report" / "Report.pdf").read_bytes() == first


@needs_latex
def test_a_report_too_short_and_unresolved_is_said_to_be(results, source):
    report = written(results, source)
    plant(source, "\\section{Introduction}", "See \\ref{no:where}.\\end{document}")
    report.typeset()
    faults = report.pdf_faults()
    assert "LaTeX: no:where is undefined" in faults
    assert any("allowed: 10 to 15" in fault for fault in faults)


@needs_latex
def test_a_pdf_older_than_its_text_is_stale(results, source):
    report = written(results, source)
    report.typeset()
    plant(source, "\\section{Introduction}", "\\section{Introduction} More.")
    assert "Report.pdf is stale: Report.tex changed since" in report.pdf_faults()[0]


@needs_latex
def test_an_error_of_latex_is_named_and_the_pdf_is_set_all_the_same(results, source):
    report = written(results, source)
    plant(source, "\\section{Introduction}", "\\nosuchcommand")
    report.typeset()
    (fault,) = report.pdf_faults()
    assert "LaTeX: Undefined control sequence" in fault
    assert "nosuchcommand" in fault


@needs_latex
def test_names_of_any_script_are_set(results):
    settings = results / "settings.yaml"
    text = settings.read_text(encoding="utf-8")
    name = next(line for line in text.splitlines() if line.startswith("data: "))
    settings.write_text(text.replace(name, "data: 胸部X線_1%.zip"), encoding="utf-8")
    record = results / "run.json"
    record.write_text(record.read_text().replace('"phantoms": true', '"phantoms": false'))
    report = written(results)
    assert report.evidence.values["run.source"] == "\\texttt{[U+80F8][U+90E8]X[U+7DDA]\\_1\\%.zip}"
    report.typeset()
    assert report.pdf_faults() == []
