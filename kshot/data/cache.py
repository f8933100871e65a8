"""Files that kshot computes once and keeps: the cache folder, cached arrays, and writes that are atomic."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kshot.bounded import home_expanded, open_file
from kshot.files import DamagedFile, read_json, sha256_of, whole_file, write_json

MANIFEST = "manifest.json"
"""Name of the file that is written last into a cached folder."""


def cache_folder() -> Path:
    """The folder of cached results: `$KSHOT_CACHE`, or the user's cache folder. It may be deleted at any time."""
    from platformdirs import user_cache_path

    folder = os.environ.get("KSHOT_CACHE")
    return home_expanded(folder) if folder else user_cache_path("kshot", appauthor=False)


def cached(name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return arrays from the cache, computing them where the cache lacks them or holds a damaged file.

    Args:
        name: file name without suffix; must contain (a hash of) everything that the arrays depend on.
        compute: returns arrays by name, none of dtype object.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    return cached_each([name], lambda number: compute())[0]


def cached_each(names: Sequence[str], compute: Callable[[int], dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """As `cached` for each of some names, by their numbers; processes that call this at once share the work."""
    paths = [cache_folder() / f"{name}.npz" for name in names]
    found = [_read_arrays(path) for path in paths]
    missing = [number for number, arrays in enumerate(found) if arrays is None]
    for turn in in_turns([paths[number] for number in missing]):
        number = missing[turn]
        arrays = _read_arrays(paths[number])
        if arrays is None:
            arrays = compute(number)
            write_arrays(paths[number], arrays)
        found[number] = arrays
    return [arrays for arrays in found if arrays is not None]


def in_turns(paths: Sequence[Path]) -> Iterator[int]:
    """The numbers of files that several processes make, each under its lock; first those that no other one makes."""
    taken = []
    for number, path in enumerate(paths):
        with locked(path, wait=False) as free:
            if free:
                yield number
            else:
                taken.append(number)
    for number in taken:
        with locked(paths[number]):  # the other process has made it, or was killed
            yield number


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


def cached_rows(
    name: str | None,
    keys: Sequence[bytes],
    compute: Callable[[list[int]], Mapping[int, np.ndarray]],
    *,
    chunk: int,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a row of numbers for each key, from the cache; those that it lacks are computed and kept, in chunks.

    Processes that call this at once, such as those of one run, compute different chunks.
    The folder `name` of the cache has a file for each chunk that was ever computed, written whole and never changed.
    An interruption loses one chunk at most, and rows that were computed for other data with the same key are found.

    Args:
        name: must contain (a hash of) everything that a row depends on besides its key; None to keep nothing.
        keys: n of one length; each a hash of what its row is computed from.
        compute: from positions in `keys` to their rows, all of one shape and type; it may leave some out.
        chunk: number of rows that are computed before they are written.
        progress: called with the numbers of computed rows and of those to compute, at first and after each chunk.

    Returns:
        The rows (n, ...), and which of them there are (n,), all but those that `compute` left out.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    found = _Rows(keys)
    folder = None if name is None else cache_folder() / name
    found.read(folder)
    pending = sorted(positions[0] for positions in found.missing.values())
    chunks = [pending[start : start + chunk] for start in range(0, len(pending), chunk)]
    names = [_name_of(keys, each) for each in chunks]
    left_out = 0
    if pending:
        progress(0, len(pending))
    for turn in range(len(chunks)) if folder is None else in_turns([folder / each for each in names]):
        found.read(folder)
        missing = [position for position in chunks[turn] if keys[position] in found.missing]
        rows = compute(missing) if missing else {}
        left_out += len(missing) - len(rows)
        if rows:
            of_rows = b"".join(keys[position] for position in rows)
            arrays = {
                "keys": np.frombuffer(of_rows, np.uint8).reshape(len(rows), -1),
                "rows": np.stack([*rows.values()]),
            }
            if folder is not None:
                path = folder / f"{_name_of(keys, rows)}.npz"
                write_arrays(path, arrays)
                found.files.add(path.name)
            found.add(arrays)
        progress(len(pending) - len(found.missing) + left_out, len(pending))
    return found.rows, found.known


def _name_of(keys: Sequence[bytes], positions: Iterable[int]) -> str:
    return hashlib.sha256(b"".join(keys[position] for position in positions)).hexdigest()[:24]


class _Rows:
    """Rows by key, as far as they were found.

    Attributes:
        rows, known: as `cached_rows` returns them.
        missing: the keys without a row, and their positions.
        files: names of the files that were read.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.rows, self.known = np.empty((len(keys), 0), np.float32), np.zeros(len(keys), bool)
        self.missing: dict[bytes, list[int]] = {}
        self.files: set[str] = set()
        for position, key in enumerate(keys):
            self.missing.setdefault(key, []).append(position)

    def read(self, folder: Path | None) -> None:
        """Add the rows of a folder's new files; those of a damaged file are computed again."""
        for path in sorted(folder.glob("*.npz")) if folder and self.missing else ():
            if path.name in self.files:
                continue
            self.files.add(path.name)
            if self.missing and (arrays := _read_arrays(path)) is not None:
                self.add(arrays)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        for key, row in zip(arrays["keys"], arrays["rows"]):
            if positions := self.missing.pop(key.tobytes(), None):
                if not self.known.any():
                    self.rows = np.empty((len(self.known), *row.shape), row.dtype)
                self.rows[positions], self.known[positions] = row, True


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
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file or folder of the cache, `.NAME.lock` beside it, and yield True.

    Args:
        wait: whether to wait while another process has it; else this yields False then.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    try:
        yield True
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
