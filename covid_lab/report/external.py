"""What an external test of the run's models adds to the evidence of a run."""

import json

from covid_lab.report.latex import interval, signed, texttt, yes
from covid_lab.report.reading import STAGES, RunTables

SHOWN = ("accuracy", "sensitivity", "specificity", "AUC")


def add_external(run: RunTables, values: dict, tables: dict) -> None:
    """Add the metrics on another collection, where the run's models were tested on one.

    Parameters
    ----------
    run : RunTables
    values : dict of str to str
        Receives the values whose keys begin with "external.".
    tables : dict of str to str
        Not changed.

    Raises
    ------
    EvidenceMissing
        The external test lacks a table, or the run was not tested.
    """
    folder = _test_of(run)
    if folder is None:
        return
    record = json.loads((run.results / folder / "external.json").read_text(encoding="utf-8"))
    metrics = run.table(f"{folder}/metrics.csv").set_index(["model", "metric"])
    values["external.name"] = texttt(record["data"].split(",")[0])
    values["external.n"] = str(record["images"])
    for stage, key in STAGES.items():
        if stage not in record["models"]:
            continue
        for metric in SHOWN:
            row = metrics.loc[(stage, metric)]
            values[f"external.{key}.{metric}"] = interval(row)
            if "drop" in row:
                bounds = f"[{signed(-row['drop_high'])}, {signed(-row['drop_low'])}]"
                values[f"external.{key}.{metric}.change"] = f"{signed(-row['drop'])} {bounds}"
                values[f"external.{key}.{metric}.drops"] = yes(row["drop_low"] > 0)


def _test_of(run: RunTables) -> str | None:
    """Return the results' folder with an external test of this run's models, or None."""
    tested = set(run.table("test_ledger.csv")["model"])
    for path in sorted(run.results.glob("external/*/external.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        models = {record["models"].get(stage) for stage in STAGES} - {None}
        if models and models <= tested and record["split"] in ("test", ""):
            return path.parent.relative_to(run.results).as_posix()
    return None
