"""Command line: ``python -m covid_project run``."""

import argparse
import sys
from pathlib import Path

import yaml

from covid_project.data import DataError
from covid_project.experiment import begin
from covid_project.runner import NOTEBOOKS, NotebookFailed, run_notebooks
from covid_project.settings import SettingsError, load_settings


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        changes = dict(_assignment(text) for text in options.set)
        settings = load_settings(
            options.profile, data=options.data, results=options.results, changes=changes
        )
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        begin(settings)  # data that cannot be used are refused before a notebook is opened
        run_notebooks(settings, tuple(options.only or NOTEBOOKS))
    except (DataError, NotebookFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is finished", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m covid_project", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks in order")
    run.add_argument("--data", type=Path, help="zip, folder or Kaggle tree; none: drawn phantoms")
    run.add_argument("--profile", help="name in profiles/ or path; default: course with --data")
    run.add_argument("--results", type=Path, help="folder of the results; default: the profile's")
    run.add_argument(
        "--only", action="append", choices=NOTEBOOKS, help="this notebook alone (may be repeated)"
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, for example transfer.backbone=MobileNetV2 (may be repeated)",
    )
    return parser


def _assignment(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set takes KEY=VALUE, found {text!r}")
    return key, yaml.safe_load(value)


if __name__ == "__main__":
    sys.exit(main())
