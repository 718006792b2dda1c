"""What the course package may be: small, on the sheet's packages only, independent of the lab."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

HOUSE = Path(__file__).resolve().parent.parent.parent
MODULES = sorted((HOUSE / "covid_project").glob("*.py"))
NOTEBOOKS = ("data_exploration", "baseline", "transfer_learning", "gradcam")
SHEET = {
    "numpy~=2.0.2", "tensorflow>=2.18.0", "scikit-learn~=1.6.1", "pandas~=2.2.3",
    "matplotlib~=3.10.0", "seaborn~=0.13.2", "imbalanced-learn~=0.13.0", "pyaml~=25.1.0",
}  # fmt: skip
SHEET_MODULES = {"numpy", "tensorflow", "sklearn", "pandas", "matplotlib", "seaborn", "imblearn"}
BROUGHT = {"keras", "scipy", "PIL", "yaml", "joblib", "h5py"}  # what these install


def code_of(name):
    cells = nbformat.read(HOUSE / f"{name}.ipynb", as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def imported(code):
    """Every module that some code imports, wherever it does."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources():
    return {path.name: path.read_text("utf-8") for path in MODULES} | {
        name: code_of(name) for name in NOTEBOOKS
    }


def docstring_lines(code):
    """Numbers of the lines that belong to docstrings."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, kinds) and ast.get_docstring(node):
            yield from range(node.body[0].lineno, node.body[0].end_lineno + 1)


def test_the_course_package_stays_small():
    """At most 2,000 lines of code and comments, and as many of docstrings, in 15 modules."""
    code, documented = {}, {}
    for path in MODULES:
        text = path.read_text("utf-8")
        filled = {n for n, line in enumerate(text.splitlines(), 1) if line.strip()}
        documented[path.name] = len(filled & set(docstring_lines(text)))
        code[path.name] = len(filled) - documented[path.name]
    assert len(code) <= 15
    assert sum(code.values()) <= 2000, code
    assert sum(documented.values()) <= 2000, documented
    assert max(code[name] + documented[name] for name in code) <= 500
    assert not [path for path in (HOUSE / "covid_project").iterdir() if path.is_dir()
                and path.name != "__pycache__"]  # fmt: skip


def test_notebooks_and_package_use_the_sheets_packages_only():
    allowed = SHEET_MODULES | BROUGHT | {"covid_project"} | set(sys.stdlib_module_names)
    foreign = {
        (name, module)
        for name, code in sources().items()
        for module in imported(code)
        if module.split(".")[0] not in allowed
    }
    assert not foreign


def test_nothing_private_of_tensorflow_or_keras_is_used():
    private = re.compile(r"(keras|tensorflow)\.(src|python|core)\b|(?<!self)\._[a-z]\w*\(")
    found = {name: private.findall(code) for name, code in sources().items()}
    assert not {name: hits for name, hits in found.items() if any(a for a, _ in hits)}
    names = {
        (name, node.attr)
        for name, code in sources().items()
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and re.match(r"_[a-z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    assert not names


def test_every_module_of_the_package_is_imported_by_the_notebooks():
    waiting = [m for name in NOTEBOOKS for m in imported(code_of(name))]
    needed = set()
    while waiting:
        parts = waiting.pop().split(".")
        path = HOUSE / "covid_project" / f"{parts[1]}.py" if len(parts) > 1 else None
        if parts[0] == "covid_project" and path and path.is_file() and path not in needed:
            needed.add(path)
            waiting += imported(path.read_text("utf-8"))
    assert {path.name for path in MODULES} - {path.name for path in needed} == {"__init__.py"}


def test_what_reads_settings_and_tables_needs_no_tensorflow():
    code = """
import sys
import covid_project.data, covid_project.evaluation, covid_project.files, covid_project.settings
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HOUSE)


def test_importing_the_package_changes_nothing(python):
    code = """
import os
import matplotlib, seaborn, tensorflow, keras
before = dict(matplotlib.rcParams), dict(os.environ), tensorflow.get_logger().level
import covid_project.figures, covid_project.results, covid_project.gradcam
assert (dict(matplotlib.rcParams), dict(os.environ), tensorflow.get_logger().level) == before
"""
    subprocess.run([python, "-c", code], check=True, cwd=HOUSE)


def test_environment_variables_are_no_channel_between_modules():
    for name, code in sources().items():
        lines = [line.strip() for line in code.splitlines() if "environ" in line]
        allowed = tuple(
            f'os.environ.setdefault("{variable}"'
            for variable in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")
        )
        assert all(line.startswith(allowed) for line in lines), name


# ---- requirements -------------------------------------------------------------------------------


def test_the_requirements_are_the_sheets_eight_pins():
    assert set((HOUSE / "requirements.txt").read_text().split()) == SHEET


def lab_requirements() -> list[str]:
    files = ("requirements-run.txt", "requirements-lab.txt")
    lines = [line for file in files for line in (HOUSE / file).read_text().splitlines()]
    return [line for line in lines if line and line[0] not in "#-"]


def test_the_lock_satisfies_the_requirements_and_has_hashes():
    lock = (HOUSE / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9._-]+)==([^ \\;]+)", lock, flags=re.M))
    for line in [*SHEET, *lab_requirements()]:
        requirement = Requirement(line)
        assert pinned[requirement.name] in requirement.specifier
    blocks = re.split(r"^(?=[a-z0-9])", lock, flags=re.M)[1:]
    assert len(blocks) > 50
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_oldest_packages_are_allowed_by_the_requirements():
    floor = (HOUSE / "requirements-floor.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in floor if "==" in line)
    wanted = [Requirement(line) for line in [*SHEET, *lab_requirements()]]
    missing = [r.name for r in wanted if r.name not in oldest]
    assert missing == ["ruff"]  # style is checked with the locked one only
    for requirement in wanted:
        if requirement.name in oldest:
            assert oldest[requirement.name] in requirement.specifier, requirement


# ---- the notebooks ------------------------------------------------------------------------------


def cells_of(name):
    return nbformat.read(HOUSE / f"{name}.ipynb", as_version=4).cells


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_cell_does_one_thing_in_fifteen_lines(name):
    lengths = [c.source.count("\n") + 1 for c in cells_of(name) if c.cell_type == "code"]
    assert max(lengths) <= 15


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_lambda_hides_a_training(name):
    tree = ast.parse(code_of(name))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_functions_use_no_name_that_is_assigned_again(name):
    """A closure over a name that changes later would do another thing when called again."""
    tree = ast.parse(code_of(name))
    assigned = [
        target.id
        for node in tree.body
        for target in ast.walk(node)
        if isinstance(target, ast.Name)
        and isinstance(target.ctx, ast.Store)
        and not isinstance(node, ast.FunctionDef)
    ]
    changing = {target for target in assigned if assigned.count(target) > 1}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        local = {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        local |= {
            n.id
            for n in ast.walk(function)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        used = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)} - local
        assert not used & changing, function.name


VISIBLE = {
    "data_exploration": ["training_batches(", "evaluation_batches(", "normalization_layer("],
    "baseline": [".compile(", ".fit(", "EarlyStopping(", ".summary()", "load_model("],
    "transfer_learning": [
        "backbone.trainable = False", ".compile(", ".fit(", "EarlyStopping(", "load_model(",
        "unfreeze_above(",
    ],
    "gradcam": ["tf.GradientTape()", "tape.gradient(", "remove_final_activation("],
}  # fmt: skip


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_the_sheet_asks_for_is_visible_in_the_notebook(name):
    code = code_of(name)
    assert not [words for words in VISIBLE[name] if words not in code]


def test_the_first_cells_are_the_same_in_all_notebooks():
    first = [[c.source for c in cells_of(n) if c.cell_type == "code"][:3] for n in NOTEBOOKS]
    assert all(cells == first[0] for cells in first)
    for name in NOTEBOOKS:
        tagged = [c for c in cells_of(name) if "parameters" in c.metadata.get("tags", [])]
        assert [c.source for c in tagged] == [first[0][2]]
