"""Command line: ``python -m covid_lab run | audit | explain | external | report | handin``."""

import argparse
import dataclasses
import importlib
import re
import sys
from pathlib import Path

from covid_lab.runs.settings import (
    BACKENDS,
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
    """Run a command; return the exit status: 0, 1 (refused or failed), 2 (usage), 130 (stopped)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # consoles and pipes of Windows lack many signs
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(
            f"{stop or 'stopped'}; the same command continues after what is finished",
            file=sys.stderr,
        )
        return 130


# What a command needs is imported inside it, so that each starts as fast as it can.


def _run(options: argparse.Namespace) -> int:
    from covid_lab.runs.lock import FolderInUse, only_run
    from covid_lab.runs.runner import NotebookFailed
    from covid_lab.storage import bound_cache, remove_leftovers
    from covid_project.data import DataError

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
    try:
        found = load(options.profile, data=options.data, results=options.results, changes=changes)
        settings, lab = (found, None) if study else found
        folder = Path(settings.results)
        with only_run(folder):
            remove_leftovers(folder)
            gone = bound_cache(folder / "cache", CACHE_LIMIT)
            if gone:
                print(f"{folder / 'cache'}: the {len(gone)} oldest entries were deleted")
            if study:
                _run_study(study, settings, options)
            else:
                _run_course(settings, lab, options)
    except (DataError, FolderInUse, NotebookFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
    """Return the same settings; data in another form are arranged as the course takes them."""
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
        print(f"arranged as the course takes them: {arranged}", flush=True)
    return dataclasses.replace(settings, data=str(arranged))


def _run_study(study, settings: RunSettings, options: argparse.Namespace) -> None:
    run = study.begin(settings)
    names = (f"studies/{options.study}",)
    _run_notebooks(names, run.settings, settings.expected_seconds, options)


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
    """Return the same settings, with other weights where the backbone's are unavailable.

    ``otherwise`` is "random", or "drawn": those that were pretrained on drawings, which fit one
    backbone only.
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
    from covid_project.data import DataError
    from covid_project.models import WeightsUnavailable

    request = Request(
        methods=tuple(options.method or ["grad-cam"]),
        targets=tuple(options.target or ["predicted"]),
        classes=options.classes,
        layer=options.layer,
        one_scale=options.one_scale,
        colour_map=options.colour_map,
        masks=options.masks,
        table=options.table,
        columns=options.columns,
        finding=options.finding,
        feature_maps=options.feature_maps,
        input_range=options.input_range,
        size=options.size,
        output=options.output,
        trust=options.trust,
    )
    try:
        found = explain_files(options.model, options.images, options.out, request)
    except (DataError, ValueError, WeightsUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
    from covid_project.data import DataError

    chosen = {name: getattr(options, name) for name in command.OPTIONS}
    try:
        findings = command.run(command.Request(**chosen))
    except (DataError, FileNotFoundError) as error:  # 1 is kept for what the audit itself finds
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if worst(findings) == "fail" else 0


def _external(options: argparse.Namespace) -> int:
    from covid_lab.checkpoints import ModelRefused
    from covid_lab.external import command
    from covid_lab.verify import NotKept
    from covid_project.data import DataError
    from covid_project.models import WeightsUnavailable

    chosen = {name: getattr(options, name) for name in command.OPTIONS}
    chosen["models"] = tuple(chosen["models"])
    try:
        print(f"page: {command.run(command.Request(**chosen))}")
    except (DataError, ModelRefused, NotKept, WeightsUnavailable, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _mitigate(options: argparse.Namespace) -> int:
    from covid_lab.external.mitigation import mitigate
    from covid_project.data import DataError
    from covid_project.models import WeightsUnavailable

    try:
        found = mitigate(options.own, options.target, options.out, target_split=options.split)
    except (DataError, WeightsUnavailable, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, path in found.items():
        print(f"{name}: {path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from covid_lab.report import build

    results, source = options.results, build.SOURCE
    evidence = build.write_evidence(results)
    print(f"values and tables: {results / 'report'}")
    try:
        print(f"report: {build.build(results)}")
    except build.ReportFault as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in build.source_warnings(results, source, evidence):
        print(f"warning: {warning}")
    for fault in [
        *build.source_faults(results, source, evidence),
        *build.missing_figures(results, source, evidence),
        *build.pdf_faults(results),
        *build.unfilled_places(results, source),
    ]:
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
    from covid_lab.checkpoints import ModelRefused
    from covid_lab.notebooks import OutputsRefused, keep_outputs
    from covid_lab.verify import keep_top

    try:
        for path in (keep_top(options.results), *keep_outputs(options.results)):
            print(f"written: {path}")
    except (ModelRefused, OutputsRefused) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _verify(options: argparse.Namespace) -> int:
    from covid_lab.checkpoints import ModelRefused
    from covid_lab.verify import NotKept, verify
    from covid_project.data import DataError
    from covid_project.models import WeightsUnavailable

    try:
        faults = verify(options.results, options.data)
    except (DataError, ModelRefused, NotKept, OSError, WeightsUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _refused("the run's figures differ", faults) if faults else 0


def _figures(options: argparse.Namespace) -> int:
    from covid_lab.checkpoints import ModelRefused
    from covid_lab.report.redraw import draw_images
    from covid_lab.runs.runner import NotebookFailed
    from covid_lab.verify import NotKept
    from covid_project.data import DataError
    from covid_project.models import WeightsUnavailable

    refused = (DataError, ModelRefused, NotebookFailed, NotKept, OSError, WeightsUnavailable)
    try:
        for path in draw_images(options.results, options.data):
            print(f"written: {path}")
    except refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _refused(what: str, reasons: list[str]) -> int:
    print(f"error: {what}:", *(f"  - {reason}" for reason in reasons), sep="\n", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m covid_lab", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run the notebooks in order")
    run.set_defaults(command=_run)
    run.add_argument("--data", type=Path, help="folder or archive of images; none: drawn phantoms")
    _add_reading(run, "the negative one first; default: NORMAL,COVID")
    run.add_argument(
        "--profile",
        help="name in profiles/ or path of a YAML file; default: the course's settings, or demo "
        "without --data",
    )
    run.add_argument("--results", type=Path, help="folder of the results; default: the profile's")
    which = run.add_mutually_exclusive_group()
    which.add_argument(
        "--only", action="append", choices=NOTEBOOKS, help="only this notebook (may be repeated)"
    )
    which.add_argument(
        "--study", choices=(*STUDIES, EXTRAS), help="a study, instead of the four notebooks"
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, for example transfer.backbone=MobileNetV2 (may be repeated)",
    )
    run.add_argument("--workers", type=_count, default=1, help="trainings at once; default: 1")
    run.add_argument(
        "--backend", choices=BACKENDS, default="loky", help="what runs them, with several workers"
    )
    explain = commands.add_parser("explain", help="explain a saved model on image files")
    explain.set_defaults(command=_explain)
    explain.add_argument("model", type=Path, help="a .keras file, such as results/models/x.keras")
    explain.add_argument(
        "images", type=Path, nargs="+", help="images, or folders or archives of them"
    )
    explain.add_argument("--out", type=Path, required=True, help="folder to write")
    explain.add_argument(
        "--method",
        action="append",
        help="gradcam (the default), gradcam++, hirescam, layercam, eigencam, scorecam, saliency, "
        "smoothgrad, integratedgradients, occlusion or lime (may be repeated)",
    )
    explain.add_argument(
        "--target",
        action="append",
        type=str.strip,
        help="predicted (the default), true (the class folder that the image is in), or a class; "
        "may be repeated: a map for each",
    )
    _add_reading(
        explain, "in the order of the outputs; of one output the second is the positive class"
    )
    explain.set_defaults(classes=("NORMAL", "COVID"))
    explain.add_argument(
        "--input-range",
        choices=("0..255", "0..1", "-1..1", "imagenet", "caffe"),
        help="values that the model was trained on, where it does not convert them itself: "
        "imagenet is 0..1 standardised by ImageNet's colours, caffe is BGR less its mean; default: "
        "found, or an error",
    )
    # argparse takes "-1..1" for an option, except where it looks like a negative number to it.
    explain._negative_number_matcher = re.compile(r"-1\.\.1$")
    explain.add_argument(
        "--size",
        type=_size,
        metavar="N or HxW",
        help="size of the images for a model that takes any, such as 224 or 256x192",
    )
    explain.add_argument("--output", help="name or number of the output, for a model with several")
    explain.add_argument(
        "--trust",
        action="store_true",
        help="for a file of your own: run the code in it (Lambda layers, .h5 files, Keras 2)",
    )
    explain.add_argument(
        "--layer",
        help="for the methods that look at features, outer/inner in a model inside; default: the "
        "last",
    )
    explain.add_argument(
        "--one-scale", action="store_true", help="heat that can be compared between images"
    )
    explain.add_argument(
        "--colour-map",
        default="jet",
        choices=("jet", "viridis", "cividis", "inferno"),
        help="all but jet are perceptually even",
    )
    explain.add_argument(
        "--masks",
        type=Path,
        help="folder or zip of lung masks named as the images are; default: masks beside images, "
        "or lungs are segmented, roughly",
    )
    explain.add_argument(
        "--feature-maps", action="store_true", help="draw the layer's strongest feature maps too"
    )
    audit = commands.add_parser(
        "audit", help="check data, shortcuts and a run; exit status 1 where a check fails"
    )
    audit.set_defaults(command=_audit)
    audit.add_argument("--data", type=Path, required=True, help="folder or archive of images")
    audit.add_argument("--results", type=Path, help="folder of a finished run on these data")
    audit.add_argument(
        "--out",
        type=Path,
        help="folder to write; default: audit/ in the results, or results/audit/<name of the data>",
    )
    audit.add_argument("--masks", type=Path, help="lung masks, where the data bring none")
    _add_reading(audit, "in the order of their labels; default: NORMAL,COVID, or all found")
    audit.add_argument(
        "--pattern", help="regular expression whose parentheses hold the patient in a path"
    )
    audit.add_argument(
        "--patients",
        "--metadata",
        dest="metadata",
        type=Path,
        help="table with the columns image, and patient or second_label (a second reader's class)",
    )
    audit.add_argument(
        "--write-splits",
        type=Path,
        metavar="FILE",
        help="write a split that keeps patients and copies together",
    )
    audit.add_argument(
        "--controls", action="store_true", help="try the shortcut audit on data of known answer"
    )
    audit.add_argument("--seed", type=int, default=0, help="of everything drawn at random")
    external = commands.add_parser(
        "external", help="test models on images of another collection, beside their own test set"
    )
    external.set_defaults(command=_external)
    external.add_argument(
        "--models",
        type=Path,
        nargs="+",
        required=True,
        help="the folder models of a run, such as results/models; .keras files of one logit; or "
        "records (.json) of networks with two exits",
    )
    external.add_argument("--data", type=Path, required=True, help="folder or archive of images")
    external.add_argument("--split", help="default: test, or all images where there are no splits")
    _add_reading(external, "the negative one first; default: NORMAL,COVID")
    external.set_defaults(classes=("NORMAL", "COVID"))
    external.add_argument(
        "--own", type=Path, help="the models' training data, for the control of the border"
    )
    external.add_argument(
        "--probe", type=Path, help="images without COVID-19, in folders: how often is it seen?"
    )
    external.add_argument(
        "--lesions", type=Path, help="images with drawn opacities (images, masks_opacity)"
    )
    external.add_argument(
        "--out",
        type=Path,
        help="folder to write; default: external/<name of the data> in the results of the run",
    )
    external.add_argument("--seed", type=int, default=0, help="of everything drawn at random")
    mitigate = commands.add_parser(
        "mitigate",
        help="compare what narrows the gap to another collection, choose, and train for it",
    )
    mitigate.set_defaults(command=_mitigate)
    mitigate.add_argument(
        "--own", type=Path, required=True, help="training data, with train and val"
    )
    mitigate.add_argument(
        "--target", type=Path, required=True, help="images of the other collection, both classes"
    )
    mitigate.add_argument(
        "--split", default="val", help="of the target, never its test split; default: val"
    )
    mitigate.add_argument(
        "--out", type=Path, default=Path("results/external/mitigation"), help="folder to write"
    )
    report = commands.add_parser("report", help="check and set the report on a finished run")
    report.set_defaults(command=_report)
    hand_in = commands.add_parser(
        "handin", aliases=["submission"], help="make the two files to hand in"
    )
    hand_in.set_defaults(command=_handin)
    hand_in.add_argument("--group", type=_group, required=True, help="number of the group")
    hand_in.add_argument("--to", type=Path, default=Path("submission"), help="folder to write")
    hand_in.add_argument(
        "--draft", action="store_true", help="for reading: marked places are warnings"
    )
    keep = commands.add_parser(
        "keep",
        help="keep what may be published of a run: its trained layers, and outputs of notebooks",
    )
    keep.set_defaults(command=_keep)
    check = commands.add_parser("verify", help="score a run's models again, compare every figure")
    check.set_defaults(command=_verify)
    redraw = commands.add_parser(
        "figures", help="draw the figures that show images again, from a run's models"
    )
    redraw.set_defaults(command=_figures)
    for command in (check, redraw):
        command.add_argument("--data", type=Path, required=True, help="the run's images")
    for command in (report, hand_in, keep, check, redraw):
        command.add_argument(
            "--results", type=Path, default=Path("results"), help="folder of the finished run"
        )
    return parser


def _add_reading(command: argparse.ArgumentParser, order: str) -> None:
    """Add the options that say where the labels of images are."""
    command.add_argument(
        "--classes",
        type=_names,
        metavar="A,B",
        help=f"class folders, or labels of a table, {order}",
    )
    command.add_argument(
        "--table",
        type=Path,
        help="CSV, TSV or spreadsheet with the columns path and label, and if known patient and "
        "split; default: folders, or a table of NIH ChestX-ray14 or CheXpert among the files",
    )
    command.add_argument(
        "--columns",
        type=_columns,
        default=(),
        metavar="ROLE=COLUMN,…",
        help="columns of the table with other names: path=…,label=…,patient=…,split=…",
    )
    command.add_argument(
        "--finding", help="of several findings for an image, the one that is told from the rest"
    )


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals and role.strip() and column.strip() for role, equals, column in pairs):
        raise argparse.ArgumentTypeError(f"give ROLE=COLUMN, with commas between, found {text!r}")
    return tuple((role.strip(), column.strip()) for role, _, column in pairs)


def _group(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"the group is a number from 1, found {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"give a number from 1, found {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"give a size such as 224 or 256x192, found {text!r}")
    return int(sides[0]), int(sides[-1])


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if len(set(names)) != len(names) or not all(names):
        raise argparse.ArgumentTypeError(f"give names with commas between, found {text!r}")
    return names


def _assignment(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set takes KEY=VALUE, found {text!r}")
    return key, read_yaml(value)


if __name__ == "__main__":
    sys.exit(main())
