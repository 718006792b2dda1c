"""Folders and archives, opened in one way: a root, and the names of all files under it.

Zip archives are read in place. Tar archives and NumPy files are unpacked into a temporary folder,
which is removed at the end of the process.
"""

import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from covid_lab.reading.arrays import write_arrays
from covid_project import data
from covid_project.data import DataError, Root, listed

MAX_MEMBERS = 500_000
MAX_UNPACKED_BYTES = 20 * 10**9  # of a whole archive, as declared in it
MAX_RATIO, RATIO_MATTERS_ABOVE = 200, 50 * 10**6  # of one member; its unpacked bytes
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".npz")

# Encodings of names in a zip archive that does not state one, the likeliest first.
ENCODINGS = ("utf-8", "gb18030", "cp932", "cp949", "big5")

_unpacked: dict[tuple, tempfile.TemporaryDirectory] = {}


def open_root(path: str | Path, *, hidden: bool = False) -> tuple[Root, list[str]]:
    """Open a folder or an archive.

    Parameters
    ----------
    path : str or Path
        A folder, or an archive of one of the kinds in `ARCHIVES`.
    hidden : bool
        Whether to name hidden files too, such as those that macOS adds.

    Returns
    -------
    root : Path or zipfile.Path
        The folder or the archive.
    names : list of str
        Paths of all files relative to the root, sorted.

    Raises
    ------
    DataError
        For the reasons of `covid_project.data.open_root`; also for devices, pipes, and file names
        that are not valid UTF-8; also for an archive with members that are encrypted, links,
        outside its folder, of the same name, or compressed like a zip bomb.

    Examples
    --------
    >>> root, names = open_root("covid_xray.zip")
    >>> len(names)
    48
    """
    path = Path(path).expanduser()
    if os.path.exists(path) and not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} is neither a folder nor a file; give a folder or an archive")
        if path.suffix.lower() == ".npz" or _is_tar(path):
            path = _unpack(path)
        else:
            root, names = _open_zip(path)
            return root, [n for n in names if hidden or not data.is_hidden(n)]
    root, names = data.open_root(path, hidden=hidden)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"file name {name!r} is not valid UTF-8: rename it") from None
    # Reading a device or a pipe might never end.
    special = [n for n in names if (path / n).exists() and not (path / n).is_file()]
    if special:
        raise DataError(f"devices or pipes among the files: {listed(special)}; remove them")
    return root, names


def stem_of(path: Path) -> str:
    """Return the name of a folder or an archive without the archive's suffix.

    Parameters
    ----------
    path : Path
        The folder or the archive.

    Returns
    -------
    str
        The name.

    Examples
    --------
    >>> stem_of(Path("data/images.tar.gz"))
    'images'
    """
    name = path.expanduser().resolve().name
    suffix = next((s for s in sorted(ARCHIVES, key=len) if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def printable(name: str) -> str:
    """Return a name in a form that prints on one line.

    Parameters
    ----------
    name : str
        Any text.

    Returns
    -------
    str
        The name itself, or its ``repr`` where it has characters that do not print.
    """
    return name if name.isprintable() else repr(name)


# ---- zip ----------------------------------------------------------------------------------------


def _open_zip(path: Path) -> tuple[Root, list[str]]:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged lists raise more than BadZipFile
        raise DataError(
            f"{path} cannot be read as a zip archive ({error}). Give a folder or an archive "
            f"({', '.join(ARCHIVES)}); if it is one, it is damaged: download or copy it again"
        ) from None
    members = archive.infolist()
    _mend_names(members)
    _refuse_unsafe(path, members)
    archive.NameToInfo = {member.filename: member for member in members}
    names = [member.filename for member in members if not member.is_dir()]
    return zipfile.Path(archive), sorted(names)


def _mend_names(members: list[zipfile.ZipInfo]) -> None:
    """Replace backslashes of Windows, and decode names whose encoding is not stated."""
    for member in members:
        member.filename = member.filename.replace("\\", "/")
    old = [m for m in members if not m.flag_bits & 0x800 and not m.filename.isascii()]
    for encoding in ENCODINGS:
        try:
            names = [member.filename.encode("cp437").decode(encoding) for member in old]
        except UnicodeError:
            continue
        if all(name.isprintable() for name in names):
            for member, name in zip(old, names, strict=True):
                member.filename = name
            return


def _refuse_unsafe(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive whose list of members has anything suspicious."""
    unpacked = sum(member.file_size for member in members)
    spellings = Counter(member.filename.casefold() for member in members if not member.is_dir())
    faults = {
        "encrypted members": [m for m in members if m.flag_bits & 0x1],
        "members that are neither stored nor deflated": [
            m for m in members if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ],
        "members that are not plain relative paths": [m for m in members if _escapes(m)],
        "links or devices": [
            m
            for m in members
            if stat.S_IFMT(m.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
        ],
        f"members packed more than {MAX_RATIO} : 1, as a bomb is": [
            m
            for m in members
            if m.file_size > max(RATIO_MATTERS_ABOVE, MAX_RATIO * m.compress_size)
        ],
        "members of the same name (apart from letter case)": [
            m for m in members if spellings[m.filename.casefold()] > 1
        ],
    }
    found = [
        f"{fault}: {listed([printable(m.orig_filename) for m in some], limit=5)}"
        for fault, some in faults.items()
        if some
    ]
    if len(members) > MAX_MEMBERS:
        found.append(f"{len(members):,} members, more than {MAX_MEMBERS:,}")
    if unpacked > MAX_UNPACKED_BYTES:
        found.append(f"{unpacked:,} bytes unpacked, more than {MAX_UNPACKED_BYTES:,}")
    if found:
        raise DataError(
            f"{path} is refused, nothing was unpacked; it holds {'; '.join(found)}. Give an "
            "archive of plain files, or unpack it yourself and give the folder"
        )


def _escapes(member: zipfile.ZipInfo) -> bool:
    """Tell whether a path is absolute, has a drive letter, or has empty, ``.`` or ``..`` parts."""
    name = member.orig_filename.replace("\\", "/")  # before zipfile cuts and repairs it
    strange = re.match(r"[A-Za-z]:", name) or "\0" in name
    return bool(strange) or not {"", ".", ".."}.isdisjoint(name.removesuffix("/").split("/"))


# ---- tar and NumPy ------------------------------------------------------------------------------


def _is_tar(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(ARCHIVES[1:-1]) or (
        not zipfile.is_zipfile(path) and tarfile.is_tarfile(path)
    )


def _unpack(path: Path) -> Path:
    """Unpack a tar archive or a NumPy file once per process; return the folder."""
    facts = path.stat()
    key = (path.resolve(), facts.st_size, facts.st_mtime_ns)
    if key not in _unpacked:
        folder = tempfile.TemporaryDirectory(prefix="covid_lab_")
        if path.suffix.lower() == ".npz":
            write_arrays(path, Path(folder.name))
        else:
            _unpack_tar(path, Path(folder.name))
        _unpacked[key] = folder
    return Path(_unpacked[key].name)


def _unpack_tar(path: Path, folder: Path) -> None:
    unpacked = 0
    try:
        with tarfile.open(path) as archive:
            for number, member in enumerate(archive):
                unpacked += member.size
                if number >= MAX_MEMBERS or unpacked > MAX_UNPACKED_BYTES:
                    raise DataError(
                        f"{path} is refused: more than {MAX_MEMBERS:,} members or "
                        f"{MAX_UNPACKED_BYTES:,} bytes; unpack it yourself and give the folder"
                    )
                if unpacked > shutil.disk_usage(folder).free:
                    raise DataError(f"{path} does not fit on the disk of {folder.parent}")
                if member.isreg():
                    archive.extract(member, folder, filter="data")
                elif not member.isdir():
                    raise DataError(
                        f"{path} is refused: {printable(member.name)} is a link or a device; "
                        "unpack it yourself and give the folder"
                    )
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be read as a tar archive ({error}): download or copy it again, or "
            "unpack it yourself and give the folder"
        ) from None
