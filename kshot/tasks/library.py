"""The library of data sets: which ones kshot knows, where they live, and where what was made of them is kept."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np


class DataSet(NamedTuple):
    """A data set that kshot can open.

    Attributes:
        name: its factory in `kshot.tasks`, and its folder in the library.
        description: what it holds.
        licence: of the data.
        address: where it comes from; empty for what is built in.
        cut: how it's cut into train, val and test.
        parts: the files and folders at the top of its folder, of which those present are copied; none: built in.
        where: the folder it was found in; None where it is built in or was not found.
    """

    name: str
    description: str
    licence: str
    address: str
    cut: str
    parts: tuple[str, ...] = ()
    where: Path | None = None

    @property
    def built_in(self) -> bool:
        """Whether it needs no files of its own."""
        return not self.parts


KNOWN = (
    DataSet(
        "sinusoids",
        "sine waves to regress, drawn at run time",
        "none needed",
        "",
        "each split draws its own amplitudes and phases from one distribution",
    ),
    DataSet(
        "glyphs",
        "characters of many scripts, drawn at run time from the fonts that matplotlib ships",
        "DejaVu fonts: Bitstream Vera licence and public domain",
        "",
        "by script: whole scripts are held out",
    ),
    DataSet(
        "omniglot",
        "1,623 handwritten characters of 50 alphabets, 20 drawings of each",
        "MIT",
        "https://github.com/brendenlake/omniglot",
        "by character, the lists of Vinyals et al. 2016: splits_vinyals/{train,val,test}.txt",
        (
            "images_background.zip",
            "images_evaluation.zip",
            "images_background",
            "images_evaluation",
            "splits_vinyals",
            "LICENSE",
        ),
    ),
)


def data_folders() -> list[Path]:
    """The folders that hold data sets, first the one that new sets go to: `$KSHOT_DATA`, then the user's own."""
    from platformdirs import user_data_path

    named = os.environ.get("KSHOT_DATA")
    return [*([Path(named).expanduser()] if named else []), user_data_path("kshot", appauthor=False)]


def find(name: str) -> Path:
    """The folder of a data set.

    Raises:
        ValueError: it is in none of the `data_folders`.
    """
    where = _located(name)
    if where is None:
        looked = ", ".join(str(folder / name) for folder in data_folders())
        raise ValueError(
            f"the data set {name!r} was not found; looked for {looked}. Add it with "
            f"`kshot data add {name} --from FOLDER`, or set KSHOT_DATA to the folder that holds {name}/"
        )
    return where


def known() -> list[DataSet]:
    """The data sets that kshot knows, each with the folder it was found in.

    Example:
        >>> [row.name for row in known() if row.built_in]
        ['sinusoids', 'glyphs']
    """
    return [row if row.built_in else row._replace(where=_located(row.name)) for row in KNOWN]


def check(name: str) -> dict[str, dict[str, int]]:
    """Open a data set, and count its classes and drawings in each split; empty where the tasks have no end.

    Raises:
        ValueError: the name isn't known, the set was not found, or it's damaged.

    Example:
        >>> check("sinusoids")
        {}
    """
    return _open(_row(name))


def add(name: str, source: Path) -> Path:
    """Copy a data set into the library, after checking it; the folder it now has.

    Args:
        name: one of the known sets that are not built in.
        source: the folder that holds the set's files, or a zip of it.

    Raises:
        ValueError: the set is built in or has been added already, `source` doesn't hold it or is damaged, or the
            library cannot be written. The library is then as it was.
    """
    row, target = _row(name), data_folders()[0] / name
    if row.built_in:
        raise ValueError(f"{name!r} is built in and needs no files")
    if target.exists():
        raise ValueError(f"{target} exists already and is never written over; move it away first")
    if not source.exists():
        raise ValueError(f"{source} does not exist; give the folder or the zip that holds {name}")
    with _beside(target) as beside:
        content = source
        if source.is_file():
            content = beside / "unpacked"
            unpack(source, content)
        made = beside / "made"
        try:
            _copy(_holding(content, row), made, row)
        except OSError as error:
            raise ValueError(f"{source} could not be copied to {target}: {error}") from error
        _open(row, path=made)
        try:
            made.rename(target)
        except OSError as error:  # somebody else added it meanwhile
            raise ValueError(f"{target} could not be made ({error.strerror}); move away what is there") from error
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip into a folder that does not exist yet.

    Raises:
        ValueError: not a zip, damaged, or with a member that is a link or leads out of the folder.
    """
    with opened_zip(archive) as members:
        for member in members.infolist():
            target = (folder / member.filename).resolve()
            if stat.S_ISLNK(member.external_attr >> 16) or not target.is_relative_to(folder.resolve()):
                raise ValueError(f"{archive}: {member.filename!r} leads out of the archive; nothing was unpacked")
        members.extractall(folder)


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip for reading; damage met on the way becomes a `ValueError` that names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged or not a zip ({error}); download it again") from error


def cache_folder() -> Path:
    """Where what kshot makes is kept to spare the work next time: `$KSHOT_CACHE`, or the user's cache folder.

    Nothing in it is needed: it may be deleted at any time.
    """
    from platformdirs import user_cache_path

    named = os.environ.get("KSHOT_CACHE")
    return Path(named).expanduser() if named else user_cache_path("kshot", appauthor=False)


def cached(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `make` makes, from the cache where they are in it whole.

    They're one `.npz`, uncompressed, whose checksums tell damage; a damaged one is made again.

    Args:
        name: of the file; all that the arrays depend on is part of it.
        make: returns arrays by name, none of objects.
    """
    path = cache_folder() / f"{name}.npz"
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError):
            pass  # half-written or damaged: make it again
    arrays = make()
    write_arrays(path, arrays)
    return arrays


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to one `.npz`, beside and renamed: a reader sees the old file, or the new one, whole.

    Raises:
        ValueError: the folder can't be written.
    """
    with _beside(path) as beside:
        np.savez(beside / "arrays.npz", **arrays)  # type: ignore[arg-type]
        (beside / "arrays.npz").replace(path)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target`, on the same disk so that a rename is atomic; gone at the end."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ValueError(
            f"cannot write in {target.parent} ({error.strerror}); set KSHOT_DATA (for data sets) and KSHOT_CACHE "
            "(for what is made of them) to folders that you can write"
        ) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _row(name: str) -> DataSet:
    for row in KNOWN:
        if row.name == name:
            return row
    raise ValueError(f"{name!r} is no data set that kshot knows; it knows {', '.join(row.name for row in KNOWN)}")


def _located(name: str) -> Path | None:
    return next((folder / name for folder in data_folders() if (folder / name).is_dir()), None)


def _open(row: DataSet, **options: Path) -> dict[str, dict[str, int]]:
    source = getattr(import_module("kshot.tasks"), row.name)(**options)
    source.task("test", 0)
    counts = {}
    for split in getattr(source, "class_names", ()):
        classes = source.classes(split)
        counts[split] = {"classes": len(classes), "drawings": sum(map(len, classes.values()))}
    return counts


def _holding(folder: Path, row: DataSet) -> Path:
    """The folder that holds the parts: `folder`, or a folder alone in it, as a zip often has."""
    inner = [path for path in folder.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    for candidate in (folder, *inner[: len(inner) == 1]):
        if any((candidate / part).exists() for part in row.parts):
            return candidate
    raise ValueError(f"{folder} does not hold {row.name}: expected some of {', '.join(row.parts)} in it")


def _copy(source: Path, target: Path, row: DataSet) -> None:
    for part in row.parts:
        for path in [source / part, *(source / part).rglob("*")]:
            if path.is_file():
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)  # contents only: a read-only source makes no read-only library
