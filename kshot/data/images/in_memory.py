"""Images of data sets in memory, of PyTorch and of Hugging Face, as files in the cache; neither is imported.

A run file is text, and an image is decoded when it is drawn. The images are therefore written once into a folder that
is named by their content, with a table of their paths and labels, which is opened like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from kshot.bounded import read_bytes
from kshot.data.cache import cache_folder, cached_folder, scratch_folder

_AS_THEY_ARE = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes that PNG has


class ImageData(Protocol):
    """Images with their classes in memory.

    It is a Dataset of PyTorch with a length, whose items are (image, label): an image of Pillow, or a tensor (C, H, W)
    or (H, W) of uint8 or of floats in 0 … 1, and a number or a word; its attribute `classes`, if it has one, names the
    numbers. Or it is a Dataset of Hugging Face with a column of images, and a column label or one of class labels.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class _Example(NamedTuple):
    content: bytes
    suffix: str
    label: str


def kept_images(data: ImageData) -> Path:
    """Write the images of a data set into the cache, and return the path of their table; equal data have the same.

    Each item is read once: give a data set without random augmentation, which `augment` does in tasks.

    Raises:
        ValueError: another object, no items, or an item that is no image with a label.

    Example:
        >>> data = [(torch.zeros(3, 8, 8), "black"), (torch.ones(3, 8, 8), "white")]
        >>> kept_images(data) == kept_images(list(data))
        True
    """
    import polars as pl

    name = type(data).__name__
    if isinstance(data, str) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            "images are a folder, a table, or a Dataset of PyTorch or Hugging Face with a length and numbered items; "
            f"got {type(data).__module__}.{name}"
        )
    of_hugging_face = hasattr(data, "features") and hasattr(data, "cast_column")
    examples = _of_hugging_face(data) if of_hugging_face else _of_items(data, name)
    table, digest, rows = f"{name}.parquet", hashlib.sha256(name.encode()), []
    with scratch_folder(cache_folder() / "image-data") as scratch:
        (scratch / "images").mkdir()
        for number, example in enumerate(examples):
            rows.append((f"images/{number:07}{example.suffix}", example.label))
            (scratch / rows[-1][0]).write_bytes(example.content)
            digest.update(repr((example.label, hashlib.sha256(example.content).digest())).encode())
        if not rows:
            raise ValueError(f"the {name} is empty")
        pl.DataFrame(rows, schema=["path", "label"], orient="row").write_parquet(scratch / table)

        def fill(folder: Path) -> None:
            for each in list(scratch.iterdir()):
                each.rename(folder / each.name)

        return cached_folder(f"image-data-{digest.hexdigest()[:24]}", fill, table) / table


def _of_items(data: Any, name: str) -> Iterator[_Example]:
    """The examples of a data set whose items are (image, label)."""
    if hasattr(data, "values") and hasattr(data, "keys"):
        raise ValueError(f"a {name} of several data sets ({', '.join(map(str, data))}): give one of them")
    names, within = getattr(data, "classes", None), data
    while names is None and hasattr(within, "dataset"):  # a Subset has the classes of what it is a part of
        within = within.dataset
        names = getattr(within, "classes", None)
    for number in range(len(data)):
        item, where = data[number], f"item {number} of the {name}"
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"{where} must be (image, label), got {_shown(item)}")
        yield _Example(_png(item[0], where), ".png", _label(item[1], names, where))


def _of_hugging_face(data: Any) -> Iterator[_Example]:
    """The examples of a Dataset of Hugging Face; images that are encoded stay so."""
    features, what = dict(data.features or {}), "the Hugging Face Dataset"
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    labels = ["label"] if "label" in features else [name for name, each in features.items() if hasattr(each, "int2str")]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{what} must have one column of images and a column label, or one of class labels; it has "
            f"{', '.join(features)}: leave the right ones by select_columns, and name them by rename_column"
        )
    image, label = images[0], labels[0]
    names = getattr(features[label], "names", None)
    encoded = data.select_columns([image, label]).with_format(None)
    encoded = encoded.cast_column(image, type(features[image])(decode=False))
    for number, row in enumerate(encoded):
        where, stored = f"row {number} of {what}", row[image] or {}
        content, path = stored.get("bytes"), stored.get("path")
        if content is None and not path:
            raise ValueError(f"{where} has no image")
        try:
            content = read_bytes(str(path)) if content is None else content
        except OSError as error:
            raise ValueError(f"{where}: {path} cannot be read: {error.strerror}") from error
        yield _Example(content, PurePath(path or "").suffix or ".png", _label(row[label], names, where))


def _label(label: Any, names: Any, where: str) -> str:
    """The class of an example; numbers are named where there are names."""
    if hasattr(label, "item") and getattr(label, "ndim", 0) == 0:  # a number of NumPy or PyTorch
        label = label.item()
    if isinstance(label, str) and label.strip():
        return label
    if not isinstance(label, int) or isinstance(label, bool):
        raise ValueError(f"{where}: the label must be a whole number or a word, got {_shown(label)}")
    if names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise ValueError(f"{where} has the label {label}, and there are {len(names)} classes")
    return str(names[label])


def _png(image: Any, where: str) -> bytes:
    """An image of Pillow, or a tensor, as a PNG file."""
    from PIL import Image

    if isinstance(image, Tensor):
        image = Image.fromarray(_pixels(image, where))
    if not isinstance(image, Image.Image):
        raise ValueError(f"{where}: the image must be one of Pillow, or a tensor (C, H, W), got {_shown(image)}")
    if image.mode in ("I", "F"):
        raise ValueError(f"{where} holds 32-bit numbers, whose black and white are unknown; convert it to 8 or 16 bits")
    file = BytesIO()
    image = image if image.mode in _AS_THEY_ARE else image.convert("RGB")
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _pixels(image: Tensor, where: str) -> np.ndarray:
    """A tensor (C, H, W) or (H, W) as uint8 (H, W, C), or (H, W) if it is grey."""
    channels = image.shape[0] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.numel():
        raise ValueError(
            f"{where}: an image must be a tensor (C, H, W) with 1, 3 or 4 channels, or (H, W), got {tuple(image.shape)}"
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{where} has values from {low:.3g} to {high:.3g}: give pixels in 0 … 1, without Normalize, or uint8"
            )
        image = (image * 255).round()
    elif str(image.dtype) != "torch.uint8":
        raise ValueError(f"{where}: an image must be a tensor of uint8, or of floats in 0 … 1, got {image.dtype}")
    pixels: np.ndarray = image.numpy().astype(np.uint8)
    return pixels.transpose(1, 2, 0) if channels > 1 else pixels.reshape(pixels.shape[-2:])


def _shown(value: Any) -> str:
    """What a value is, for messages, without its content."""
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list | dict) else "")
