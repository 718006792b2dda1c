import nbformat
import pytest

from covid_lab.runs import runner
from covid_project.settings import SETTINGS_VARIABLE, load_settings


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A project of two notebooks of our own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(runner.PROJECT))
    monkeypatch.setattr(runner, "PROJECT", tmp_path)
    monkeypatch.setenv(SETTINGS_VARIABLE, "")  # so that the runner's own is taken back afterwards

    def write(name, *sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")

    return write


def test_notebooks_run_in_order_with_progress_and_pages(house, tiny_profile, tmp_path, capsys):
    house("first", "open('made', 'w').write('1')", "print('spoken\\nwhile running')")
    house(
        "second",
        "import os; from covid_project.settings import load_settings",
        "print(open('made').read() + load_settings().profile)",
    )
    settings = load_settings(tiny_profile)
    runner.run_notebooks(settings, ("first", "second"))
    lines = capsys.readouterr().out.splitlines()
    assert "[1/2 first]   while running" in lines
    assert "[2/2 second]   1tiny" in lines  # the kernel has the runner's settings
    assert sum("left in all" in line for line in lines) == 4
    for name in ("first", "second"):
        assert "<html" in (tmp_path / "results" / "notebooks" / f"{name}.html").read_text()


def test_a_failing_cell_names_notebook_and_error_and_keeps_the_page(house, tiny_profile, tmp_path):
    house("broken", "1 / 0")
    house("never", "open('reached', 'w')")
    with pytest.raises(runner.NotebookFailed, match=r"(?s)broken\.ipynb.*ZeroDivisionError"):
        runner.run_notebooks(load_settings(tiny_profile), ("broken", "never"))
    assert "ZeroDivisionError" in (tmp_path / "results" / "notebooks" / "broken.html").read_text()
    assert not (tmp_path / "reached").exists()


def test_a_kernel_that_dies_is_reported(house, tiny_profile):
    house("dying", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(runner.NotebookFailed, match=r"dying\.ipynb.*dying\.log"):
        runner.run_notebooks(load_settings(tiny_profile), ("dying",))
