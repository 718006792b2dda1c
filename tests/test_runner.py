import sys

import nbformat
import pytest

from covid_lab.runs import runner


@pytest.fixture
def project(tmp_path, monkeypatch, python):
    """A project of notebooks of our own; the first cell of each names the settings."""
    monkeypatch.setenv("PYTHONPATH", str(runner.PROJECT))
    monkeypatch.setattr(runner, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "executable", python)  # of the kernels

    def write(name, *sources):
        cells = [nbformat.v4.new_code_cell(source) for source in ("DATA = None", *sources)]
        cells[0].metadata["tags"] = ["parameters"]
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)

    return write


def test_notebooks_run_in_order_in_their_own_folders_with_progress_and_pages(
    project, tmp_path, capsys
):
    project("first", "open('made', 'w').write('1')", "print('spoken\\nwhile running')")
    project("studies/second", "print(open('../made').read() + DATA)")
    expected = {"first": 20, "studies/second": 0.001}
    names, values = list(expected), {"DATA": "x"}
    runner.run_notebooks(names, values, tmp_path / "results", expected=expected)
    lines = capsys.readouterr().out.splitlines()
    assert "[1/2 first]   while running" in lines
    assert "[2/2 studies/second]   1x" in lines
    assert sum("left in all" in line for line in lines) == 3
    assert sum("longer than the 0 s expected" in line for line in lines) == 2
    for name in ("first", "second"):
        page = (tmp_path / "results" / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "<html" in page


def test_what_is_written_has_the_committed_cell_and_no_path_of_the_machine(
    project, tmp_path, capsys
):
    data = str(tmp_path / "some folder" / "images.zip")
    project(
        "only", "print(DATA)", "DATA", "import sys; print('a warning', file=sys.stderr)",
        "from covid_project import tuning",
        "print(tuning.run_points.func.__module__, tuning.run_points.keywords)",
        "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()",
    )  # fmt: skip
    values, results = {"DATA": data, "RESULTS": None}, tmp_path / "results"
    runner.run_notebooks(["only"], values, results, expected={"other": 9}, workers=3)
    path = results / "notebooks" / "only.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source == "DATA = None"
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4, 5, 6, 7]
    assert notebook.cells[1].outputs[0].text == "images.zip\n"
    assert notebook.cells[2].outputs[0].data["text/plain"] == "'images.zip'"
    assert notebook.cells[3].outputs == []  # only in the log
    spread = "covid_lab.runs.workers {'workers': 3, 'backend': 'loky'}\n"
    assert notebook.cells[5].outputs[0].text == spread
    assert "image/png" in notebook.cells[6].outputs[0].data
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert "a warning" in (results / "cache" / "logs" / "only.log").read_text(encoding="utf-8")
    assert "left" not in capsys.readouterr().out  # no time that is not known


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", r"(?s)broken\.ipynb.*ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", r"broken\.ipynb.*broken\.log"),
    ],
)
def test_an_error_or_a_dead_kernel_ends_the_run_and_keeps_the_page(
    project, tmp_path, code, message
):
    project("broken", code)
    project("never", "open('reached', 'w')")
    with pytest.raises(runner.NotebookFailed, match=message):
        runner.run_notebooks(["broken", "never"], {"DATA": "x"}, tmp_path / "results")
    page = (tmp_path / "results" / "notebooks" / "broken.html").read_text(encoding="utf-8")
    assert ("ZeroDivisionError" in page) == (code == "1 / 0")
    assert not (tmp_path / "reached").exists()
