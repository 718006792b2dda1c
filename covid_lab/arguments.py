"""The options of ``python -m covid_lab``, command by command."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from covid_lab.runs.settings import BACKENDS, EXTRAS, NOTEBOOKS, STUDIES


def command_parser(
    description: str, functions: Mapping[str, Callable[[argparse.Namespace], int]]
) -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Parameters
    ----------
    description : str
        Shown by ``--help``.
    functions : mapping of str to callable
        Name of each command → function that runs it. It takes the parsed options, which have the
        function itself as ``command``, and returns the exit status.

    Returns
    -------
    argparse.ArgumentParser
        A subparser for each command.
    """
    parser = argparse.ArgumentParser(prog="python -m covid_lab", description=description)
    commands = parser.add_subparsers(required=True)
    made = {
        "run": _add_run(commands),
        "explain": _add_explain(commands),
        "audit": _add_audit(commands),
        "external": _add_external(commands),
        "mitigate": _add_mitigate(commands),
        "report": commands.add_parser("report", help="check and set the report on a finished run"),
        "handin": _add_handin(commands),
        "keep": commands.add_parser(
            "keep",
            help="keep what may be published of a run: its trained layers, and outputs of "
            "notebooks",
        ),
        "verify": commands.add_parser(
            "verify", help="score a run's models again, compare every figure"
        ),
        "figures": commands.add_parser(
            "figures", help="draw the figures that show images again, from a run's models"
        ),
    }
    for name in ("verify", "figures"):
        made[name].add_argument("--data", type=Path, required=True, help="the run's images")
    for name in ("report", "handin", "keep", "verify", "figures"):
        made[name].add_argument(
            "--results", type=Path, default=Path("results"), help="folder of the finished run"
        )
    for name, command in made.items():
        command.set_defaults(command=functions[name])
    return parser


def _add_run(commands) -> argparse.ArgumentParser:
    run = commands.add_parser("run", help="run the notebooks in order")
    run.add_argument(
        "--data", type=Path, help="folder or archive of images; default: drawn phantoms"
    )
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
    run.add_argument(
        "--workers", type=_count, default=1, help="trainings at the same time; default: 1"
    )
    run.add_argument(
        "--backend",
        choices=BACKENDS,
        default="loky",
        help="what distributes the trainings over several workers",
    )
    return run


def _add_explain(commands) -> argparse.ArgumentParser:
    explain = commands.add_parser("explain", help="explain a saved model on image files")
    explain.add_argument("model", type=Path, help="a .keras file, such as results/models/x.keras")
    explain.add_argument(
        "images", type=Path, nargs="+", help="images, or folders or archives of them"
    )
    explain.add_argument("--out", type=Path, required=True, help="folder to write")
    explain.add_argument(
        "--method",
        dest="methods",
        metavar="METHOD",
        action="append",
        help="gradcam (the default), gradcam++, hirescam, layercam, eigencam, scorecam, saliency, "
        "smoothgrad, integratedgradients, occlusion or lime (may be repeated)",
    )
    explain.add_argument(
        "--target",
        dest="targets",
        metavar="TARGET",
        action="append",
        type=str.strip,
        help="predicted (the default), true (the class folder that the image is in), or a class; "
        "may be repeated: a map for each",
    )
    _add_reading(
        explain,
        "in the order of the outputs; for a model with one output, the positive class is the "
        "second",
    )
    explain.set_defaults(classes=("NORMAL", "COVID"))
    explain.add_argument(
        "--input-range",
        choices=("0..255", "0..1", "-1..1", "imagenet", "caffe"),
        help="values that the model was trained on, where it does not convert them itself: "
        "imagenet is 0..1 standardised by ImageNet's colours, caffe is BGR less its mean; "
        "default: found, or an error",
    )
    # argparse takes "-1..1" for an option, unless this pattern makes it a negative number.
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
        help="for the methods that use features, outer/inner for a layer of an inner model; "
        "default: the last",
    )
    explain.add_argument(
        "--one-scale", action="store_true", help="heat that can be compared between images"
    )
    explain.add_argument(
        "--colour-map",
        default="jet",
        choices=("jet", "viridis", "cividis", "inferno"),
        help="all except jet are perceptually uniform",
    )
    explain.add_argument(
        "--masks",
        type=Path,
        help="folder or zip of lung masks with the names of the images; default: masks beside the "
        "images, or a segmentation of the lungs",
    )
    explain.add_argument(
        "--feature-maps", action="store_true", help="draw the layer's strongest feature maps too"
    )
    return explain


def _add_audit(commands) -> argparse.ArgumentParser:
    audit = commands.add_parser(
        "audit", help="check data, shortcuts and a run; exit status 1 where a check fails"
    )
    audit.add_argument("--data", type=Path, required=True, help="folder or archive of images")
    audit.add_argument("--results", type=Path, help="folder of a finished run on these data")
    audit.add_argument(
        "--out",
        type=Path,
        help="folder to write; default: audit/ in the results, or results/audit/<name of the data>",
    )
    audit.add_argument("--masks", type=Path, help="lung masks, for data without masks")
    _add_reading(audit, "in the order of their labels; default: NORMAL,COVID, or all found")
    audit.add_argument(
        "--pattern", help="regular expression whose parentheses enclose the patient in a path"
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
        "--controls",
        action="store_true",
        help="test the shortcut audit on data whose answer is known",
    )
    audit.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    return audit


def _add_external(commands) -> argparse.ArgumentParser:
    external = commands.add_parser(
        "external", help="test models on images of another collection, beside their own test set"
    )
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
        "--probe",
        type=Path,
        help="images without COVID-19, in folders: how often do the models see COVID-19 in them?",
    )
    external.add_argument(
        "--lesions", type=Path, help="images with drawn opacities (images, masks_opacity)"
    )
    external.add_argument(
        "--out",
        type=Path,
        help="folder to write; default: external/<name of the data> in the results of the run",
    )
    external.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    return external


def _add_mitigate(commands) -> argparse.ArgumentParser:
    mitigate = commands.add_parser(
        "mitigate",
        help="compare what narrows the gap to another collection, choose, and train for it",
    )
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
    return mitigate


def _add_handin(commands) -> argparse.ArgumentParser:
    hand_in = commands.add_parser(
        "handin", aliases=["submission"], help="make the two files to hand in"
    )
    hand_in.add_argument("--group", type=_count, required=True, help="number of the group")
    hand_in.add_argument("--to", type=Path, default=Path("submission"), help="folder to write")
    hand_in.add_argument(
        "--draft", action="store_true", help="for reading: marked places are warnings"
    )
    return hand_in


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
        "--finding",
        help="for a table with several findings per image: the finding that is the positive class",
    )


# ---- values of options --------------------------------------------------------------------------


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals and role.strip() and column.strip() for role, equals, column in pairs):
        raise argparse.ArgumentTypeError(f"give ROLE=COLUMN, separated by commas, found {text!r}")
    return tuple((role.strip(), column.strip()) for role, _, column in pairs)


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
        raise argparse.ArgumentTypeError(
            f"give different names, separated by commas, found {text!r}"
        )
    return names
