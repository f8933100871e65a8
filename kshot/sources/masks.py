"""Few-shot segmentation of your own images: a mask for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import FractionBelowOne, PathText, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.dataset import Dataset
from kshot.data.images.decode import Colour, upright_size
from kshot.data.images.encoder import ImageEncoder
from kshot.data.images.in_memory import ImageData, kept_masks
from kshot.data.images.index import shown
from kshot.data.images.masks import (
    IGNORED,
    DecodedMasks,
    MaskListing,
    class_names,
    list_masks,
    to_original,
)
from kshot.data.tables.frames import TableLike
from kshot.objectives.segmentation import upsampled
from kshot.sources.image_files import SIZE, Features, ImagePreprocessor, encoder_of, kept_of, open_images
from kshot.tasks.mask_tasks import MaskClass, MaskOptions, MaskTasks, one_hot_masks
from kshot.tasks.preprocessor import Support
from kshot.tasks.splitting import DEFAULT_SPLIT, cut


@check_arguments
def masks(
    path: Path | PathText | ImageData,
    *,
    size: PositiveInt | None = None,
    colour: Colour | None = None,
    features: Features | ImageEncoder = "pixels",
    encoder: str | None = None,
    stride: PositiveInt = 16,
    least: FractionBelowOne = 0.005,
    split: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: MaskOptions,
) -> ImageMasks:
    """Segment your own images: which pixels belong to a class, from a few images with their masks.

    Images and masks lie in two folders, `images/1.jpg` and `masks/1.png`, where a mask is a grey or a palette PNG whose
    values are classes, 0 for the background and 255 for pixels that are not scored, and `classes.txt` may name the
    classes, class 1 in the first line; or in a folder for each class, `CLASS/1.jpg` and `CLASS/1.png`, as in FSS-1000.
    Classes are split, never images of one class; see `MaskTasks`.

    Args:
        path: the folder; or a Dataset of PyTorch or of Hugging Face in memory, see `kept_masks`, whose images and masks
            are written into the cache.
        size: side of images and masks in pixels: the central square, resized; by default 84, or that of the encoder.
        colour: as in `images`.
        features: inputs of the model: "pixels", or "encoder", the feature maps of a pretrained frozen encoder, computed
            once and cached by the content of each file; or an `ImageEncoder` with a stride.
        encoder: a pretrained encoder, see `ImageEncoder`.
        stride: pixels of an image for one of the encoder's feature map; 8, 16 and 32 are there in most networks.
        least: share of the pixels that a class needs in an image to count as shown.
        split: of the classes, see `kshot.tasks.splitting`; by default by ratio 0.7, 0.15, 0.15.
        progress: as in `images`.
        options: arguments of `MaskTasks`.

    Raises:
        ValueError: errors of `list_masks`, `cut` and `MaskTasks`, a mask that cannot be read or has another shape than
            its image, or an encoder without feature maps of the stride.

    Example:
        >>> source = masks("cells", shots=1, queries=5, size=128)  # doctest: +SKIP
        >>> source.task("test", 0).support.targets.shape  # doctest: +SKIP
        torch.Size([1, 2, 128, 128])
    """
    path = Path(path) if isinstance(path, str | Path) else kept_masks(path)
    if isinstance(features, ImageEncoder) and features.stride is None:
        raise ValueError("segmentation needs feature maps: give the ImageEncoder a stride, such as 16")
    if features == "pixels" and encoder is not None:
        raise ValueError("an encoder gives feature maps here: add features: encoder, or leave encoder out")
    preparing = encoder_of(features, encoder, size, colour, stride=stride if features == "encoder" else None)
    side, crop = (preparing.preparation[:2]) if preparing else (size or SIZE, 1.0)
    listing = list_masks(path)
    found = DecodedMasks(listing, size=side, crop=crop)
    examples = open_images(
        listing.images, listing.root, preparing, features=features, size=side, colour=colour, bad_images="error",
        progress=progress,
    )  # fmt: skip
    maps, classes = _classes(listing, found, least)
    parts = cut(classes, split or DEFAULT_SPLIT)
    kept = kept_of(features, preparing, size, colour)
    stride_of = preparing.stride if preparing else None
    preprocessor = None if kept is None else MaskPreprocessor(**kept, stride=stride_of, least=least)
    name = f"masks of {shown(path.name)}"
    of_parts = {part: {name: classes[name] for name in names} for part, names in parts.items()}
    return ImageMasks(examples, maps, of_parts, **options, name=name, preprocessor=preprocessor, listing=listing)


class ImageMasks(MaskTasks):
    """Tasks of `masks`."""

    def __init__(self, examples: Dataset, *args: Any, listing: MaskListing, **options: Any) -> None:
        super().__init__(examples, *args, **options)
        self._listing = listing

    @cached_property
    def pictures(self) -> Dataset:
        """The images as pixels (..., C, S, S), also where inputs are feature maps."""
        if not isinstance(self.preprocessor, MaskPreprocessor) or self.preprocessor.features == "pixels":
            return self.examples
        options: dict[str, Any] = {"size": self.preprocessor.size, "colour": "rgb", "bad_images": "error"}
        encoder = self.preprocessor.opened
        return open_images(
            self._listing.images, self._listing.root, encoder, features="pixels", progress=None, **options
        )


class ClassMasks:
    """Masks as an array int16 (n, S, S) that is read by row: a value for each class, -1 where nothing is scored.

    Args:
        masks: values of classes, or, with folders of classes, 0, 1 and 255.
        values: with folders of classes, that of each row; else empty.
    """

    def __init__(self, masks: DecodedMasks, values: np.ndarray) -> None:
        self._masks, self._values = masks, values
        self.shape, self.dtype = masks.shape, np.dtype(np.int16)

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = self._masks[rows]
        maps = found.astype(np.int16)
        maps[found == IGNORED] = -1
        if not len(self._values):
            return maps
        return np.where(maps == 1, self._values[rows][..., None, None], maps)


def _classes(listing: MaskListing, masks: DecodedMasks, least: float) -> tuple[ClassMasks, dict[str, MaskClass]]:
    """The masks with a value for each class, and the classes."""
    shows = masks.shows(least)
    if not listing.folders:
        values = [value for value in np.flatnonzero(shows.any(0)).tolist() if 0 < value < IGNORED]
        names = class_names(listing.root, values)
        classes = {names[value]: MaskClass(value, np.flatnonzero(shows[:, value])) for value in values}
        return ClassMasks(masks, np.empty(0, np.int16)), classes
    value_of = {name: value for value, name in enumerate(dict.fromkeys(listing.folders), 1)}
    of_rows = np.array([value_of[name] for name in listing.folders], np.int16)
    classes = {
        name: MaskClass(value, np.flatnonzero((of_rows == value) & shows[:, 1])) for name, value in value_of.items()
    }
    return ClassMasks(masks, of_rows), classes


@dataclass(frozen=True)
class MaskPreprocessor(ImagePreprocessor):
    """Converts image files into inputs, and predictions into masks.

    Attributes:
        stride: of the feature maps, None for pixels.
        least: as in `masks`.
    """

    stride: int | None = None
    least: float = 0.005

    @property
    def crop(self) -> float | None:
        """The part of an image that is seen, as in `decode`."""
        return self.opened.preparation.crop if self.encoder else 1.0

    def kept_support(self, data: ImageData) -> Path:
        return kept_masks(data)

    def support(self, path: Path | TableLike) -> Support:
        """The images of a folder with their masks, all of whose classes are those of the task."""
        assert isinstance(path, Path)
        listing = list_masks(path)
        maps, classes = _classes(listing, DecodedMasks(listing, size=self.size, crop=self.crop), self.least)
        if not classes:
            raise ValueError(f"the masks of {path} show no class: all their values are 0 or 255")
        values = [each.value for each in classes.values()]
        if max(values) >= IGNORED:
            raise ValueError(
                f"{path} has {len(classes)} classes, and a mask holds at most {IGNORED - 1}; adapt to fewer"
            )
        targets = one_hot_masks(maps[np.arange(len(maps))], values)
        images = torch.stack([self.image(listing.root / file.name) for file in listing.images])
        return Support(self.encoded(images), targets, {"classes": [*classes], "values": values})

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """The share of each image that belongs to each class."""
        chosen = upsampled(prediction, (self.size, self.size)).argmax(1).flatten(1)
        names = ["background", *kept["classes"]]
        return {f"share({name})": (chosen == k).double().mean(1).tolist() for k, name in enumerate(names)}

    def mask_of(self, prediction: Tensor, content: bytes, name: str, kept: dict[str, Any]) -> np.ndarray:
        """The predicted mask of an image file, at its size: values of the support's masks, 255 where it was cut off.

        Args:
            prediction: logits (K, h, w) of the image.
            content, name: of the file.
            kept: of the support set.
        """
        chosen = upsampled(prediction[None], (self.size, self.size)).argmax(1)[0].numpy()
        width, height = upright_size(content, name)
        mask = np.array([0, *kept["values"]], np.uint8)[chosen]
        return to_original(mask, width, height, self.crop)

    @cached_property
    def opened(self) -> ImageEncoder:
        """The encoder; raises ValueError if its files have changed."""
        return self._same(ImageEncoder(self.encoder, size=self.size, stride=self.stride))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "masks", **asdict(self)}
