"""Images with a mask of classes each: their files, and the masks as arrays.

Shape legend: n images, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kshot.data.cache import cached
from kshot.data.images.cache import CHUNK, DecodedFiles, read_listed
from kshot.data.images.decode import SUFFIXES, BadImage, fitted_nearest, open_image
from kshot.data.images.index import ImageFile, shown

IGNORED = 255
"""The value of pixels that are not scored."""
IMAGES, MASKS = "images", "masks"
"""Names of the two folders."""


class MaskListing(NamedTuple):
    """The images and masks of a folder.

    Attributes:
        root: folder to which the paths of the files are relative.
        images, masks: row i is image i and its mask.
        folders: the class of each row where every class has a folder of its own, else empty.
    """

    root: Path
    images: list[ImageFile]
    masks: list[ImageFile]
    folders: list[str]


def list_masks(root: Path) -> MaskListing:
    """List the images of a folder with their masks, which have the same name before the suffix.

    Either the folder holds `images/1.jpg` and `masks/1.png`, the value of a mask's pixel being its class, 0 for the
    background, 255 for a pixel that is not scored; or a folder for each class holds both, `CLASS/1.jpg` and
    `CLASS/1.png`, and what is not 0 in a mask, nor 255 beside other values, is the class.

    Raises:
        ValueError: no such folder, neither layout, or an image without a mask, or with two.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    if (root / IMAGES).is_dir() and (root / MASKS).is_dir():
        pairs = [(image, mask, "") for image, mask in _paired(root, Path(IMAGES), Path(MASKS))]
    else:
        folders = sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
        pairs = [(*pair, name) for name in folders for pair in _paired(root, Path(name), Path(name))]
    if not pairs:
        raise ValueError(
            f"{root} holds no images with masks; it needs the folders {IMAGES} and {MASKS}, as in {IMAGES}/1.jpg and "
            f"{MASKS}/1.png, or a folder for each class with both, CLASS/1.jpg and CLASS/1.png"
        )
    images, masks, names = (list(column) for column in zip(*pairs))
    return MaskListing(root, images, masks, names if any(names) else [])


def _paired(root: Path, images: Path, masks: Path) -> list[tuple[ImageFile, ImageFile]]:
    """Each image of a folder and its mask in another; in one folder a mask is the PNG beside another format."""
    found = {folder: _by_stem(root, folder) for folder in {images, masks}}
    pairs = []
    for stem, files in found[images].items():
        of_mask = [each for each in found[masks].get(stem, ()) if each.suffix.lower() == ".png"]
        of_image = [each for each in files if images != masks or each not in of_mask]
        if len(of_image) != 1 or len(of_mask) != 1:
            raise ValueError(
                f"{shown(str(root / images / stem))} has {len(of_image)} images and {len(of_mask)} masks, "
                f"{masks}/{stem}.png; each image needs one mask of its name"
            )
        pairs.append((_file(root, of_image[0]), _file(root, of_mask[0])))
    return pairs


def _by_stem(root: Path, folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted((root / folder).iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            files.setdefault(path.stem, []).append(folder / path.name)
    return files


def _file(root: Path, name: Path) -> ImageFile:
    status = (root / name).stat()
    return ImageFile(str(name), status.st_size, status.st_mtime_ns)


def decode_mask(content: bytes, name: str, *, size: int, crop: float | None = 1.0) -> np.ndarray:
    """A mask file as uint8 (size, size): grey values, or numbers of colours; scaled to the nearest pixel.

    Args:
        content, name: of the file; the name is for errors.
        size, crop: as in `decode`, so that the mask lies on its image.

    Raises:
        BadImage: a file that cannot be read, or a mask of colours without a palette.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 2], [255, 1]], np.uint8)).save(file, "PNG")
        >>> decode_mask(file.getvalue(), "1.png", size=2).tolist()
        [[0, 2], [255, 1]]
    """
    with open_image(content, name) as image:
        if image.mode not in ("L", "P", "1"):
            raise BadImage(
                f"{name} is a mask of mode {image.mode}; a mask is grey or has a palette, and its values are numbers "
                "of classes, 0 for the background"
            )
        try:
            array = np.asarray(fitted_nearest(image.convert("L") if image.mode == "1" else image, size, crop))
        except Exception as error:  # Pillow raises many types of error on damaged files
            raise BadImage(f"{name} is damaged ({error})") from error
    return array.astype(np.uint8)


class DecodedMasks(DecodedFiles):
    """The masks of a listing: an array uint8 (n, S, S) that is read by row; with folders of classes it has 0, 1, 255.

    A mask is compared with the shape of its image, and decoded, when it is first read.

    Args:
        listing: of `list_masks`.
        size, crop: as in `decode_mask`.

    Raises:
        ValueError: the cache cannot be written.
    """

    def __init__(self, listing: MaskListing, *, size: int, crop: float | None) -> None:
        self._listing = listing
        self._fit: dict[str, Any] = {"size": size, "crop": crop}
        super().__init__("masks", listing.masks, listing.root, (size, size), (size, crop), self._fit)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, S, S)."""
        return self._shape

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The masks of rows, int64 (...), as uint8 (..., S, S); errors of `complete`."""
        self.complete(rows)
        masks: np.ndarray = self.pixels[rows]
        if self._listing.folders:
            return np.stack([of_one_class(mask) for mask in masks.reshape(-1, *self.shape[1:])]).reshape(masks.shape)
        return masks

    def shows(self, least: float) -> np.ndarray:
        """Which of the values 0 … 255 at least a share of the pixels of each mask has, bool (n, 256)."""

        def counted() -> dict[str, np.ndarray]:
            rows, parts = np.arange(len(self)), range(0, len(self), CHUNK)
            shows = [values_in(self[rows[start : start + CHUNK]], least) for start in parts]
            return {"shows": np.packbits(np.concatenate(shows), axis=1)}

        return np.unpackbits(cached(f"{self.name}-values-{least}", counted)["shows"], axis=1).astype(bool)

    def _decoded(self, row: int) -> np.ndarray:
        sides = []
        for file in (self._listing.images[row], self._listing.masks[row]):
            path, content = read_listed(file, self.root)
            with open_image(content, path) as opened:
                sides.append(sorted(opened.size))
        (short, long), (of_mask, other) = sides
        if abs(short * other - long * of_mask) > max(long, other):  # apart from rounding
            raise BadImage(f"{path} is a mask of {of_mask}×{other} pixels, and its image has {short}×{long}")
        return decode_mask(content, path, **self._fit)


def of_one_class(mask: np.ndarray) -> np.ndarray:
    """A mask of one class as 0, 1 and 255: a mask of 0 and 255 is black and white, else 255 is not scored."""
    if not ((mask != 0) & (mask != IGNORED)).any():
        return (mask != 0).astype(np.uint8)
    return np.where(mask == IGNORED, IGNORED, mask != 0).astype(np.uint8)


def to_original(mask: np.ndarray, width: int, height: int, crop: float | None) -> np.ndarray:
    """A predicted mask (S, S) on an image of a size, (height, width); 255 where the image was cut off.

    Example:
        >>> to_original(np.array([[1, 0], [0, 2]], np.uint8), 4, 2, 1.0).tolist()
        [[255, 1, 0, 255], [255, 0, 2, 255]]
    """
    if crop is None:
        top, left, down, across = 0, 0, height, width
    else:
        scaled = len(mask) if crop == 1 else int(len(mask) / crop + 1e-6)  # the shorter side, as `decode` scales it
        down = across = max(1, round(min(width, height) * len(mask) / scaled))
        top, left = (height - down) // 2, (width - across) // 2
    found = np.full((height, width), IGNORED, np.uint8)
    rows, columns = (np.arange(count) * len(mask) // count for count in (down, across))
    found[top : top + down, left : left + across] = mask[np.ix_(rows, columns)]
    return found


def values_in(masks: np.ndarray, least: float) -> np.ndarray:
    """Which of the values 0 … 255 at least a share of the pixels of each mask has, bool (n, 256)."""
    counts = np.stack([np.bincount(mask.ravel(), minlength=256) for mask in masks])
    return counts >= np.maximum(least * masks[0].size, 1)


def class_names(root: Path, values: Sequence[int]) -> dict[int, str]:
    """The names of the classes of masks: line v of `classes.txt` in the folder names class v, from 1."""
    from kshot.data.text_files import read_text

    path = root / "classes.txt"
    lines = [line.strip() for line in read_text(path).splitlines()] if path.is_file() else []
    return {value: lines[value - 1] if 0 < value <= len(lines) else f"class {value}" for value in values}
