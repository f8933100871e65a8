"""Images of data sets in memory, of PyTorch and of Hugging Face, as files in the cache; neither is imported.

A run file is text, and an image is decoded when it is drawn. The images are therefore written once into a folder that
is named by their content, with a table of their paths and labels, which is opened like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from kshot.bounded import read_bytes
from kshot.data.cache import cache_folder, cached_folder, scratch_folder

CLASSES = "classes.txt"
"""Name of the file that names the classes of masks."""

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
    label: str = ""
    mask: bytes | None = None


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
    name = _checked(data)
    examples = _of_hugging_face(data) if _is_of_hugging_face(data) else _of_items(data, name)
    return _kept(examples, name, f"{name}.parquet", partial(_write_table, column="label", table=f"{name}.parquet"))


def kept_labelled_images(data: ImageData, separator: str = ";", column: str = "labels") -> Path:
    """As `kept_images`, of a data set whose images have several labels: the table has the columns path and `column`.

    Items are (image, labels), or a row has one column of images, and a column labels or one of lists: a list of numbers
    or words, or a tensor or array of 0 and 1, one for each class.

    Args:
        data: the data set.
        separator: between the labels of an image in the table, which none of them may contain.
        column: of the labels in the table.

    Raises:
        ValueError: as `kept_images`, and a label that contains the separator.

    Example:
        >>> data = [(torch.zeros(3, 8, 8), ["dark", "blue"]), (torch.ones(3, 8, 8), [])]
        >>> kept_labelled_images(data).suffix
        '.parquet'
    """
    name, names = _checked(data), _names_of(data)
    hugging: Any = data

    def joined(labels: Any, names: Any, where: str) -> str:
        words = [_label(each, names, where) for each in _listed(labels, where)]
        if bad := [word for word in words if separator in word]:
            raise ValueError(f"{where}: the label {bad[0]!r} contains the separator {separator!r}; choose another one")
        return separator.join(words)

    if _is_of_hugging_face(data):
        image, labels = _columns(
            data, "labels", lambda feature: isinstance(feature, list) or hasattr(feature, "feature")
        )
        feature = hugging.features[labels]
        names = getattr(feature[0] if isinstance(feature, list) else feature.feature, "names", None)
        rows = _rows(data, image, labels)
        examples = (
            _Example(content, suffix, joined(row[labels], names, where)) for content, suffix, row, where in rows
        )
    else:
        examples = (
            _Example(_png(item[0], where), ".png", joined(item[1], names, where))
            for item, where in _pairs(data, name, "(image, labels)")
        )
    return _kept(
        examples,
        f"{name} {separator} {column}",
        f"{name}.parquet",
        partial(_write_table, column=column, table=f"{name}.parquet"),
    )


def kept_masks(data: ImageData) -> Path:
    """As `kept_images`, of a data set whose items are (image, mask): the folder that `masks` takes.

    A mask is an image of Pillow, grey or with a palette, or a tensor or array (H, W) of whole numbers: classes, 0 for
    the background and 255 for pixels that are not scored. The attribute `classes`, if there is one, names them from 0
    on. A Dataset of Hugging Face has two columns of images, of which one is called image.

    Raises:
        ValueError: as `kept_images`, and a mask of other values.

    Example:
        >>> kept_masks([(torch.zeros(3, 8, 8), torch.ones(8, 8, dtype=torch.int64))]).is_dir()
        True
    """
    name = _checked(data)
    hugging: Any = data
    if _is_of_hugging_face(data):
        found = [column for column, feature in hugging.features.items() if type(feature).__name__ == "Image"]
        if len(found) != 2 or "image" not in found:
            raise ValueError(
                f"the Hugging Face Dataset must have two columns of images, image and that of masks; it has "
                f"{', '.join(found) or 'none'}: name them by rename_column, and leave others out by remove_columns"
            )
        (mask,) = {*found} - {"image"}
        named = hugging.select_columns(["image", mask]).with_format(None)
        pairs = ((row["image"], row[mask], f"row {number} of the Dataset") for number, row in enumerate(named))
    else:
        pairs = ((item[0], item[1], where) for item, where in _pairs(data, name, "(image, mask)"))
    examples = (_Example(_png(image, where), ".png", mask=_mask_png(mask, where)) for image, mask, where in pairs)
    classes = [str(each) for each in list(_names_of(data) or [])[1:]]

    def write_names(folder: Path, rows: list[tuple[str, str]]) -> None:
        (folder / CLASSES).write_text("".join(f"{each}\n" for each in classes), encoding="utf-8")

    return _kept(examples, f"{name} {classes}", CLASSES, write_names).parent


def kept_pictures(images: Iterable[Any]) -> list[Path]:
    """Write images without labels into the cache, and return the path of each.

    Args:
        images: of Pillow, or tensors (C, H, W) or (H, W) of uint8 or of floats in 0 … 1.

    Raises:
        ValueError: no images, or something else among them.

    Example:
        >>> len(kept_pictures([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]))
        2
    """
    examples = (_Example(_png(image, f"image {number}"), ".png") for number, image in enumerate(images))

    def write_names(folder: Path, rows: list[tuple[str, str]]) -> None:
        (folder / "images.txt").write_text("".join(f"{path}\n" for path, _ in rows), encoding="utf-8")

    listed = _kept(examples, "list of images", "images.txt", write_names)
    return [listed.parent / line for line in listed.read_text(encoding="utf-8").splitlines()]


def _checked(data: Any) -> str:
    """The name of the type of a data set; ValueError if it is none."""
    if isinstance(data, str) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise ValueError(
            "images are a folder, a table, or a Dataset of PyTorch or Hugging Face with a length and numbered items; "
            f"got {type(data).__module__}.{type(data).__name__}"
        )
    return type(data).__name__


def _is_of_hugging_face(data: Any) -> bool:
    return hasattr(data, "features") and hasattr(data, "cast_column")


def _kept(
    examples: Iterable[_Example], key: str, table: str, write: Callable[[Path, list[tuple[str, str]]], None]
) -> Path:
    """Write examples into a folder of the cache, and return the path of its table, which `write` makes of the rows."""
    digest, rows = hashlib.sha256(key.encode()), []
    with scratch_folder(cache_folder() / "image-data") as scratch:
        (scratch / "images").mkdir()
        for number, example in enumerate(examples):
            rows.append((f"images/{number:07}{example.suffix}", example.label))
            (scratch / rows[-1][0]).write_bytes(example.content)
            digest.update(repr((example.label, hashlib.sha256(example.content).digest())).encode())
            if example.mask is not None:
                (scratch / "masks").mkdir(exist_ok=True)
                (scratch / "masks" / f"{number:07}.png").write_bytes(example.mask)
                digest.update(hashlib.sha256(example.mask).digest())
        if not rows:
            raise ValueError(f"the {key.split()[0]} is empty")
        write(scratch, rows)

        def fill(folder: Path) -> None:
            for each in list(scratch.iterdir()):
                each.rename(folder / each.name)

        return cached_folder(f"image-data-{digest.hexdigest()[:24]}", fill, table) / table


def _write_table(folder: Path, rows: list[tuple[str, str]], *, column: str, table: str) -> None:
    import polars as pl

    pl.DataFrame(rows, schema=["path", column], orient="row").write_parquet(folder / table)


def _pairs(data: Any, name: str, form: str) -> Iterator[tuple[Any, str]]:
    """The items of a data set, each a pair, and what messages call it."""
    if hasattr(data, "values") and hasattr(data, "keys"):
        raise ValueError(f"a {name} of several data sets ({', '.join(map(str, data))}): give one of them")
    for number in range(len(data)):
        item, where = data[number], f"item {number} of the {name}"
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"{where} must be {form}, got {_shown(item)}")
        yield item, where


def _names_of(data: Any) -> Any:
    """The names of the classes of a data set, or None; a Subset has those of what it is a part of."""
    names, within = getattr(data, "classes", None), data
    while names is None and hasattr(within, "dataset"):
        within = within.dataset
        names = getattr(within, "classes", None)
    return names


def _listed(labels: Any, where: str) -> list[Any]:
    """The labels of an image: a list, or the places of the ones in a tensor or array."""
    if isinstance(labels, list | tuple | set | frozenset):
        return list(labels)
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if values.ndim != 1 or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"{where}: the labels must be a list of numbers or words, or a tensor of 0 and 1 for each class, got "
            f"{_shown(labels)}"
        )
    return [int(place) for place in np.flatnonzero(values)]


def _mask_png(mask: Any, where: str) -> bytes:
    """A mask as a PNG file of one channel."""
    from PIL import Image

    if not isinstance(mask, Image.Image):
        values = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
        if values.ndim != 2 or values.dtype.kind not in "biu" or values.min() < 0 or values.max() > 255:
            raise ValueError(
                f"{where}: the mask must be an image of Pillow, or a tensor (H, W) of whole numbers from 0 to 255, got "
                f"{_shown(mask)}"
            )
        mask = Image.fromarray(values.astype(np.uint8))
    if mask.mode not in ("L", "P", "1"):
        raise ValueError(f"{where}: the mask is an image of mode {mask.mode}; it must be grey or have a palette")
    if mask.mode == "P":  # the numbers without their colours: Pillow would leave out those that the palette has not
        mask = Image.fromarray(np.asarray(mask))
    file = BytesIO()
    mask.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _of_items(data: Any, name: str) -> Iterator[_Example]:
    """The examples of a data set whose items are (image, label)."""
    names = _names_of(data)
    for item, where in _pairs(data, name, "(image, label)"):
        yield _Example(_png(item[0], where), ".png", _label(item[1], names, where))


def _of_hugging_face(data: Any) -> Iterator[_Example]:
    """The examples of a Dataset of Hugging Face; images that are encoded stay so."""
    image, label = _columns(data, "label", lambda feature: hasattr(feature, "int2str"))
    names = getattr(data.features[label], "names", None)
    for content, suffix, row, where in _rows(data, image, label):
        yield _Example(content, suffix, _label(row[label], names, where))


def _columns(data: Any, label: str, is_label: Callable[[Any], bool]) -> tuple[str, str]:
    """The column of images and that of labels of a Dataset of Hugging Face."""
    features = dict(data.features or {})
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [label] if label in features else [name for name, each in features.items() if is_label(each)]
    if len(images) != 1 or len(labels) != 1:
        of = "class labels" if label == "label" else "lists"
        raise ValueError(
            f"the Hugging Face Dataset must have one column of images and a column {label}, or one of {of}; it has "
            f"{', '.join(features)}: leave the right ones by select_columns, and name them by rename_column"
        )
    return images[0], labels[0]


def _rows(data: Any, image: str, label: str) -> Iterator[tuple[bytes, str, Any, str]]:
    """The encoded image of each row of a Dataset of Hugging Face, its suffix, the row, and what messages call it."""
    encoded = data.select_columns([image, label]).with_format(None)
    encoded = encoded.cast_column(image, type(data.features[image])(decode=False))
    for number, row in enumerate(encoded):
        where, stored = f"row {number} of the Hugging Face Dataset", row[image] or {}
        content, path = stored.get("bytes"), stored.get("path")
        if content is None and not path:
            raise ValueError(f"{where} has no image")
        try:
            content = read_bytes(str(path)) if content is None else content
        except OSError as error:
            raise ValueError(f"{where}: {path} cannot be read: {error.strerror}") from error
        yield content, PurePath(path or "").suffix or ".png", row, where


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
