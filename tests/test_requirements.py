"""The oldest packages and the locked ones are those that requirements.txt asks for."""

import pytest
from packaging.requirements import Requirement

from covid_project.settings import PROJECT


def listed(name: str) -> dict[str, Requirement]:
    lines = (PROJECT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    stated = [line.partition("#")[0].partition("--hash")[0].strip() for line in lines]
    found = [Requirement(line) for line in stated if line]
    return {requirement.name.lower(): requirement for requirement in found}


@pytest.mark.parametrize(
    ("name", "left_out"), [("requirements-floor.txt", {"ruff"}), ("requirements.lock", set())]
)
def test_every_package_has_a_version_that_is_allowed(name, left_out):
    wanted, pinned = listed("requirements.txt"), listed(name)
    assert wanted.keys() - pinned.keys() == left_out  # style is checked with the locked one alone
    for package in wanted.keys() & pinned.keys():
        (version,) = pinned[package].specifier
        assert version.operator == "=="
        assert version.version in wanted[package].specifier, package
