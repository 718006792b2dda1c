"""Reads the tables of a run and remembers which were read."""

import json
from pathlib import Path

import pandas as pd
import yaml

from covid_lab.runs.settings import EXTRAS
from covid_project.files import fingerprint, read_csv

FROM_EXTRAS = {  # tables of the notebook after the four of the course
    f"{name}.csv"
    for name in ("seeds_baseline", "seeds_transfer", "variants_baseline", "calibration",
                 "explanations", "gradcam_groups")
}  # fmt: skip
STAGES = {"baseline": "baseline", "fine_tuned": "finetuned"}  # tested stage → its part of a key
NAMES = {"baseline": "baseline", "fine_tuned": "fine-tuned"}  # in the text
OUTCOMES = {"no difference": "0", "better": "1", "worse": "2"}
RUN_FIRST = "run all four notebooks first (python -m covid_lab run)"


class EvidenceMissing(RuntimeError):
    """The results folder lacks a file; the message names it and the command that makes it."""


class RunTables:
    """Reader of a results folder that records which files were read.

    Parameters
    ----------
    results : Path
        Folder of a run.

    Attributes
    ----------
    sources : dict of str to str
        Fingerprint of each file that was read, by its path in the folder.
    """

    def __init__(self, results: Path):
        self.results = Path(results)
        self.sources: dict[str, str] = {}

    def table(self, name: str) -> pd.DataFrame:
        """Read a CSV table.

        Parameters
        ----------
        name : str
            Path in the results folder.

        Returns
        -------
        pd.DataFrame

        Raises
        ------
        EvidenceMissing
            There is no such file.
        """
        self._remember(name)
        return read_csv(self.results / name)

    def record(self) -> dict:
        """Read ``run.json``.

        Returns
        -------
        dict

        Raises
        ------
        EvidenceMissing
            There is no such file.
        """
        self._remember("run.json")
        return json.loads((self.results / "run.json").read_text(encoding="utf-8"))

    def settings(self) -> dict:
        """Read ``settings.yaml``.

        Returns
        -------
        dict

        Raises
        ------
        EvidenceMissing
            There is no such file.
        """
        self._remember("settings.yaml")
        return yaml.safe_load((self.results / "settings.yaml").read_text(encoding="utf-8"))

    def _remember(self, name: str) -> None:
        path = self.results / name
        if not path.is_file():
            extras_first = (
                f"run studies/{EXTRAS}.ipynb after the four notebooks "
                f"(python -m covid_lab run --study {EXTRAS})"
            )
            first = extras_first if name in FROM_EXTRAS else RUN_FIRST
            raise EvidenceMissing(f"{path} is missing: {first}")
        self.sources[name] = fingerprint(path.read_bytes())
