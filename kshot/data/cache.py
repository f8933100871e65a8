"""Files that kshot computes once and keeps: the cache folder, cached arrays, and writes that are atomic."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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


_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError, NotImplementedError)
"""What reading a damaged file of arrays raises."""


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if it is missing, incomplete or damaged, as the checksums of its parts show."""
    try:
        with open_file(path) as file:
            _check_stored(file)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except _DAMAGE:
        return None


def _check_stored(file: BinaryIO) -> dict[str, tuple[int, tuple[int, ...], np.dtype]]:
    """Where in the file each of its arrays begins, its shape and its type.

    Raises ValueError unless the arrays are as `write_arrays` writes them: plain, of the size they name. Memory for an
    array is allocated by what its header says, and only then read.
    """
    found = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
                size, header = math.prod(shape) * dtype.itemsize, stream.tell()
            if member.compress_type != zipfile.ZIP_STORED or header + size != member.file_size:
                raise ValueError(f"{member.filename} does not have the bytes that it names")
            file.seek(member.header_offset + 26)  # the lengths of the name and of the extra field, which precede it
            lengths = struct.unpack("<HH", file.read(4))
            found[member.filename] = member.header_offset + 30 + sum(lengths) + header, shape, dtype
        if sum(member.file_size for member in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError("its arrays have more bytes than the file")
    file.seek(0)
    return found


class CachedRows:
    """Rows of numbers, each computed once for its key: an array (n, ...) that is read by row from files of the cache.

    The folder `name` of the cache has a file for each chunk that was ever computed, written whole and never changed.
    An interruption loses one chunk at most, and rows that were computed for other data with the same key are found. The
    checksum of a file is compared before the first of its rows is read; what is damaged then, or was deleted meanwhile,
    is computed again. Processes that make one at once, such as those of a run, compute different chunks.

    Args:
        name: must contain (a hash of) everything that a row depends on besides its key; None for files that are deleted
            with this object.
        keys: n of one length; each a hash of what its row is computed from.
        compute: from positions in `keys` to their rows, all of one shape and type; it may leave some out, which are 0.
        chunk: number of rows that are computed before they are written.
        progress: called with the numbers of computed rows and of those to compute, at first and after each chunk.

    Attributes:
        shape, dtype: of the array; (n, 0) if no row could be computed.
        known: which rows there are, bool (n,): all but those that `compute` left out.

    Raises:
        ValueError: the cache folder cannot be written.
    """

    def __init__(
        self,
        name: str | None,
        keys: Sequence[bytes],
        compute: Callable[[list[int]], Mapping[int, np.ndarray]],
        *,
        chunk: int,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        self._keys, self._compute, self._chunk, self._progress = keys, compute, chunk, progress
        self.shape: tuple[int, ...] = (len(keys), 0)
        self.dtype = np.dtype(np.float32)
        self.known = np.ones(len(keys), bool)
        self._files: list[_RowFile] = []
        self._seen: set[str] = set()
        self._file, self._row = np.full(len(keys), -1), np.zeros(len(keys), np.int64)
        if name is None:
            scratch = ExitStack()
            self._folder = scratch.enter_context(scratch_folder(cache_folder() / "rows")) / "rows"
            weakref.finalize(self, scratch.close)
        else:
            self._folder = cache_folder() / name
        self._find()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of positions, int (...), as (..., *row shape)."""
        while (found := self._taken(rows.ravel())) is None:
            self._find()
        return found.reshape(*rows.shape, *self.shape[1:])

    def _taken(self, positions: np.ndarray) -> np.ndarray | None:
        """The rows of positions; None if some are to be found first, as their files are lost."""
        numbers = self._file[positions]
        is_lost = bool((self.known[positions] & (numbers < 0)).any())
        found = np.zeros((len(positions), *self.shape[1:]), self.dtype)
        for number in np.unique(numbers[numbers >= 0]).tolist():
            own = numbers == number
            taken = self._files[number].take(self._row[positions[own]])
            if taken is None:
                self._seen.discard(self._files[number].path.name)
                self._file[self._file == number] = -1
                is_lost = True
            else:
                found[own] = taken
        return None if is_lost else found

    def _find(self) -> None:
        """Find the rows whose files are not known, computing those that the cache lacks."""
        missing: dict[bytes, list[int]] = {}
        for position in np.flatnonzero(self.known & (self._file < 0)).tolist():
            missing.setdefault(self._keys[position], []).append(position)
        self._read(missing)
        pending = sorted(positions[0] for positions in missing.values())
        if not pending:
            return
        chunks = [pending[start : start + self._chunk] for start in range(0, len(pending), self._chunk)]
        self._progress(0, len(pending))
        for turn in in_turns([self._path(chunk) for chunk in chunks]):
            self._read(missing)  # what other processes have computed meanwhile
            chunk = [position for position in chunks[turn] if self._keys[position] in missing]
            rows = self._compute(chunk) if chunk else {}
            for position in set(chunk) - rows.keys():
                self.known[missing.pop(self._keys[position])] = False
            if rows:
                path = self._path(rows)
                keys = np.frombuffer(self._joined(rows), np.uint8).reshape(len(rows), -1)
                write_arrays(path, {"keys": keys, "rows": np.stack([*rows.values()])})
                self._add(path, missing)
            self._progress(len(pending) - len(missing), len(pending))

    def _joined(self, positions: Iterable[int]) -> bytes:
        return b"".join(self._keys[position] for position in positions)

    def _path(self, positions: Iterable[int]) -> Path:
        """The file of the rows of positions."""
        return self._folder / f"{hashlib.sha256(self._joined(positions)).hexdigest()[:24]}.npz"

    def _read(self, missing: dict[bytes, list[int]]) -> None:
        for path in sorted(self._folder.glob("*.npz")) if missing else ():
            if path.name not in self._seen:
                self._add(path, missing)

    def _add(self, path: Path, missing: dict[bytes, list[int]]) -> None:
        """Note which of the missing rows a file has; none if it is damaged."""
        if (opened := _open_rows(path)) is None:
            return
        self._seen.add(path.name)
        keys, file = opened
        self.shape, self.dtype = (len(self), *file.shape[1:]), file.dtype
        for row, key in enumerate(keys):
            if positions := missing.pop(key.tobytes(), None):
                self._file[positions], self._row[positions] = len(self._files), row
        self._files.append(file)


@dataclass
class _RowFile:
    """The rows of one file of `CachedRows`: an array at an offset, of which no checksum was compared at first."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    verified: bool = False

    def take(self, rows: np.ndarray) -> np.ndarray | None:
        """Some rows; None if the file is gone, or damaged, in which case it is deleted."""
        try:
            if self.verified:
                return np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, self.shape))[rows]
            if (arrays := _read_arrays(self.path)) is not None:
                self.verified = True
                return arrays["rows"][rows]
        except (FileNotFoundError, ValueError):
            pass  # deleted or cut short since it was verified
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.path.parent, error) from error
        return None


def _open_rows(path: Path) -> tuple[np.ndarray, _RowFile] | None:
    """The keys of a file of `CachedRows`, and its rows, which are not read; None if it is missing or damaged."""
    try:
        with open_file(path) as file:
            rows = _check_stored(file)["rows.npy"]
            with np.load(file, allow_pickle=False) as arrays:
                return arrays["keys"], _RowFile(path, *rows)
    except _DAMAGE:
        return None


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
