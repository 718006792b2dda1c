"""Sources and lung masks of images, from the files beside them."""

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import PurePosixPath

import pandas as pd

from covid_project.data import DataError, Root, read_bytes

NAMED = 0.95  # least fraction of a class whose images the tables of their sources must name


def class_folder(path: str) -> str:
    """Return the class folder of an image: its folder, or the one around ``images``.

    Parameters
    ----------
    path : str
        POSIX path of the image.

    Returns
    -------
    str
        Name of the folder; "" for none.

    Examples
    --------
    >>> class_folder("COVID/images/COVID-1.png"), class_folder("train/NORMAL/1.png")
    ('COVID', 'NORMAL')
    """
    *_, outer, folder, _ = ["", "", *path.split("/")]
    return outer if folder.casefold() == "images" and outer else folder


def mask_of(root: Root, path: str) -> str:
    """Find an image's lung mask, as in Kaggle's ``masks`` beside ``images`` or in phantoms.

    Parameters
    ----------
    root : Path or zipfile.Path
        Folder or archive of the data.
    path : str
        POSIX path of the image under the root.

    Returns
    -------
    str
        Path of the mask under the root; "" for none.
    """
    folder, _, file = path.rpartition("/")
    outer, slash, last = folder.rpartition("/")
    beside = [f"{outer}{slash}masks/{file}"] if last.casefold() == "images" else []
    masks = [*beside, f"masks/lungs/{path}"]
    return next((mask for mask in masks if root.joinpath(mask).is_file()), "")


def sources(root: Root, paths: pd.Series, folders: pd.Series) -> tuple[pd.Series, list[str]]:
    """Return the origin of each image: a URL from Kaggle's metadata, or the class folder.

    The metadata (``<class>.metadata``) are ``.csv``, or ``.xlsx`` where openpyxl is installed.
    Where they name fewer than `NAMED` of the images of a class, the sources of all images count as
    unknown.

    Parameters
    ----------
    root : Path or zipfile.Path
        Folder or archive of the data.
    paths : pd.Series of str, (N,)
        POSIX paths of the images under the root.
    folders : pd.Series of str, (N,)
        Class folders of the images.

    Returns
    -------
    sources : pd.Series of str, (N,)
        URL of each image; its class folder where the sources are unknown.
    said : list of str
        What was found, in words.

    Raises
    ------
    DataError
        A metadata table cannot be read.
    """
    readers = {"csv": pd.read_csv}
    if find_spec("openpyxl"):
        readers["xlsx"] = pd.read_excel
    stems = paths.map(lambda path: PurePosixPath(path).stem.casefold())
    wanted = {
        f"{folder}.metadata.{kind}".casefold(): (folder, read)
        for folder in folders.unique()
        for kind, read in readers.items()
    }
    urls = pd.Series(index=paths.index, dtype=object)
    said = []
    for name in sorted(entry.name for entry in root.iterdir()):
        if name.casefold() in wanted:
            folder, read = wanted[name.casefold()]
            here = folders == folder
            urls[here] = stems[here].map(_urls(root, name, read))
            said.append(f"{name} names {urls[here].notna().sum():,} of {here.sum():,} images")
    named = urls.notna().groupby(folders).mean()
    if (named < NAMED).any():
        reason = f"sources are unknown where a class has fewer than {NAMED:.0%} named"
        return folders, [f"{', '.join(said)}: {reason}"] if said else []
    return urls.fillna(folders), [f"sources: {', '.join(said)}"]


def _urls(root: Root, name: str, read: Callable) -> dict[str, str]:
    """Return the URL by file name, in lower case and without suffix, from one metadata table."""
    try:
        rows = read(io.BytesIO(read_bytes(root, name)), dtype=str)
        rows = rows.dropna(subset=["FILE NAME", "URL"])
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as a table with the columns FILE NAME and URL ({error}): "
            "repair or remove it"
        ) from None
    return dict(zip(rows["FILE NAME"].str.casefold(), rows["URL"], strict=True))
