"""The user's own examples for a trained run: folders of images, and tables."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kshot.bounded import read_bytes
from kshot.data.images.decode import AVIF, HEIC, SUFFIXES, decode
from kshot.data.tables.open import open_table
from kshot.types import check_finite

log = logging.getLogger(__name__)


Read = Callable[[Path], Tensor]
"""Reads an image file as float32 (C, H, W) in 0 … 1."""


def support_images(path: Path, read: Read) -> tuple[Tensor, list[str]]:
    """Read labelled images from a folder with a folder for each class, or a table with the columns path and label.

    Returns:
        Images float32 (n, C, H, W) in 0 … 1, and n labels.
    """
    if path.is_dir():
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        files = [(file, folder.name) for folder in folders for file in sorted(folder.iterdir()) if _is_image(file)]
        _tell_other_files(folders)
        if not files:
            raise ValueError(f"{path} holds no images in folders; it needs one folder per class: {path}/CLASS/1.png")
    elif path.is_file():
        paths, labels = _columns(path, "path", "label")
        files = [(path.parent / name, label) for name, label in zip(paths, labels)]
    else:
        raise ValueError(f"there is no {path}; --support takes a folder or a table")
    images = torch.stack([read(file) for file, _ in files])
    return images, [label for _, label in files]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The image files among files, folders, and CSV files with a column path; ValueError if there are none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if _is_image(file))
        elif path.suffix.lower() == ".csv":
            files += [path.parent / name for name in _columns(path, "path")[0]]
        else:
            files.append(path)
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths))}; supported suffixes are {', '.join(SUFFIXES)}")
    return files


def read_images(files: Sequence[Path], read: Read) -> tuple[list[Tensor], list[str]]:
    """The images that can be read, and for each file the reason why it cannot, or an empty text."""
    images: list[Tensor] = []
    errors: list[str] = []
    for file in files:
        try:
            images.append(read(file))
            errors.append("")
        except (ValueError, OSError) as error:
            errors.append(str(error))
    return images, errors


def support_table(path: Path, inputs: list[int], targets: list[int]) -> tuple[Tensor, Tensor]:
    """Read inputs (n, inputs) and targets (n, targets) from a table of numbers, the targets in its last columns."""
    width, num_targets = inputs[-1], targets[-1]
    values = _numbers(path)
    if values.shape[1] != width + num_targets:
        raise ValueError(
            f"{path} has {values.shape[1]} columns; this run takes {width} of inputs and then {num_targets} of targets"
        )
    return values[:, :width], values[:, width:]


def read_table(path: Path, width: int) -> Tensor:
    """Read inputs (n, width) from the first columns of a table of numbers; further columns are ignored."""
    values = _numbers(path)
    if values.shape[1] < width:
        raise ValueError(f"{path} has {values.shape[1]} columns; this run takes {width} of inputs")
    return values[:, :width]


def _tell_other_files(folders: list[Path]) -> None:
    """Warn of folders without images, and of files that are no images, such as HEIC without its package."""
    empty = [folder.name for folder in folders if not any(map(_is_image, folder.iterdir()))]
    if empty:
        log.warning("%d folders hold no images, and are no classes: %s", len(empty), ", ".join(empty[:5]))
    others = [f.name for d in folders for f in d.iterdir() if not _is_image(f) and f.suffix.lower() in (*HEIC, *AVIF)]
    if others:
        log.warning(
            "%d files are not read, the first %s; convert them, or pip install 'kshot[files]' for HEIC",
            len(others), others[0],
        )  # fmt: skip


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path, shape: list[int], *, resize: bool, invert: bool) -> Tensor:
    """An image as float32 (C, H, W) in 0 … 1, decoded as the images of training tasks are.

    Args:
        path: of the file.
        shape: (C, H, W) of the images that the run takes.
        resize: whether images of another size or mode are converted.
        invert: whether black and white are exchanged.
    """
    from PIL import Image

    channels, height, width = shape
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}") from None
    pixels = decode(content, str(path), size=height, colour="grey" if channels == 1 else "rgb")
    with Image.open(io.BytesIO(content)) as image:
        mode = "L" if channels == 1 else "RGB"
        if not resize and (image.size != (width, height) or image.mode not in (mode, "1")):
            raise ValueError(
                f"{path} is {image.size[0]}×{image.size[1]} {image.mode}; this run takes {width}×{height} {mode}: "
                "pass --resize to convert"
            )
    return torch.from_numpy((255 - pixels if invert else pixels).astype(np.float32) / 255)


def _columns(path: Path, *names: str) -> list[list[str]]:
    """Columns of a table as words, exactly as written; none may have missing values."""
    import polars as pl

    table = open_table(path)
    table.need(*names)
    columns = [table.frame[name].cast(pl.String) for name in names]
    for name, column in zip(names, columns):
        table.missing(name, column.is_null().to_numpy(), f"each row needs a {name}")
    table.settle()
    return [column.to_list() for column in columns]


def _numbers(path: Path) -> Tensor:
    """A table of numbers as float32 (n, num_columns)."""
    table = open_table(path)
    columns = [table.numbers(name) for name in table.frame.columns]
    table.settle()
    values = torch.from_numpy(np.stack(columns, 1).astype(np.float32))  # NaN where a value is missing
    check_finite(values, str(path))
    return values
