import nbformat
import pytest

from covid_lab.runs import runner


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of notebooks of our own; the first cell of each names the settings."""
    monkeypatch.setenv("PYTHONPATH", str(runner.PROJECT))
    monkeypatch.setattr(runner, "PROJECT", tmp_path)

    def write(name, *sources):
        cells = [nbformat.v4.new_code_cell(source) for source in ("DATA = None", *sources)]
        cells[0].metadata["tags"] = ["parameters"]
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)

    return write


def executed(tmp_path, name):
    path = tmp_path / "results" / "notebooks" / f"{name}.ipynb"
    return path.read_text(encoding="utf-8"), nbformat.read(path, as_version=4)


def test_notebooks_run_in_order_in_their_own_folders_with_progress_and_pages(
    project, tmp_path, capsys
):
    project("first", "open('made', 'w').write('1')", "print('spoken\\nwhile running')")
    project("studies/second", "print(open('../made').read() + DATA)")
    expected = {"first": 20, "studies/second": 30}
    names, values = list(expected), {"DATA": "x"}
    runner.run_notebooks(names, values, tmp_path / "results", expected=expected)
    lines = capsys.readouterr().out.splitlines()
    assert "[1/2 first]   while running" in lines
    assert "[2/2 studies/second]   1x" in lines
    assert sum("left in all" in line for line in lines) == 5
    for name in ("first", "second"):
        page = (tmp_path / "results" / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "<html" in page


def test_without_expected_seconds_no_time_left_is_invented(project, tmp_path, capsys):
    project("first")
    project("second")
    for expected in (None, {"first": 20}):
        names, values = ["first", "second"], {"DATA": "x"}
        runner.run_notebooks(names, values, tmp_path / "results", expected=expected)
        output = capsys.readouterr().out
        assert "[2/2 second] cell 1 of 1 done" in output
        assert "left" not in output


def test_a_notebook_that_takes_longer_than_expected_says_so(project, tmp_path, capsys):
    project("slow")
    runner.run_notebooks(["slow"], {"DATA": "x"}, tmp_path / "results", expected={"slow": 0.001})
    output = capsys.readouterr().out
    assert "longer than the 0 s expected" in output
    assert "left in all" not in output


def test_what_is_written_has_the_committed_cell_and_no_path_of_the_machine(project, tmp_path):
    data = str(tmp_path / "some folder" / "images.zip")
    project("only", "print(DATA)", "DATA", "import sys; print('a warning', file=sys.stderr)")
    runner.run_notebooks(["only"], {"DATA": data, "RESULTS": None}, tmp_path / "results")
    text, notebook = executed(tmp_path, "only")
    assert notebook.cells[0].source == "DATA = None"
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    assert notebook.cells[1].outputs[0].text == "images.zip\n"
    assert notebook.cells[2].outputs[0].data["text/plain"] == "'images.zip'"
    assert notebook.cells[3].outputs == []  # only in the log
    assert str(tmp_path) not in text
    assert "a warning" in (tmp_path / "results/cache/logs/only.log").read_text(encoding="utf-8")


def test_with_workers_the_trials_of_a_search_are_spread(project, tmp_path):
    project(
        "only",
        "from covid_project import tuning",
        "print(tuning.run_points.func.__module__, tuning.run_points.keywords)",
    )
    runner.run_notebooks(["only"], {"DATA": None}, tmp_path / "results", workers=3)
    _, notebook = executed(tmp_path, "only")
    said = "covid_lab.runs.workers {'workers': 3, 'backend': 'loky'}\n"
    assert notebook.cells[2].outputs[0].text == said


def test_a_failing_cell_names_notebook_and_error_and_keeps_the_page(project, tmp_path):
    project("broken", "1 / 0")
    project("never", "open('reached', 'w')")
    with pytest.raises(runner.NotebookFailed, match=r"(?s)broken\.ipynb.*ZeroDivisionError"):
        runner.run_notebooks(["broken", "never"], {"DATA": "x"}, tmp_path / "results")
    page = (tmp_path / "results" / "notebooks" / "broken.html").read_text(encoding="utf-8")
    assert "ZeroDivisionError" in page
    assert not (tmp_path / "reached").exists()


def test_a_kernel_that_dies_is_reported(project, tmp_path):
    project("dying", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(runner.NotebookFailed, match=r"dying\.ipynb.*dying\.log"):
        runner.run_notebooks(["dying"], {"DATA": "x"}, tmp_path / "results")
