"""The library of data sets: where their folders are, and how sets are added and verified."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from kshot.bounded import home_expanded
from kshot.data.cache import scratch_folder
from kshot.data.library import archives
from kshot.data.library.catalogue import DataSet, File, catalogue
from kshot.data.library.download import Progress, download
from kshot.files import write_text

Counts = dict[str, dict[str, int]]
"""Numbers of what a data set contains, by split or "files"."""

Opener = Callable[[str, Path | None], Counts]
"""Opens a set that has a factory, by name and folder (None: the library's), and counts its content.

`kshot.data` knows no tasks: its caller passes one.
"""


class Added(NamedTuple):
    """The folder of a data set that was added, and a sentence on which of its files were verified."""

    folder: Path
    trust: str


def data_folders() -> list[Path]:
    """The folders of data sets: `$KSHOT_DATA` if set, then the user's data folder. New sets go to the first."""
    from platformdirs import user_data_path

    folder = os.environ.get("KSHOT_DATA")
    return [*([home_expanded(folder)] if folder else []), user_data_path("kshot", appauthor=False)]


def find(name: str) -> Path:
    """The folder of a data set; ValueError if none of the `data_folders` contains it."""
    folder = _find(name)
    if folder is None:
        candidates = ", ".join(str(parent / name) for parent in data_folders())
        raise ValueError(
            f"the data set {name!r} was not found; looked for {candidates}. Add it with "
            f"`kshot data add {name}`, or set KSHOT_DATA to the folder that contains {name}/"
        )
    return folder


def resolve_path(path: Path | str) -> Path:
    """The path in the folder of a set, if it begins with the name of one, such as `clinc150/data_full.json`.

    A path that exists or begins otherwise is returned as it is.

    Raises:
        ValueError: the set was not found.
    """
    path = home_expanded(path)
    if path.exists() or path.is_absolute() or not path.parts or path.parts[0] not in catalogue():
        return path
    return find(path.parts[0]).joinpath(*path.parts[1:])


def known() -> list[DataSet]:
    """The known data sets, with the folder of each that was found.

    Example:
        >>> [entry.name for entry in known() if entry.built_in]
        ['sinusoids', 'glyphs']
    """
    return [entry if entry.built_in else entry._replace(folder=_find(entry.name)) for entry in catalogue().values()]


def check(name: str, open_tasks: Opener | None = None) -> Counts:
    """Verify a known data set and count its content: the classes of each split, or the files.

    The counts are empty if tasks are generated without end.

    Args:
        name: of the set.
        open_tasks: opens sets that have a factory; without it their files are compared with the published hashes only.

    Raises:
        ValueError: the name is unknown, or the set is missing, incomplete or damaged.

    Example:
        >>> check("sinusoids")
        {}
    """
    entry = _entry(name)
    if entry.has_factory and open_tasks is not None:
        return open_tasks(name, None)
    return {} if entry.built_in else _verify(entry, find(name))


def add(
    name: str, source: Path | str | None = None, progress: Progress | None = None, *, open_tasks: Opener | None = None
) -> Added:
    """Download or copy a data set into the library, after verifying it.

    Downloads are compared with the published hashes. Where none is published, the first copy is trusted and its hash
    recorded in `.hashes/` in the library, with which later copies are compared.

    Args:
        name: of a known set that is not built in.
        source: a folder or an archive of the set's files, or the URL of either; by default `$KSHOT_MIRROR/NAME` if that
            is set, else the publisher's.
        progress: called as files arrive.
        open_tasks: as in `check`.

    Raises:
        ValueError: the set is built in or exists, `source` lacks its files, is damaged or differs from what is
            published, the download fails, or the library cannot be written. The library is then unchanged, apart from
            downloaded files, from which the next call resumes.
    """
    entry, target = _entry(name), data_folders()[0] / name
    if entry.built_in:
        raise ValueError(f"{name!r} is built in and needs no files")
    if target.exists():
        raise ValueError(f"{target} exists already and is never overwritten; move it away first")
    mirror = os.environ.get("KSHOT_MIRROR")
    if source is None and mirror:
        source = f"{mirror.rstrip('/')}/{name}"
    with scratch_folder(target) as scratch:
        if source is not None and "://" not in str(source):
            local = content = home_expanded(source)
            if not local.exists():
                raise ValueError(f"{local} does not exist; give the folder or the archive that contains {name}")
            if not local.is_dir():
                content = scratch / "unpacked"
                archives.unpack(local, content)
            _install(entry, content, target, scratch, open_tasks)
            return Added(target, _trust(entry, target, local))
        with _download_folder(target) as folder:
            files = entry.files if source is None else _files_at(str(source), entry)
            content, new_hashes = _downloaded(name, files, folder, scratch, progress)
            _install(entry, content, target, scratch, open_tasks)
            shutil.rmtree(folder, ignore_errors=True)
    if not new_hashes:
        return Added(target, "all files match the published or the recorded hash")
    _record_hashes(name, new_hashes)
    return Added(target, f"no hash is published: it was recorded in {_hash_file(name)}, and later copies must match it")


def _files_at(url: str, entry: DataSet) -> tuple[File, ...]:
    """The files of a set at another address: that of an archive of all, or of a folder."""
    if urlsplit(url).path.endswith(archives.SUFFIXES):
        return (File(PurePosixPath(urlsplit(url).path).name, url, unpack=True),)
    return tuple(file._replace(url=f"{url.rstrip('/')}/{file.name}") for file in entry.files)


def _downloaded(
    name: str, files: Sequence[File], folder: Path, scratch: Path, progress: Progress | None
) -> tuple[Path, dict[str, str]]:
    """The folder with the downloaded files of a set, and the hashes of files that had nothing to be compared with."""
    recorded, new_hashes = _recorded_hashes(name), {}
    content = folder
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            download(file.url, path, progress)
        sha256 = f"sha256:{_sha256(path)}"
        expected = file.hashes or ((recorded[file.name],) if file.name in recorded else ())
        if not expected:
            new_hashes[file.name] = sha256
        elif not _matches(path, expected):
            path.unlink()
            origin = "is published" if file.hashes else f"was recorded in {_hash_file(name)} when it was first added"
            raise ValueError(
                f"{file.url} is not the expected file, and nothing was added: its hash is {sha256}, but {expected[0]} "
                f"{origin}. It was changed on the way or by its publisher; give another address by --from"
            )
        if file.unpack:
            content = scratch / "unpacked"
            try:
                archives.unpack(path, content)
            except ValueError:
                path.unlink()  # complete, but damaged: not to be resumed from
                raise
    return content, new_hashes


@contextmanager
def _download_folder(target: Path) -> Iterator[Path]:
    """The folder of a set's files downloaded so far, locked for one process."""
    from filelock import FileLock, Timeout

    folder = target.parent / ".fetched" / target.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            yield folder
    except Timeout:
        raise ValueError(f"another process is adding {target.name} to {target.parent}; wait for it") from None


def _install(entry: DataSet, content: Path, target: Path, scratch: Path, open_tasks: Opener | None) -> None:
    """Copy a set's parts to their final place, after verifying the copy."""
    copy = scratch / "copy"
    try:
        source = _folder_with_parts(content, entry)
        for part in entry.parts:
            for path in [source / part, *(source / part).rglob("*")]:
                if path.is_file():
                    to = copy / path.relative_to(source)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)  # without permissions: a read-only source makes no read-only library
    except OSError as error:
        raise ValueError(f"{content} could not be copied to {target}: {error}") from error
    if entry.has_factory and open_tasks is not None:
        open_tasks(entry.name, copy)
    else:
        _verify(entry, copy)
    try:
        copy.rename(target)
    except OSError as error:  # another process added it meanwhile
        raise ValueError(f"{target} could not be created ({error.strerror}); move away what is there") from error


def _verify(entry: DataSet, folder: Path) -> Counts:
    """Compare the files of a set with the published hashes, and count them."""
    missing = [name for name in entry.parts if not (folder / name).exists()]
    if missing and (not entry.has_factory or missing == [*entry.parts]):  # a factory may do without some parts
        raise ValueError(f"{folder} lacks {missing[0]} of {entry.name}; add the set again")
    for file in entry.files:
        path = folder / file.name
        if file.hashes and not file.unpack and path.is_file() and not _matches(path, file.hashes):
            raise ValueError(
                f"{path} is not the published file of {entry.name}: its SHA-256 is {_sha256(path)}, not "
                f"{file.hashes[0]}. Download it again; a file of your own need not be in the library: name its path in "
                "the run file"
            )
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": {"files": len(sizes), "bytes": sum(sizes)}}


def _trust(entry: DataSet, folder: Path, source: Path) -> str:
    """A sentence on which files of a set from a local folder or archive were verified."""
    hashed = [file for file in entry.files if file.hashes]
    if not hashed:
        return "no hash is published to compare it with"
    if hashed[0].unpack and source.is_dir():
        return "a hash is published of the archive only, with which a folder cannot be compared"
    if hashed[0].unpack:
        return f"the archive {'matches' if _matches(source, hashed[0].hashes) else 'does not match'} the published hash"
    matching = sum((folder / file.name).is_file() and _matches(folder / file.name, file.hashes) for file in hashed)
    if matching == len(hashed):
        return "all files match the published hash"
    return f"{matching} of {len(entry.files)} files match a published hash; all were opened"


def _matches(path: Path, hashes: tuple[str, ...]) -> bool:
    import pooch.hashes

    return any(pooch.hashes.hash_matches(path, expected) for expected in hashes)


def _sha256(path: Path) -> str:
    import pooch

    return pooch.file_hash(path)


def _hash_file(name: str) -> Path:
    """The file of a set's recorded hashes, a line `sha256:… name` for each file."""
    return data_folders()[0] / ".hashes" / f"{name}.txt"


def _recorded_hashes(name: str) -> dict[str, str]:
    path = _hash_file(name)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {file: value for value, file in (line.split(" ", 1) for line in lines)}


def _record_hashes(name: str, new_hashes: dict[str, str]) -> None:
    path = _hash_file(name)
    lines = [f"{value} {file}\n" for file, value in (_recorded_hashes(name) | new_hashes).items()]
    write_text(path, "".join(lines))


def _entry(name: str) -> DataSet:
    if name not in catalogue():
        raise ValueError(f"{name!r} is not a known data set; kshot knows {', '.join(catalogue())}")
    return catalogue()[name]


def _find(name: str) -> Path | None:
    return next((folder / name for folder in data_folders() if (folder / name).is_dir()), None)


def _folder_with_parts(folder: Path, entry: DataSet) -> Path:
    """The folder that contains the parts: `folder`, or its only subfolder, as zips often have."""
    subfolders = [path for path in folder.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    for candidate in (folder, *subfolders[: len(subfolders) == 1]):
        if any((candidate / part).exists() for part in entry.parts):
            return candidate
    raise ValueError(f"{folder} does not contain {entry.name}: expected some of {', '.join(entry.parts)} in it")
