"""Command line: ``python -m covid_lab run | audit | explain | external | report | handin``."""

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path

from covid_lab.arguments import command_parser
from covid_lab.runs.settings import (
    EXTRAS,
    NOTEBOOKS,
    STUDIES,
    LabOptions,
    RunSettings,
    course_settings,
)
from covid_project.settings import PROJECT, Settings, SettingsError, as_yaml, read_yaml

CACHE_LIMIT = 50e9  # bytes of a results folder's cache; the oldest entries are deleted first


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : list of str, optional
        The command and its options; None: those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 (refused or failed, or for ``audit`` a check failed), 2 (usage) or 130
        (stopped).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # consoles and pipes of Windows lack many characters
            stream.reconfigure(errors="backslashreplace")
    functions = {name: function for name, (function, _) in COMMANDS.items()}
    options = command_parser(__doc__, functions).parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt as stop:
        print(
            f"{stop or 'stopped'}; the same command continues after what is finished",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        status = _status(options.command, error)
        print(f"error: {error}", file=sys.stderr)
        return status


def _status(command, error: Exception) -> int:
    """Return the exit status of a refusal; raise any other error again."""
    if isinstance(error, SettingsError):
        return 2
    refusals = [getattr(sys.modules[m], name) for m, name in REFUSALS if m in sys.modules]
    if command in (_explain, _external, _mitigate):
        refusals.append(ValueError)
    if not isinstance(error, (OSError, *refusals)):
        raise error
    return next(status for function, status in COMMANDS.values() if function is command)


# Each command imports what it needs, so that it starts fast.


def _run(options: argparse.Namespace) -> int:
    from covid_lab.runs.lock import only_run
    from covid_lab.storage import bound_cache, remove_leftovers

    if not (PROJECT / f"{NOTEBOOKS[0]}.ipynb").is_file():
        raise SettingsError(
            f"the notebooks are not beside the installed packages ({PROJECT}): run this in a copy "
            "of the project, with python -m covid_lab run"
        )
    changes = dict(_assignment(text) for text in options.set)
    study = None
    if options.study in STUDIES:
        study = importlib.import_module(f"covid_lab.studies.{options.study}")
        if options.workers > 1:
            raise SettingsError("--workers is for the course run: a study trains in one process")
    load = study.load_settings if study else course_settings
    found = load(options.profile, data=options.data, results=options.results, changes=changes)
    settings, lab = (found, None) if study else found
    folder = Path(settings.results)
    with only_run(folder):
        remove_leftovers(folder)
        gone = bound_cache(folder / "cache", CACHE_LIMIT)
        if gone:
            print(f"{folder / 'cache'}: the {len(gone)} oldest entries were deleted")
        if study:
            names, run = (f"studies/{options.study}",), study.begin(settings)
            _run_notebooks(names, run.settings, settings.expected_seconds, options)
        else:
            _run_course(settings, lab, options)
    return 0


def _run_course(settings: Settings, lab: LabOptions, options: argparse.Namespace) -> None:
    from covid_lab.runs.page import write_page
    from covid_project.results import open_run

    if lab.without_weights != "stop":
        settings = _with_available_weights(settings, lab.without_weights)
    settings = _with_course_data(settings, options)
    run = open_run(settings)  # data that cannot be used are refused before a notebook is opened
    names = (f"studies/{EXTRAS}",) if options.study else tuple(options.only or NOTEBOOKS)
    _run_notebooks(names, run.settings, lab.expected_seconds, options)
    print(f"overview: {write_page(Path(run.settings.results))}")


def _with_course_data(settings: Settings, options: argparse.Namespace) -> Settings:
    """Return the settings, with data in another form arranged in the course's layout."""
    from covid_lab.datasets import described, open_dataset
    from covid_lab.reading.arrange import arrange, is_course_data
    from covid_project.data import CLASSES, DataError, same_name

    data = Path(settings.data).expanduser()
    dataset = open_dataset(
        data,
        classes=options.classes,
        as_found=True,
        table=options.table,
        columns=dict(options.columns),
        finding=options.finding,
    )
    print(described(dataset, data.name), flush=True)
    if options.table is None and is_course_data(dataset, data):
        return settings
    known = [same_name(name) for name in dataset.classes] == [same_name(c) for c in CLASSES]
    if not known and not options.classes and not options.finding:
        raise DataError(
            f"which of the classes {', '.join(dataset.classes)} is the positive one? Name the two "
            f"with --classes, the negative one first: --classes {','.join(dataset.classes[:2])}"
        )
    folder = Path(settings.results) / "cache"
    arranged = folder / f"arranged_{dataset.fingerprint}_{settings.seed}.zip"
    if not arranged.is_file():
        for line in arrange(dataset, arranged, source=data.name, seed=settings.seed):
            print(line)
        print(f"arranged in the layout of the course: {arranged}", flush=True)
    return dataclasses.replace(settings, data=str(arranged))


def _run_notebooks(
    names: tuple[str, ...],
    settings: Settings | RunSettings,
    expected: dict[str, float],
    options: argparse.Namespace,
) -> None:
    from covid_lab.runs.runner import run_notebooks
    from covid_project.files import write_text

    folder = Path(settings.results)
    file = folder / "cache" / "settings.yaml"  # with this machine's paths
    write_text(file, as_yaml(settings))
    values = {"DATA": settings.data, "RESULTS": str(folder), "SETTINGS": str(file)}
    run_notebooks(
        names, values, folder, expected=expected, workers=options.workers, backend=options.backend
    )


def _with_available_weights(settings: Settings, otherwise: str) -> Settings:
    """Return the settings, with other weights where the backbone's are unavailable.

    ``otherwise`` is "random" or "drawn": weights pretrained on drawings, which fit only one
    backbone.
    """
    from covid_lab import pretraining
    from covid_project.models import WeightsUnavailable, build_backbone

    how = settings.transfer
    try:
        build_backbone(how.backbone, how.image_size, width=how.width, weights=how.weights)
    except WeightsUnavailable:
        fits = (how.backbone, how.width) == (pretraining.BACKBONE, pretraining.WIDTH)
        drawn = otherwise == "drawn" and fits
        kind = "weights that were pretrained on drawn images" if drawn else "RANDOM weights"
        print(f"WARNING: no {how.weights} weights for {how.backbone}: continuing with {kind}.")
        how = dataclasses.replace(how, weights=pretraining.WEIGHTS if drawn else "random")
    return dataclasses.replace(settings, transfer=how)


def _explain(options: argparse.Namespace) -> int:
    from covid_lab.explain.command import Request, explain_files

    request = _request(Request, options)
    found = explain_files(options.model, options.images, options.out, request)
    unreadable = found[found["method"].isna()]
    blank = found[found["method"].notna() & (found["status"] != "ok")]
    print(f"explanations: {options.out / 'explanations.csv'} ({len(found)} rows)")
    for count, reasons in ((len(blank), blank), (len(unreadable), unreadable)):
        if count:
            kinds = ", ".join(f"{n} {kind}" for kind, n in reasons["status"].value_counts().items())
            print(f"warning: without a map: {kinds}", file=sys.stderr)
    return 1 if len(unreadable) else 0


def _audit(options: argparse.Namespace) -> int:
    from covid_lab.audit import command
    from covid_lab.audit.findings import worst

    findings = command.run(_request(command.Request, options))
    return 1 if worst(findings) == "fail" else 0


def _external(options: argparse.Namespace) -> int:
    from covid_lab.external import command

    print(f"page: {command.run(_request(command.Request, options))}")
    return 0


def _mitigate(options: argparse.Namespace) -> int:
    from covid_lab.external.mitigation import mitigate

    found = mitigate(options.own, options.target, options.out, options.split)
    for name, path in found.items():
        print(f"{name}: {path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from covid_lab.report import build

    build.write_evidence(options.results)
    report = build.Report(options.results)
    print(f"values and tables: {report.folder}")
    print(f"report: {report.typeset()}")
    for warning in report.warnings():
        print(f"warning: {warning}")
    for fault in [*report.faults(), *report.unfilled_places()]:
        print(f"before you hand in: {fault}")
    return 0


def _handin(options: argparse.Namespace) -> int:
    from covid_lab.handin import Refused, submit

    try:
        for path in submit(options.results, options.group, options.to, draft=options.draft):
            print(f"written: {path}")
    except Refused as refusal:
        return _refused("nothing is written", refusal.reasons)
    return 0


def _keep(options: argparse.Namespace) -> int:
    from covid_lab.notebooks import keep_outputs
    from covid_lab.verify import keep_top

    for path in (keep_top(options.results), *keep_outputs(options.results)):
        print(f"written: {path}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from covid_lab.verify import verify

    faults = verify(options.results, options.data)
    return _refused("the run's figures differ", faults) if faults else 0


def _figures(options: argparse.Namespace) -> int:
    from covid_lab.report.redraw import draw_images

    for path in draw_images(options.results, options.data):
        print(f"written: {path}")
    return 0


def _request(kind: type, options: argparse.Namespace):
    """Fill a dataclass with the options of its fields; those not given have its defaults."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None})


def _refused(what: str, reasons: list[str]) -> int:
    print(f"error: {what}:", *(f"  - {reason}" for reason in reasons), sep="\n", file=sys.stderr)
    return 1


def _assignment(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set takes KEY=VALUE, found {text!r}")
    return key, read_yaml(value)


COMMANDS = {  # function and exit status of a refusal; 1 of an audit is kept for what it finds
    "run": (_run, 1),
    "explain": (_explain, 1),
    "audit": (_audit, 2),
    "external": (_external, 1),
    "mitigate": (_mitigate, 1),
    "report": (_report, 1),
    "handin": (_handin, 1),
    "keep": (_keep, 2),
    "verify": (_verify, 2),
    "figures": (_figures, 2),
}
REFUSALS = (  # errors whose message is for the user, looked up in modules that are loaded
    ("covid_project.images", "DataError"),
    ("covid_project.models", "WeightsUnavailable"),
    ("covid_lab.checkpoints", "ModelRefused"),
    ("covid_lab.notebooks", "OutputsRefused"),
    ("covid_lab.report.build", "ReportFault"),
    ("covid_lab.runs.lock", "FolderInUse"),
    ("covid_lab.runs.runner", "NotebookFailed"),
    ("covid_lab.verify", "NotKept"),
)

if __name__ == "__main__":
    sys.exit(main())
