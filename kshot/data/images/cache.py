"""Images decoded once, by need, and kept in the cache as one memory-mapped array.

Shape legend: n images, C channels.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kshot.data.cache import cache_folder, scratch_folder
from kshot.data.dataset import ImageDataset
from kshot.data.images.decode import CHANNELS, VERSION, BadImage, Colour, decode
from kshot.data.images.index import ImageFile, shown

_TOGETHER = 512  # images decoded between two writes: bounds the memory they take
_SUM = np.dtype(np.uint32)


class DecodedImages:
    """Image files as `Dataset`: float32 (..., C, size, size) in 0 … 1, each decoded when it is first taken.

    What was decoded is kept in the cache: a file of all pixels (n, C, size, size) uint8, full of holes at first, and
    one checksum an image, written after its pixels. The folder's name is a hash of the names, sizes and times of the
    files and of how they are decoded; it is made beside and renamed. Several processes may fill it at once: they write
    the same bytes to the same places. A process trusts an image of the cache after it has found its checksum right, so
    what a crash left half-written is decoded again.

    By need, and not all at the beginning: the first tasks come at once, however many files there are, a run that draws
    a part of the images decodes that part, and a second run decodes nothing.

    Args:
        files: the images.
        root: the folder that the names of the files start in.
        size: pixels of a side.
        colour: "grey" or "rgb".

    Attributes:
        files: as given; row i is file i.
        images: uint8 (n, C, size, size), a memory map; rows that were not decoded yet are undefined.
        bad: the rows of images found to be bad so far, and what is wrong with them.

    Raises:
        ValueError: the cache can't be written.
    """

    def __init__(self, files: Sequence[ImageFile], root: Path, *, size: int, colour: Colour) -> None:
        self.files, self.root, self.size, self.colour = files, Path(os.path.realpath(root)), size, colour
        self.bad: dict[int, BadImage] = {}
        self._folder = cache_folder() / f"images-{_key(files, self.root, size, colour)}"
        self._open()

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: np.ndarray) -> Tensor:
        """The images of rows, int64 (...), as float32 (..., C, size, size) in 0 … 1.

        Raises:
            BadImage: a file is damaged or no image.
            ValueError: a file cannot be read or was changed since it was listed, or the disk is full.
        """
        while not self._trusted[rows].all():  # once, but where somebody empties the cache meanwhile
            self.decode(rows)
            for row in self.bad.keys() & set(rows.ravel().tolist()):
                raise BadImage(f"{self.bad[row]}; replace it, or have such images left out by bad_images: drop")
        return ImageDataset(self.images).take(rows)

    def decode(self, rows: np.ndarray, progress: Callable[[int, int], object] | None = None) -> None:
        """Decode the images of rows, int64 (...), as far as that was not done yet; bad ones go to `bad`.

        Args:
            rows: which.
            progress: is told how many of how many are done.

        Raises:
            ValueError: a file cannot be read or was changed since it was listed, or the disk is full.
        """
        wanted = np.unique(rows[~self._trusted[rows]])
        for start in range(0, len(wanted), _TOGETHER):
            part = wanted[start : start + _TOGETHER]
            self._trusted[part] = self._kept(part)
            made = self._decoded(part[~self._trusted[part]].tolist())
            self.bad |= {row: image for row, image in made.items() if isinstance(image, BadImage)}
            self._keep({row: image for row, image in made.items() if not isinstance(image, BadImage)})
            if progress:
                progress(start + len(part), len(wanted))

    def _kept(self, rows: np.ndarray) -> list[bool]:
        """Which of the rows the cache holds whole."""
        return [sum != 0 and sum == _checksum(self.images[row]) for row, sum in zip(rows, self._sums[rows])]

    def _decoded(self, rows: list[int]) -> dict[int, np.ndarray | BadImage]:
        """The image of each row, or what is wrong with it."""
        if not rows:
            return {}
        # Pillow warns of much that is odd: what can't be decoded is an error, and the rest is decoded.
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return dict(zip(rows, threads.map(self._read, rows)))

    def _read(self, row: int) -> np.ndarray | BadImage:
        file = self.files[row]
        path = os.path.join(self.root, file.name)
        try:
            with open(path, "rb") as opened:
                now = os.fstat(opened.fileno())
                content = opened.read()
        except OSError as error:
            raise ValueError(f"{shown(path)} cannot be read: {error.strerror}") from error
        if (now.st_size, now.st_mtime_ns) != (file.bytes, file.mtime):
            raise ValueError(f"{shown(path)} was changed after it was listed; open the source again")
        try:
            return decode(content, shown(path), size=self.size, colour=self.colour)
        except BadImage as bad:
            return bad

    def _keep(self, images: dict[int, np.ndarray]) -> None:
        if not images:
            return
        if not self._is_whole():  # somebody emptied the cache
            self._open()
        try:
            with (self._folder / "pixels").open("r+b") as pixels:
                for row, image in images.items():
                    pixels.seek(row * image.nbytes)
                    pixels.write(image.tobytes())
            with (self._folder / "checksums").open("r+b") as sums:  # they come after what they vouch for
                for row, image in images.items():
                    sums.seek(_SUM.itemsize * row)
                    sums.write(_checksum(image).tobytes())
        except OSError as error:
            raise ValueError(
                f"cannot write decoded images to {self._folder} ({error.strerror}); make room, or set KSHOT_CACHE to a "
                "folder on another disk"
            ) from error
        self._trusted[list(images)] = True

    def _open(self) -> None:
        """Map the files of the cache, after making them where they aren't there whole."""
        shape = (len(self.files), CHANNELS[self.colour], self.size, self.size)
        self._sizes = {"pixels": int(np.prod(shape)), "checksums": _SUM.itemsize * shape[0]}
        if not self._is_whole():
            self._make()
        # Read through the maps, written through the files: a full disk is then an error, and no bus error.
        self.images = np.memmap(self._folder / "pixels", np.uint8, "r", shape=shape)
        self._sums = np.memmap(self._folder / "checksums", _SUM, "r", shape=shape[:1])
        self._trusted = np.zeros(len(self.files), bool)

    def _make(self) -> None:
        with scratch_folder(self._folder) as scratch:
            made = scratch / "made"
            made.mkdir()
            for name, size in self._sizes.items():
                with (made / name).open("wb") as file:
                    file.truncate(size)  # a hole takes no room
            about = {"root": str(self.root), "images": len(self.files), "size": self.size, "colour": self.colour}
            (made / "about.json").write_text(json.dumps(about))  # for people who tidy up
            try:
                if self._folder.exists():
                    self._folder.rename(scratch / "damaged")
                made.rename(self._folder)
            except OSError as error:
                if not self._is_whole():  # or else another process was first
                    raise ValueError(f"cannot make {self._folder}: {error.strerror}") from error

    def _is_whole(self) -> bool:
        try:
            return all((self._folder / name).stat().st_size == size for name, size in self._sizes.items())
        except OSError:
            return False


def _key(files: Sequence[ImageFile], root: Path, size: int, colour: Colour) -> str:
    """All that the pixels depend on: the files, how they're decoded, and by what."""
    from PIL import __version__

    key = hashlib.sha256(repr((VERSION, __version__, str(root), size, colour)).encode())
    for file in files:
        key.update(os.fsencode(file.name) + f"\0{file.bytes} {file.mtime}\0".encode())
    return key.hexdigest()[:24]


def _checksum(image: np.ndarray) -> np.uint32:
    """Never 0, which says that nothing was written."""
    return _SUM.type(zlib.crc32(image.tobytes()) or 1)
