"""Files that kshot computes once and keeps: the cache folder, cached arrays, and writes that are atomic."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kshot.bounded import open_file
from kshot.files import DamagedFile, read_json, sha256_of, whole_file, write_json

MANIFEST = "manifest.json"
"""Name of the file that is written last into a cached folder."""


def cache_folder() -> Path:
    """The folder of cached results: `$KSHOT_CACHE`, or the user's cache folder. It may be deleted at any time."""
    from platformdirs import user_cache_path

    folder = os.environ.get("KSHOT_CACHE")
    return Path(folder).expanduser() if folder else user_cache_path("kshot", appauthor=False)


def cached(name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return arrays from the cache, computing them where the cache lacks them or holds a damaged file.

    Args:
        name: file name without suffix; must contain (a hash of) everything that the arrays depend on.
        compute: returns arrays by name, none of dtype object.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    path = cache_folder() / f"{name}.npz"
    arrays = _read_arrays(path)
    if arrays is None:
        with locked(path):  # one process computes, and those that waited read
            arrays = _read_arrays(path)
            if arrays is None:
                arrays = compute()
                write_arrays(path, arrays)
    return arrays


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if it is missing, incomplete or damaged, as the checksums of its parts show."""
    try:
        with open_file(path) as file:
            _check_stored(file)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, NotImplementedError):
        return None


def _check_stored(file: BinaryIO) -> None:
    """Raise ValueError unless the arrays of a file are as `write_arrays` writes them: plain, of the size they name.

    Memory for an array is allocated by what its header says, and only then read.
    """
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
                size = math.prod(shape) * dtype.itemsize
                if member.compress_type != zipfile.ZIP_STORED or stream.tell() + size != member.file_size:
                    raise ValueError(f"{member.filename} does not have the bytes that it names")
        if sum(member.file_size for member in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError("its arrays have more bytes than the file")
    file.seek(0)


def is_cached(name: str) -> bool:
    """Whether the cache has a file of that name."""
    return (cache_folder() / f"{name}.npz").exists()


def texts_key(options: tuple[object, ...], texts: Iterable[str]) -> str:
    """A hash of texts, and of the options with which something is computed from them; part of a file name."""
    key = hashlib.sha256(repr(options).encode())
    for text in texts:
        content = text.encode()
        key.update(len(content).to_bytes(8, "little") + content)
    return key.hexdigest()[:16]


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an uncompressed `.npz` atomically: readers see the old file or the complete new one."""
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise _cannot_write(path.parent, error) from error


def cached_folder(name: str, fill: Callable[[Path], object], table: str) -> Path:
    """The folder `name` of the cache, filled by `fill` where the cache lacks it or its table is damaged.

    Args:
        name: must contain (a hash of) everything that the content depends on.
        fill: writes the content into an empty folder.
        table: name of the file by which all others are found; its checksum is compared at each call.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    folder = cache_folder() / name
    if not _is_filled(folder, table):
        with locked(folder):
            if not _is_filled(folder, table):
                with scratch_folder(folder) as scratch:
                    new = scratch / "new"
                    new.mkdir()
                    fill(new)
                    write_json(new / MANIFEST, {"sha256": sha256_of(new / table)})
                    replace_folder(new, folder, scratch)
    return folder


def _is_filled(folder: Path, table: str) -> bool:
    try:
        return read_json(folder / MANIFEST).get("sha256") == sha256_of(folder / table)
    except DamagedFile:
        return False


def replace_folder(new: Path, folder: Path, scratch: Path) -> None:
    """Rename `new` to `folder`, after renaming what is there into `scratch`."""
    try:
        if folder.exists():
            folder.rename(scratch / "old")
        new.rename(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder of the cache, `.NAME.lock` beside it; waits while another process has it."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`, on the same disk, so that a rename from it to `target` is atomic."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target.parent, error) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cannot_write(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"cannot write in {folder} ({error.strerror}); set KSHOT_DATA (for data sets) and KSHOT_CACHE (for the cache) "
        "to folders that you can write"
    )
