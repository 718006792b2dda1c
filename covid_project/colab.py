"""The first cell of every notebook: Python's version, and on Colab the packages and the data.

Only the standard library is imported here, because nothing else may be installed yet.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

ARCHIVE = "covid_xray.zip"
KAGGLE = "tawsifurrahman/covid19-radiography-database"


def prepare(archive: str = ARCHIVE, kaggle: str | None = KAGGLE) -> str | None:
    """Check for Python 3.12; on Colab, install the requirements and look for the data.

    Parameters
    ----------
    archive
        Name of the data's file or folder, sought in the usual places.
    kaggle
        The set on Kaggle that is downloaded where there is none; None: nothing is downloaded.

    Returns
    -------
    The path of the data on Colab, if there are any; elsewhere None, and the settings decide.

    Raises
    ------
    RuntimeError
        Another version of Python.
    """
    if sys.version_info[:2] != (3, 12):
        raise RuntimeError(
            f"Python 3.12 is needed, this is {sys.version.split()[0]}. On Colab choose a runtime "
            "with Python 3.12 (Runtime > Change runtime type > Runtime version); elsewhere "
            "`pyenv install 3.12` or `uv python install 3.12`, then `make run`."
        )
    if "google.colab" not in sys.modules:
        return None
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"], check=True
    )
    for place in (Path(), Path("/content"), Path("/content/drive/MyDrive")):
        if (place / archive).exists():
            return str(place / archive)
    if kaggle and importlib.util.find_spec("kagglehub"):
        import kagglehub

        return kagglehub.dataset_download(kaggle)
    print(
        f"No data yet, so phantoms are drawn. To use real images, upload {archive} with the folder "
        "symbol at the left (to /content) or put it into your Drive, and run this cell again."
    )
    return None
