"""Image files decoded on demand and cached as one memory-mapped array.

Shape legend: n files, C channels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.bounded import open_file
from kshot.data.cache import cache_folder, locked, replace_folder, scratch_folder
from kshot.data.dataset import ImageDataset
from kshot.data.images.decode import CHANNELS, VERSION, BadImage, Colour, Resample, decode
from kshot.data.images.index import ImageFile, shown
from kshot.data.images.tfrecord import image_of

_TRIES = 20  # to open files that others delete at the same time
CHUNK = 512  # files decoded between two writes; bounds their memory
_CHECKSUM = np.dtype(np.uint32)


class DecodedFiles(ABC):
    """What is decoded of image files, uint8 (*shape) of each, decoded when it is first taken.

    It is cached: a sparse file of all pixels (n, *shape), and a checksum for each row, written after its pixels. The
    name of the cache folder is a hash of the names, sizes and times of the files and of the options of decoding; it is
    created by one process at a time. Several processes may fill it at once: they write the same bytes to the same
    offsets. A process uses a row of the cache after verifying its checksum, so that one half-written in a crash is
    decoded again. It reads and writes the files that it has opened: if the folder is deleted or replaced meanwhile, its
    own rows stay right, and what it decodes next goes to the new folder.

    Args:
        kind: first part of the name of the cache folder.
        files: row i is file i.
        root: folder to which their names are relative.
        shape: of a row.
        options: everything that a row depends on besides its file.
        about: for people who clean up the cache.

    Attributes:
        name: of the cache folder.
        pixels: uint8 (n, *shape), a memory map; rows not decoded yet are undefined.
        bad: errors of the files that could not be decoded so far, by row.

    Raises:
        ValueError: the cache cannot be written.
    """

    remedy = "replace it"
    """What to do about a bad file."""

    def __init__(
        self,
        kind: str,
        files: Sequence[ImageFile],
        root: Path,
        shape: tuple[int, ...],
        options: tuple[object, ...],
        about: Mapping[str, object],
    ) -> None:
        self.files, self.root = files, Path(os.path.realpath(root))
        self.bad: dict[int, BadImage] = {}
        self.name = f"{kind}-{listing_key(files, self.root, *options)}"
        self._folder = cache_folder() / self.name
        self._shape = (len(files), *shape)
        self._about = {"root": str(self.root), kind: len(files), **about}
        self._files: dict[str, FileIO] = {}
        self._close: Callable[[], object] = lambda: None
        self._open()

    def __len__(self) -> int:
        return len(self.files)

    @abstractmethod
    def _decoded(self, row: int) -> np.ndarray:
        """The row of a file; raises BadImage."""

    def complete(self, rows: np.ndarray) -> None:
        """Decode the files of rows, int64 (...), unless cached.

        Raises:
            BadImage: a file is damaged or not an image.
            ValueError: a file cannot be read or was modified after listing, or the disk is full.
        """
        while not self._verified[rows].all():  # once, unless the cache is deleted meanwhile
            self.decode(rows)
            for row in self.bad.keys() & set(rows.ravel().tolist()):
                raise BadImage(f"{self.bad[row]}; {self.remedy}")

    def decode(self, rows: np.ndarray, progress: Callable[[int, int], object] | None = None) -> None:
        """Decode the files of rows, int64 (...), unless cached; `BadImage` is stored in `bad`, not raised.

        `progress` is called with the numbers of processed files and of all.
        """
        pending = np.unique(rows[~self._verified[rows]])
        for start in range(0, len(pending), CHUNK):
            chunk = pending[start : start + CHUNK]
            self._verified[chunk] = [
                checksum != 0 and checksum == _checksum(self.pixels[row])
                for row, checksum in zip(chunk, self._checksums[chunk])
            ]
            results = self._decode_files(chunk[~self._verified[chunk]].tolist())
            self.bad |= {row: image for row, image in results.items() if isinstance(image, BadImage)}
            self._write({row: image for row, image in results.items() if not isinstance(image, BadImage)})
            if progress:
                progress(start + len(chunk), len(pending))

    def _decode_files(self, rows: list[int]) -> dict[int, np.ndarray | BadImage]:
        """The image of each row, or its error."""
        if not rows:
            return {}
        # Pillow warns of many oddities: what cannot be decoded raises, and the rest is fine.
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return dict(zip(rows, threads.map(self._decode_file, rows)))

    def _decode_file(self, row: int) -> np.ndarray | BadImage:
        try:
            return self._decoded(row)
        except BadImage as error:
            return error

    def _write(self, images: dict[int, np.ndarray]) -> None:
        if not images:
            return
        if not self._is_current():
            self._open()
        try:
            for row, image in images.items():
                self._files["pixels"].seek(row * image.nbytes)
                _write_all(self._files["pixels"], image.tobytes())
            for row, image in images.items():  # after the pixels that they confirm
                self._files["checksums"].seek(_CHECKSUM.itemsize * row)
                _write_all(self._files["checksums"], _checksum(image).tobytes())
        except OSError as error:
            raise ValueError(
                f"cannot write decoded images to {self._folder} ({error.strerror}); make room, or set KSHOT_CACHE to a "
                "folder on another disk"
            ) from error
        self._verified[list(images)] = True

    def _open(self) -> None:
        """Map the files of the cache, creating them if they are missing or incomplete."""
        self._sizes = {"pixels": math.prod(self._shape), "checksums": _CHECKSUM.itemsize * len(self)}
        with locked(self._folder):
            files = next((files for _ in range(_TRIES) if (files := self._opened())), None)
            if files is None:
                raise ValueError(f"{self._folder} is deleted again and again while it is opened; let it be")
            self._close()
            self._files = files
            self._close = weakref.finalize(self, _close, list(files.values()))
        # Read through the maps, written through files: a full disk then raises an error instead of a bus error.
        self.pixels = np.memmap(self._files["pixels"], np.uint8, "r", shape=self._shape)
        self._checksums = np.memmap(self._files["checksums"], _CHECKSUM, "r", shape=self._shape[:1])
        self._verified = np.zeros(len(self.files), bool)

    def _opened(self) -> dict[str, FileIO] | None:
        """The files of the cache; None if they are deleted meanwhile, which takes no lock."""
        files: dict[str, FileIO] = {}
        try:
            if not self._is_complete():
                self._create()
            for name in self._sizes:
                files[name] = (self._folder / name).open("r+b", buffering=0)
        except FileNotFoundError:
            _close(list(files.values()))
            return None
        return files

    def _create(self) -> None:
        with scratch_folder(self._folder) as scratch:
            folder = scratch / "new"
            folder.mkdir()
            for name, size in self._sizes.items():
                with (folder / name).open("wb") as file:
                    file.truncate(size)  # sparse: takes no space
            (folder / "about.json").write_text(json.dumps(self._about))
            replace_folder(folder, self._folder, scratch)

    def _is_complete(self) -> bool:
        try:
            return all((self._folder / name).stat().st_size == size for name, size in self._sizes.items())
        except OSError:
            return False

    def _is_current(self) -> bool:
        """Whether the folder still has the files that are open."""
        try:
            return all(
                os.path.samestat((self._folder / name).stat(), os.fstat(file.fileno()))
                for name, file in self._files.items()
            )
        except OSError:
            return False


class DecodedImages(DecodedFiles):
    """Image files as `Dataset`: float32 (..., C, size, size) in 0 … 1, each decoded when it is first taken.

    The first tasks come at once, however many files there are: a run decodes only the images that it draws, and a
    second run decodes none.

    Args:
        files, root: as in `DecodedFiles`.
        size, colour, crop, resample: as in `decode`.

    Raises:
        ValueError: the cache cannot be written.
    """

    remedy = "replace it, or have such images left out by bad_images: drop"

    def __init__(
        self,
        files: Sequence[ImageFile],
        root: Path,
        *,
        size: int,
        colour: Colour,
        crop: float | None = 1.0,
        resample: Resample = "lanczos",
    ) -> None:
        self.size, self.colour = size, colour
        self._fit: dict[str, Any] = {"crop": crop, "resample": resample}
        fit = () if (crop, resample) == (1.0, "lanczos") else (crop, resample)
        shape, about = (CHANNELS[colour], size, size), {"size": size, "colour": colour}
        super().__init__("images", files, root, shape, (size, colour, *fit), about)

    @property
    def images(self) -> np.ndarray:
        """The images as uint8 (n, C, size, size), a memory map; rows not decoded yet are undefined."""
        return self.pixels

    def _decoded(self, row: int) -> np.ndarray:
        path, content = read_listed(self.files[row], self.root)
        return decode(content, path, size=self.size, colour=self.colour, **self._fit)

    def take(self, rows: np.ndarray) -> Tensor:
        """The images of rows, int64 (...), as float32 (..., C, size, size) in 0 … 1; errors of `complete`."""
        self.complete(rows)
        return ImageDataset(self.images).take(rows)


def _write_all(file: FileIO, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += file.write(content[written:])


def _close(files: Sequence[FileIO]) -> None:
    for file in files:
        file.close()


def read_listed(file: ImageFile, root: Path) -> tuple[str, bytes]:
    """The path of a listed file, for messages, and its content, or that of the image in a record.

    Raises:
        BadImage: a damaged record.
        ValueError: the file was modified or cannot be read.
    """
    path = os.path.join(root, file.name if file.record is None else file.record.file)
    try:
        with open_file(path) as opened:
            status = os.fstat(opened.fileno())
            is_same = (status.st_size, status.st_mtime_ns) == (file.bytes, file.mtime)
            if file.record is None:
                content = opened.read()
            elif is_same:
                content, path = image_of(opened, file.record, path), os.path.join(root, file.name)
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror}") from error
    if not is_same:
        raise ValueError(f"{shown(path)} was modified after it was listed; open the source again")
    return shown(path), content


def listing_key(files: Sequence[ImageFile], root: Path, *options: object) -> str:
    """A hash of the files, of options of decoding and of its version: everything that the pixels depend on."""
    from PIL import __version__

    key = hashlib.sha256(repr((VERSION, __version__, str(root), *options)).encode())
    for file in files:
        key.update(os.fsencode(file.name) + f"\0{file.bytes} {file.mtime}\0".encode())
    return key.hexdigest()[:24]


def _checksum(image: np.ndarray) -> np.uint32:
    """CRC-32, but never 0, which marks images that were not written."""
    return _CHECKSUM.type(zlib.crc32(image.tobytes()) or 1)
