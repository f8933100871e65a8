"""A user's own examples: folders of images, and CSV tables."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kshot.data.images.decode import SUFFIXES, decode
from kshot.types import check_finite

if TYPE_CHECKING:
    import polars


def support_images(path: Path, shape: list[int], *, resize: bool, invert: bool) -> tuple[Tensor, list[str]]:
    """Images and labels from a folder with one folder of images a class, or a CSV with the columns path,label.

    Returns:
        Images float32 (n, C, H, W) in 0 … 1, and n labels.
    """
    if path.is_dir():
        files = [
            (file, folder.name) for folder in sorted(path.iterdir()) if folder.is_dir() for file in _images(folder)
        ]
        if not files:
            raise ValueError(f"{path} holds no images in folders; it needs one folder a class: {path}/CLASS/image.png")
    elif path.is_file():
        table = _csv(path)
        if not {"path", "label"} <= set(table.columns):
            raise ValueError(f"{path} needs the columns path and label, it has {', '.join(table.columns)}")
        files = [(path.parent / str(row["path"]), str(row["label"])) for row in table.iter_rows(named=True)]
        if not files:
            raise ValueError(f"{path} holds no rows")
    else:
        raise ValueError(f"there is no {path}; --support takes a folder or a CSV")
    images = torch.stack([_image(file, shape, resize=resize, invert=invert) for file, _ in files])
    return images, [label for _, label in files]


def read_images(paths: list[Path], shape: list[int], *, resize: bool, invert: bool) -> tuple[list[str], Tensor]:
    """Images to predict for, from files, folders, or CSVs with a column path: their names, and (n, C, H, W)."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.suffix.lower() == ".csv":
            table = _csv(path)
            if "path" not in table.columns:
                raise ValueError(f"{path} needs a column path, it has {', '.join(table.columns)}")
            files += [path.parent / str(name) for name in table["path"]]
        else:
            files.append(path)
    if not files:
        raise ValueError(f"no images in {', '.join(map(str, paths))}; known are {', '.join(SUFFIXES)}")
    return [str(file) for file in files], torch.stack([_image(f, shape, resize=resize, invert=invert) for f in files])


def support_table(path: Path, inputs: list[int], targets: list[int]) -> tuple[Tensor, Tensor]:
    """Inputs (n, inputs) and targets (n, targets) from a CSV of numbers, the targets in its last columns."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; this run takes a CSV of numbers")
    width, own = inputs[-1], targets[-1]
    values = _numbers(path)
    if values.shape[1] != width + own:
        raise ValueError(
            f"{path} has {values.shape[1]} columns; this run takes {width} of inputs and then {own} of targets"
        )
    return values[:, :width], values[:, width:]


def read_table(path: Path, width: int) -> Tensor:
    """Inputs (n, width) from a CSV of numbers; columns after the first `width` are left aside."""
    values = _numbers(path)
    if values.shape[1] < width:
        raise ValueError(f"{path} has {values.shape[1]} columns; this run takes {width} of inputs")
    return values[:, :width]


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _image(path: Path, shape: list[int], *, resize: bool, invert: bool) -> Tensor:
    """An image as float32 (C, H, W) in 0 … 1, read as the images of training tasks are."""
    from PIL import Image

    channels, height, width = shape
    try:
        content = path.read_bytes()
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


def _csv(path: Path) -> polars.DataFrame:
    import polars

    try:
        return polars.read_csv(path)
    except (polars.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} is no CSV that can be read: {str(error).splitlines()[0]}") from None


def _numbers(path: Path) -> Tensor:
    table = _csv(path)
    text = [name for name, kind in table.schema.items() if not kind.is_numeric()]
    if text:
        raise ValueError(f"{path}: column {text[0]!r} does not hold numbers only")
    values = torch.from_numpy(table.to_numpy().astype(np.float32))  # empty cells become NaN
    check_finite(values, str(path))
    return values
