"""The library of data sets: where they live, how they get there, and where what was made of them is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from kshot.data.library.archives import SUFFIXES as ARCHIVES
from kshot.data.library.archives import unpack
from kshot.data.library.catalogue import KNOWN, DataSet, File
from kshot.data.library.download import Progress, fetch


class Added(NamedTuple):
    """A data set that was added: its folder, and in words how far its files are known to be right."""

    folder: Path
    trust: str


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
            f"`kshot data add {name}`, or set KSHOT_DATA to the folder that holds {name}/"
        )
    return where


def place_of(path: Path | str) -> Path:
    """A path as it is or, where nothing lies there and it begins with the name of a known set, in that set's folder:
    `clinc150/data_full.json`.

    Raises:
        ValueError: it is in a known set that was not found.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_absolute() or path.parts[:1] == () or path.parts[0] not in {row.name for row in KNOWN}:
        return path
    return find(path.parts[0]).joinpath(*path.parts[1:])


def known() -> list[DataSet]:
    """The data sets that kshot knows, each with the folder it was found in.

    Example:
        >>> [row.name for row in known() if row.built_in]
        ['sinusoids', 'glyphs']
    """
    return [row if row.built_in else row._replace(where=_located(row.name)) for row in KNOWN]


def check(name: str) -> dict[str, dict[str, int]]:
    """Open a data set, and count what it holds: in each split, or its files; empty where the tasks have no end.

    Raises:
        ValueError: the name isn't known, the set was not found, or it's damaged.

    Example:
        >>> check("sinusoids")
        {}
    """
    row = _row(name)
    return _open(row) if row.has_factory else _files_of(row, find(name))


def add(name: str, source: Path | str | None = None, progress: Progress | None = None) -> Added:
    """Fetch or copy a data set into the library, after checking it.

    What is fetched is compared with the hashes that are published. Where none is, the first copy is trusted, and the
    hash of it is recorded in `.hashes/` in the library, for the next.

    Args:
        name: one of the known sets that are not built in.
        source: the folder that holds the set's files, an archive of it, or the address of either; by default
            `$KSHOT_MIRROR/NAME` where that is set, and else the publisher's.
        progress: is told how far each file is.

    Raises:
        ValueError: the set is built in or has been added already, `source` doesn't hold it, is damaged or differs from
            what is published, it cannot be fetched, or the library cannot be written. The library is then as it was,
            but for what was fetched so far, with which the next call goes on.
    """
    row, target = _row(name), data_folders()[0] / name
    if row.built_in:
        raise ValueError(f"{name!r} is built in and needs no files")
    if target.exists():
        raise ValueError(f"{target} exists already and is never written over; move it away first")
    mirror = os.environ.get("KSHOT_MIRROR")
    source = f"{mirror.rstrip('/')}/{name}" if source is None and mirror else source
    with beside(target) as scratch:
        if source is not None and "://" not in str(source):
            content = _local(name, Path(source).expanduser(), scratch)
            _put(row, content, target, scratch)
            return Added(target, _compared(row, target, Path(source).expanduser()))
        with _fetching(target) as folder:
            content, fresh = _fetched(row, None if source is None else str(source), folder, scratch, progress)
            _put(row, content, target, scratch)
            shutil.rmtree(folder, ignore_errors=True)
    if not fresh:
        return Added(target, "each file has the hash that is published, or was recorded before")
    _record(name, fresh)
    return Added(target, f"no hash is published: it was recorded in {_recorded(name)}, and later copies must have it")


def _local(name: str, source: Path, scratch: Path) -> Path:
    """The folder of a set's files, for the folder or the archive that a user has."""
    if not source.exists():
        raise ValueError(f"{source} does not exist; give the folder or the archive that holds {name}")
    if source.is_dir():
        return source
    unpack(source, scratch / "unpacked")
    return scratch / "unpacked"


def _fetched(
    row: DataSet, base: str | None, folder: Path, scratch: Path, progress: Progress | None
) -> tuple[Path, dict[str, str]]:
    """The folder of the files fetched, and the hashes of those that there was nothing to compare with."""
    files = row.files
    if base and urlsplit(base).path.endswith(ARCHIVES):
        files = (File(PurePosixPath(urlsplit(base).path).name, base, unpacked=True),)
    elif base:
        files = tuple(file._replace(address=f"{base.rstrip('/')}/{file.name}") for file in files)
    known, fresh = _recorded_hashes(row.name), {}
    content = folder
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fetch(file.address, path, progress)
        expected = file.hashes or ((known[file.name],) if file.name in known else ())
        if not expected:
            fresh[file.name] = f"sha256:{_hash(path, 'sha256')}"
        elif not _matches(path, expected):
            found = _hash(path, "sha256")
            path.unlink()
            whose = "is published" if file.hashes else f"was recorded in {_recorded(row.name)} when it was first added"
            raise ValueError(
                f"{file.address} is not what was expected, and nothing was added: its SHA-256 is {found}, but "
                f"{expected[0]} {whose}. It was changed on the way or by its publisher; fetch it from another address "
                "by --from"
            )
        if file.unpacked:
            content = scratch / "unpacked"
            try:
                unpack(path, content)
            except ValueError:
                path.unlink()  # it came whole, but isn't: nothing to go on from
                raise
    return content, fresh


@contextmanager
def _fetching(target: Path) -> Iterator[Path]:
    """The folder of what was fetched so far for a set, for one process at a time."""
    from filelock import FileLock, Timeout

    folder = target.parent / ".fetched" / target.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            yield folder
    except Timeout:
        raise ValueError(f"another process is adding {target.name} to {target.parent}; wait for it") from None


def _put(row: DataSet, content: Path, target: Path, scratch: Path) -> None:
    """Copy a set's parts to its place, after opening them."""
    made = scratch / "made"
    try:
        _copy(_holding(content, row), made, row)
    except OSError as error:
        raise ValueError(f"{content} could not be copied to {target}: {error}") from error
    if row.has_factory:
        _open(row, path=made)
    else:
        _files_of(row, made)
    try:
        made.rename(target)
    except OSError as error:  # somebody else added it meanwhile
        raise ValueError(f"{target} could not be made ({error.strerror}); move away what is there") from error


def _files_of(row: DataSet, folder: Path) -> dict[str, dict[str, int]]:
    """Count the files of a set that has no factory, after comparing them with what is published."""
    for name in row.parts:
        if not (folder / name).exists():
            raise ValueError(f"{folder} lacks {name} of {row.name}; add it anew")
    for file in row.files:
        if file.hashes and not file.unpacked and not _matches(folder / file.name, file.hashes):
            raise ValueError(
                f"{folder / file.name} is not the published file of {row.name}: its SHA-256 is "
                f"{_hash(folder / file.name, 'sha256')}, not {file.hashes[0]}. Fetch it anew; a file of your own needs "
                "no place in the library: name its path in the run file"
            )
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": {"files": len(sizes), "bytes": sum(sizes)}}


def _compared(row: DataSet, folder: Path, source: Path) -> str:
    """How far the files of a set that came from a folder or an archive are known to be right, in words."""
    archives = [file.hashes for file in row.files if file.unpacked and file.hashes]
    if archives and source.is_dir():
        return "a hash is published of the archive alone, which a folder cannot be compared with"
    if archives:
        known = any(_matches(source, hashes) for hashes in archives)
        return f"the archive {'has' if known else 'has not'} the hash that is published"
    published = [file for file in row.files if file.hashes]
    if not published:
        return "no hash is published to compare it with"
    right = [file for file in published if (folder / file.name).is_file() and _matches(folder / file.name, file.hashes)]
    if len(right) == len(published):
        return "each file has the hash that is published"
    return f"{len(right)} of {len(row.files)} files have a hash that is published; all were opened"


def _matches(path: Path, hashes: tuple[str, ...]) -> bool:
    return any(_hash(path, kind) == expected for kind, expected in (entry.split(":") for entry in hashes))


def _hash(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _recorded(name: str) -> Path:
    """Where the hashes of a set's files are recorded, a line `sha256:… name` each."""
    return data_folders()[0] / ".hashes" / f"{name}.txt"


def _recorded_hashes(name: str) -> dict[str, str]:
    path = _recorded(name)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {file: value for value, file in (line.split(" ", 1) for line in lines)}


def _record(name: str, fresh: dict[str, str]) -> None:
    path = _recorded(name)
    lines = [f"{value} {file}\n" for file, value in (_recorded_hashes(name) | fresh).items()]
    with beside(path) as scratch:
        (scratch / "hashes").write_text("".join(lines), encoding="utf-8")
        (scratch / "hashes").replace(path)


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


def is_cached(name: str) -> bool:
    """Whether the cache has arrays of that name."""
    return (cache_folder() / f"{name}.npz").exists()


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to one `.npz`, beside and renamed: a reader sees the old file, or the new one, whole.

    Raises:
        ValueError: the folder can't be written.
    """
    with beside(path) as scratch:
        np.savez(scratch / "arrays.npz", **arrays)  # type: ignore[arg-type]
        (scratch / "arrays.npz").replace(path)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
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
    source = getattr(import_module("kshot.sources"), row.name)(**options)
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
