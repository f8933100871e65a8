"""Few-shot tasks from your own images: a folder of folders, or a table of paths and labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kshot.annotations import PathText, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.dataset import Dataset
from kshot.data.images.augment import Augment, AugmentOptions, Turned
from kshot.data.images.decode import Colour
from kshot.data.images.encoder import ImageEncoder, NumViews
from kshot.data.images.in_memory import ImageData, kept_images
from kshot.data.images.index import Listing, list_folder, list_table, shown
from kshot.sources.image_files import BadImages, Features, ImagePreprocessor, encoder_of, kept_of, open_images
from kshot.tasks.class_tasks import ClassOptions, ClassTasks
from kshot.tasks.splitting import DEFAULT_SPLIT, cut_rows
from kshot.types import Split

log = logging.getLogger(__name__)


@check_arguments
def images(
    path: Path | PathText | ImageData,
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
    bad_images: BadImages = "error",
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
        path: the folder, or the table, `.csv` or `.tsv`, whose paths are relative to its folder; or a Dataset of
            PyTorch or of Hugging Face in memory, see `ImageData`, whose images are written into the cache.
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
    path = Path(path) if isinstance(path, str | Path) else kept_images(path)
    augmentation = Augment(**augment) if augment else None
    preparing = encoder_of(features, encoder, size, colour, views=views)
    if features != "pixels" and (augment or turned_classes):
        raise ValueError(
            f"{'augment varies' if augment else 'turned_classes turns'} pixels: it goes with features: pixels"
        )
    listing = (list_table if path.is_file() else list_folder)(path, follow_links=follow_links)
    files = open_images(
        listing.files, listing.root, preparing, features=features, size=size, colour=colour, bad_images=bad_images,
        progress=progress,
    )  # fmt: skip
    rows = {name: np.array(numbers, np.int64) for name, numbers in listing.classes.items()}
    if bad_images == "drop":
        rows = {name: numbers[~np.isin(numbers, [*files.bad])] for name, numbers in rows.items()}
    classes = _cut(rows, listing, path, split)
    domains = dict(listing.domains)
    examples: Dataset = files
    if turned_classes:
        examples = Turned(files)
        turns = {f"{name}/rot{90 * turn:03}": (name, turn) for name in classes["train"] for turn in range(4)}
        classes["train"] = {turned: rows[name] + turn * len(files) for turned, (name, turn) in turns.items()}
        domains |= {turned: domains[name] for turned, (name, _) in turns.items()}
    kept = kept_of(features, preparing, size, colour)
    source = ClassTasks(
        examples, classes, **options, same_classes="rows" in (split or {}), augment=augmentation,
        within=_within(listing, path, domains) if within else None,
        name=f"images of {shown(path.name)}",
        left_out={"images that cannot be used": len(files.bad)} if files.bad else {},
        preprocessor=ImagePreprocessor(**kept) if preparing and kept else None,
    )  # fmt: skip
    source.notes = listing.notes
    for note in source.notes:
        log.warning("%s", note)
    return source


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
