"""The notebooks as they are committed, and the environment that they need."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from covid_lab.handin import needed_modules
from covid_lab.runs.settings import NOTEBOOKS

HOUSE = Path(__file__).resolve().parent.parent
SHEET = {
    "numpy~=2.0.2", "tensorflow>=2.18.0", "scikit-learn~=1.6.1", "pandas~=2.2.3",
    "matplotlib~=3.10.0", "seaborn~=0.13.2", "imbalanced-learn~=0.13.0", "pyaml~=25.1.0",
}  # fmt: skip
# What the sheet's packages bring, by the names under which it is imported.
BROUGHT = {"keras", "scipy", "PIL", "yaml", "joblib", "h5py"}
SHEET_MODULES = {"numpy", "tensorflow", "sklearn", "pandas", "matplotlib", "seaborn", "imblearn"}
USED_BY_NOTEBOOKS = [
    path
    for path in needed_modules()
    if path.name not in ("runner.py", "__main__.py")  # these stand above the notebooks
]


def notebook(name):
    return nbformat.read(HOUSE / f"{name}.ipynb", as_version=4)


def source(name):
    return "\n".join(cell.source for cell in notebook(name).cells if cell.cell_type == "code")


def imported(code):
    """Top-level packages imported at the top of a module."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_carry_no_outputs(name):
    cells = [cell for cell in notebook(name).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_cells_are_short_and_headings_frequent(name):
    cells = notebook(name).cells
    code = [
        cell.source.count("\n") + 1
        for cell in cells
        if cell.cell_type == "code" and "from covid_project import figures" not in cell.source
    ]
    assert max(code) <= 30
    assert sum(cell.source.startswith("#") for cell in cells if cell.cell_type == "markdown") >= 6


STEPS = {
    "data_exploration": [
        "image generators", "arrays", "size of the sets", "distribution of the classes", "samples",
        "pixel intensities", "resizing", "normalisation", "augmentation", "pipeline",
    ],
    "baseline": [
        "set up the classification", "build the initial model", "train the initial model",
        "hyperparameter tuning", "the final baseline", "retrain on the complete training data",
        "loaded back", "test, once", "samples of the test set",
    ],
    "transfer_learning": [
        "set up the classification", "set up the base model", "train the initial model",
        "hyperparameter tuning", "complete training data", "reloaded", "fine-tuning",
        "different file", "test, once", "samples of the test set",
    ],
    "gradcam": [
        "best-performing model", "remove the final activation", "select a test sample",
        "last convolutional layer", "gradients of the predicted class", "average the gradients",
        "normalise between 0 and 1", "map the heatmap onto the image", "four groups",
        "samples of each group",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_steps_of_the_task_sheet_are_headings_findable_by_name(name):
    text = "\n".join(
        line
        for cell in notebook(name).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#") or "image generators" in line.lower()
    ).lower()
    missing = [step for step in STEPS[name] if step not in text]
    assert not missing


def test_notebooks_and_what_they_import_use_the_sheets_packages_alone():
    allowed = SHEET_MODULES | BROUGHT | {"covid_project"} | set(sys.stdlib_module_names)
    code = {path.name: path.read_text() for path in USED_BY_NOTEBOOKS}
    code |= {name: source(name) for name in NOTEBOOKS}
    foreign = {
        (name, module)
        for name, text in code.items()
        for module in imported(text)
        if module not in allowed
    }
    assert not foreign


def test_the_package_imports_where_nothing_but_the_sheets_packages_is_installed():
    forbidden = ["nbclient", "nbformat", "nbconvert", "tf_keras_vis", "lime", "skimage", "cv2"]
    modules = [
        ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")
        for path in USED_BY_NOTEBOOKS
    ]
    code = (
        "import sys\n"
        f"for name in {forbidden}: sys.modules[name] = None\n"  # importing it raises ImportError
        f"for name in {modules}: __import__(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HOUSE)


def test_the_sheets_pins_stand_in_the_requirements_as_they_are():
    lines = (HOUSE / "requirements.txt").read_text().splitlines()
    assert {line.strip() for line in lines} >= SHEET


def test_the_lock_satisfies_the_requirements_and_has_hashes():
    lock = (HOUSE / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9._-]+)==([^ \\;]+)", lock, flags=re.M))
    for line in (HOUSE / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert pinned[requirement.name] in requirement.specifier
    blocks = re.split(r"^(?=[a-z0-9])", lock, flags=re.M)[1:]
    assert len(blocks) > 50
    assert all("--hash=sha256:" in block for block in blocks)
