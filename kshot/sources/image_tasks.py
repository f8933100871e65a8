"""Tasks that classify listed images: what sources of images have in common once they know the files of each class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kshot.data.dataset import Dataset
from kshot.data.images.augment import Augment, Turned
from kshot.data.images.decode import Colour
from kshot.data.images.encoder import ImageEncoder
from kshot.data.images.index import Listing, shown
from kshot.sources.image_files import BadImages, Features, ImagePreprocessor, encoder_of, kept_of, open_images
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.splitting import DEFAULT_SPLIT, cut_rows
from kshot.types import Split

log = logging.getLogger(__name__)


def image_tasks(
    listed: Callable[[], Listing],
    path: Path,
    *,
    size: int | None,
    colour: Colour | None,
    features: Features | ImageEncoder,
    encoder: str | None,
    views: int,
    split: Mapping[str, Any] | None,
    within: str | None,
    augment: Mapping[str, Any] | None,
    turned_classes: bool,
    bad_images: BadImages,
    progress: Callable[[int, int], object] | None,
    options: Mapping[str, Any],
) -> ClassTasks:
    """Tasks of the images that `listed()` lists, once the other arguments, as in `images`, are known to be right."""
    augmentation = Augment(**augment) if augment else None
    preparing = encoder_of(features, encoder, size, colour, views=views)
    if features != "pixels" and (augment or turned_classes):
        raise ValueError(
            f"{'augment varies' if augment else 'turned_classes turns'} pixels: it goes with features: pixels"
        )
    listing = listed()
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
